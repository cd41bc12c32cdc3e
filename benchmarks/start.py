"""The start of a training run: seconds and memory of each rank, from the command to the end of its first step.

`jobs.sft` as it is, on a dataset of many small samples that is written for it (noise; whole documents, tiny images).
Imports are not in the time, and what they hold is not in the memory, which is the kernel's peak (VmHWM). The teacher's
features are pooled as in the recipe; statistics are those of the training split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from pydantic import Field

from benchmarks import measure
from benchmarks.measure import status, temporary
from benchmarks.scale.scenes import scene_refs
from benchmarks.shards import Members, column, write_dataset
from jobs import sft
from pipeline.stores.decode import encode_jpeg
from reports.tables import table
from shards_schema import layout
from shards_schema.inputs.models import StrictModel
from shards_schema.plan import SceneRef
from shards_schema.records import COMMANDS
from shards_schema.specs import TargetSpec
from trainer import distributed
from trainer.run import Batches
from trainer.sft import SFT

HISTORY, FUTURE = 4, 8
SPEC = TargetSpec.of("grid", "row col channel", (4, 8, 64), "float16", "1", "noise")
TARGET = {"column": "noise", "target": SPEC.name, "grid": {"row": 2, "col": 4}}


class Config(StrictModel):
    """Knobs: samples in all and a shard, (width, height) of an image, processes of each row, what is held out."""

    samples: int = Field(default=100_000, ge=100)
    shard_size: int = Field(default=256, ge=1)
    image: tuple[int, int] = (112, 64)
    ranks: tuple[int, ...] = (1, 2)
    held_out: float = Field(default=0.2, gt=0, lt=1)


def run(config: Config) -> None:
    rows = []
    with temporary() as root:
        began = perf_counter()
        write_samples(root / "data", config)
        print(
            f"{config.samples:,} samples, images of {config.image[0]} x {config.image[1]}, {config.held_out:.0%} held "
            f"out; written in {perf_counter() - began:.0f} s\n"
        )
        for ranks in config.ranks:
            found = started(root, config, ranks)
            rows.append(
                [str(ranks), *(", ".join(f"{value:.0f}" for value in each) for each in zip(*found, strict=True))]
            )
    print(table(["ranks", "s to the first step", "s of CPU", "MB of imports", "MB more at most"], rows))


def started(root: Path, config: Config, ranks: int) -> list[list[float]]:
    """Of each rank: seconds, those of CPU, MB of imports, MB on top of them at most."""
    recipe = {
        "data": str(root / "data"),
        "out": str(root / f"run_{ranks}"),
        "samples": {"image": config.image, "held_out": config.held_out},
        "stream": {"batch_size": 16 // ranks, "threads": 1},
        "student": {"kind": "tiny", "width": 32, "depth": 2, "heads": 2, "image": config.image},
        "answers": {"kind": "motion", "size": 64},
        "targets": {"wm": TARGET, "geo": TARGET},
        "stages": [{"stage": 1, "steps": 10}],
        "device": "cpu",
    }
    path = root / f"recipe_{ranks}.json"
    path.write_text(json.dumps(recipe))
    measure.ranks(ranks, "benchmarks.start", str(path), str(root / f"found_{ranks}"))
    return [json.loads(Path(root, f"found_{ranks}.{rank}").read_text()) for rank in range(ranks)]


def write_samples(out: Path, config: Config) -> None:
    """The dataset: two columns, `samples` and `noise`."""
    rng = np.random.default_rng(0)
    width, height = config.image
    images = [encode_jpeg(rng.integers(0, 255, (height, width, 3), dtype=np.uint8), 90) for _ in range(16)]
    targets = [rng.standard_normal(SPEC.fixed_shape).astype(np.float16) for _ in range(64)]
    speed = rng.uniform(0, 15, config.samples)
    turn = rng.normal(0, 0.1, config.samples)

    def samples(ref: SceneRef) -> dict[str, bytes]:
        pick = int(ref.token, 16)
        document = _document(ref, speed[pick % config.samples], turn[pick % config.samples])
        return {"json": json.dumps(document).encode(), "cam_f0.jpg": images[pick % 16]}

    def noise(ref: SceneRef) -> dict[str, Any]:
        return {SPEC.name: targets[int(ref.token, 16) % 64]}

    described = column(layout.SAMPLES, num_history=HISTORY, num_future=FUTURE)
    columns: Sequence[tuple[Any, Members]] = ((described, samples), (column("noise", (SPEC,)), noise))
    write_dataset(out, list(scene_refs(config.samples)), config.shard_size, columns)


def _document(ref: SceneRef, speed: float, turn: float) -> dict[str, Any]:
    """What the trainer reads of a sample's document, and boxes enough to make it as long as real ones are."""
    times = 0.5 * np.arange(1 - HISTORY, FUTURE + 1)
    path = np.stack([speed * times, 0.5 * speed * turn * times**2, turn * times], 1).round(3).tolist()
    return {
        "token": ref.token,
        "log": ref.log,
        "timestamp": ref.timestamp,
        "ego": {"command": COMMANDS[1]},
        "history": {
            "trajectory": path[:HISTORY],
            "velocity": [[speed, 0.0]] * HISTORY,
            "acceleration": [[0.0, 0.0]] * HISTORY,
        },
        "future": {"trajectory": path[HISTORY:]},
        "annotations": {"boxes": [[12.345] * 7] * 40, "names": ["vehicle"] * 40},
    }


def _measured(recipe: str, found: str) -> None:
    """A rank: `jobs.sft` up to the end of its first step."""
    idle, began, spent, advance = status("VmRSS"), perf_counter(), process_time(), SFT._advance

    def once(training: SFT, batches: Batches) -> None:
        advance(training, batches)
        numbers = [perf_counter() - began, process_time() - spent, idle, status("VmHWM") - idle]
        Path(f"{found}.{distributed.rank()}").write_text(json.dumps(numbers))
        raise SystemExit

    SFT._advance = once  # type: ignore[method-assign]
    sft.main([recipe])


if __name__ == "__main__":
    _measured(*sys.argv[1:])
