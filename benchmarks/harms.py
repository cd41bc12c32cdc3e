"""Good columns harmed on purpose, and whether `make signal` tells: views, colours, times, layers, checkpoints.

A generated town, two columns of small networks, the same harmed in one way each, in a dataset of their own, and one of
other logs that nothing was done to, as the reference. A harmed teacher says of itself what the good one says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.measure import temporary
from benchmarks.workload import begin
from pipeline.reading.reader import Dataset
from pipeline.sources import registry as sources
from pipeline.sources.base import Source
from pipeline.writing import run as runs
from pipeline.writing.samples import SamplesConfig
from pipeline.writing.worker import WorkerConfig
from reports.signal import report
from reports.signal.measure import Signal, measure
from reports.tables import table
from shards_schema.inputs.models import StrictModel
from teachers import registry as teachers
from teachers.base import Targets, Teacher, TeacherInput

Images = NDArray[np.uint8]


class Config(StrictModel):
    """The measurement."""

    logs: int = Field(default=24, ge=8)
    """Of the town; a quarter as many more are the reference."""
    frames: int = Field(default=32, ge=15)
    """Of a log."""
    every: int = Field(default=3, ge=1)
    """Frames from scene to scene."""
    shard_size: int = Field(default=16, ge=1)
    """Scenes of a shard."""
    weights: Mapping[str, Any] = {"town": True}
    """Of both networks."""
    other: Mapping[str, Any] = {"random": 1}
    """Of the other checkpoint."""
    vggt: Mapping[str, Any] = {
        "network": "town",
        "width": 252,
        "pools": {"tok12": {"rows": 3, "cols": 4, "flat": True}},
        "heads": ["depth"],
    }
    """More of the first column."""
    cosmos: Mapping[str, Any] = {"size": [128, 64], "pool": 2}
    """More of the second."""
    folder: str | None = None
    """Where the town and the datasets are made, and left; None for a folder that goes away."""


class Harmed:
    """A teacher that is given other images than it asks for, or is another one for some logs; the rest is the inner's.

    Args:
        inner: what it says it is.
        change: of the images of a scene, [N, h, w, 3].
        other: who computes in its place the scenes of `logs`; None is itself, everywhere.
    """

    def __init__(
        self, inner: Teacher, change: Callable[[Images, str], Images] | None = None, other: Teacher | None = None
    ) -> None:
        self.inner, self.change, self.other, self.logs = inner, change, other, frozenset[str]()
        self.name, self.batch_size, self.specs = inner.name, inner.batch_size, inner.specs
        self.random_weights = inner.random_weights
        self.provenance, self.requests, self.preprocess = inner.provenance, inner.requests, inner.preprocess

    def load(self, device: str) -> None:
        """Both."""
        for teacher in (self.inner, self.other):
            if teacher is not None:
                teacher.load(device)

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        """One scene after the other, under the names of the inner's targets."""
        out = []
        for item in batch:
            seen = item.images if self.change is None else self.change(item.images, item.scene.token)
            instead = self.other is not None and (not self.logs or item.scene.log in self.logs)
            teacher = self.other if self.other is not None and instead else self.inner
            (made,) = teacher.compute([dataclasses.replace(item, images=np.ascontiguousarray(seen))])
            out.append({spec.name: array for spec, array in zip(self.specs, made.values(), strict=True)})
        return out


def run(config: Config) -> None:
    """Make the datasets, probe each, print a row a harm."""
    if config.folder is not None:
        _measure(config, Path(config.folder))
        return
    with temporary() as folder:
        _measure(config, folder)


def harms(config: Config) -> dict[str, tuple[list[Teacher], bool]]:
    """Harm -> the columns, and whether it is one shard that is harmed."""
    vggt = {**config.vggt, "weights": config.weights, "views": ["CAM_F0", "CAM_L0", "CAM_R0"], "batch_size": 1}
    cosmos = {**config.cosmos, "weights": config.weights, "model": "cv8x8x8", "layout": "A", "batch_size": 1}

    def of(kind: str, **changes: Any) -> Teacher:
        return teachers.build(kind, {**(vggt if kind == "vggt" else cosmos), **changes})

    def harmed(**how: Any) -> list[Teacher]:
        return [Harmed(of("vggt"), **how), Harmed(of("cosmos"), **how)]

    def shuffled(images: Images, token: str) -> Images:
        return images[np.random.default_rng(int(token, 16) % 2**63).permutation(len(images))]

    unscaled = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    return {
        "none": ([of("vggt"), of("cosmos")], False),
        "views swapped (front, left)": ([Harmed(of("vggt"), lambda images, _: images[[1, 0, 2]])], False),
        "views swapped (left, right)": ([Harmed(of("vggt"), lambda images, _: images[[0, 2, 1]])], False),
        "RGB as BGR": (harmed(change=lambda images, _: images[..., ::-1]), False),
        "frames in reverse": ([Harmed(of("cosmos"), lambda images, _: images[::-1])], False),
        "frames shuffled": ([Harmed(of("cosmos"), shuffled)], False),
        "latents not normalised": ([Harmed(of("cosmos"), other=of("cosmos", **unscaled))], False),
        "another layer": ([Harmed(of("vggt"), other=of("vggt", layers=[0]))], False),
        "another checkpoint": (
            [Harmed(of(k), other=of(k, weights=config.other)) for k in ("vggt", "cosmos")],
            False,
        ),
        "one shard of another checkpoint": (
            [Harmed(of(k), other=of(k, weights=config.other)) for k in ("vggt", "cosmos")],
            True,
        ),
    }  # fmt: skip


def _measure(config: Config, folder: Path) -> None:
    source = _town(config, folder / "town", 77, config.logs)
    reference = _town(config, folder / "trusted", 78, config.logs // 4)
    known = harms(config)
    good = _made(reference, folder / "reference", *known["none"], config.shard_size)
    rows = []
    for number, (harm, (columns, one_shard)) in enumerate(known.items()):
        dataset = _made(source, folder / f"harm-{number}", columns, one_shard, config.shard_size)
        found = measure(dataset, None, samples=10_000, dims=256, seed=0, reference=good)
        print(f"\n--- {harm}: {folder / f'harm-{number}'}\n{report.text(found)}", flush=True)
        rows += _rows(harm, found)
    print("\n" + table(["harm", "target", "knows", "adds", "checks that tell it", "checks that do not"], rows))


def _town(config: Config, root: Path, seed: int, logs: int) -> Source:
    cameras = ["CAM_F0", "CAM_L0", "CAM_R0"]
    drawn = {"root": str(root), "seed": seed, "logs": logs, "frames": config.frames, "width": 256, "height": 144}
    scenes = {"frame_interval": config.every, "num_history_frames": 4, "num_future_frames": 10}
    return sources.build({"kind": "synthetic", **drawn, "lidar_points": 0, "cameras": cameras, "filter": scenes})


def _rows(harm: str, found: Signal) -> list[list[str]]:
    out = []
    for target in found.targets:
        told = target.told.values()
        bad = {c.kind for c in target.checks if c.verdict == "bad"}
        blind = {c.kind for c in target.checks} - bad
        adds = sum(t.adds.middle for t in told if t.adds is not None)
        counts = f"{sum(t.knows for t in told)} of {len(told)}", f"{sum(t.pays for t in told)} ({adds:+.2f})"
        out.append([harm, target.name, *counts, ", ".join(sorted(bad)) or "-", ", ".join(sorted(blind)) or "-"])
    return out


def _made(source: Source, out: Path, columns: Sequence[Teacher], one_shard: bool, shard_size: int) -> Dataset:
    threads = WorkerConfig(device="cpu", decode_threads=1)
    stored = SamplesConfig(size=(224, 128))
    run, make = begin(source, out, columns, shard_size=shard_size, worker=threads, stored=stored, zarr=False)
    worker = make()
    worker.load()
    for task in run.todo():
        for teacher in columns:
            if isinstance(teacher, Harmed) and one_shard:
                teacher.logs = frozenset(s.ref.log for s in task.scenes) if task.shard == 1 else frozenset(("none",))
        worker.process(task)
    worker.close()
    runs.close(run)
    return Dataset(str(out))
