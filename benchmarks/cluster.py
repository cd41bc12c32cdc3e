"""One actor against two on this machine: what a second worker brings where the cores are shared.

Two teachers: one that sleeps (an imitated GPU each, so that what is measured is all the rest), and a small VGGT on the
CPU (one torch thread, so that one actor cannot take both cores by itself). The rate is taken from the moment the last
actor is ready to the last receipt, over the shards whose receipts came in that time. All on one node: no network.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.measure import spread, temporary
from benchmarks.workload import FUTURE, HISTORY, FixedTeacher, WindowSource, begin, write_logs
from cluster.driver import drive
from cluster.session import ClusterConfig, session
from pipeline.writing import run as runs
from pipeline.writing.task import ShardReceipt
from pipeline.writing.worker import WorkerConfig
from reports.tables import table
from shards_schema.inputs.models import StrictModel
from teachers import registry as teachers


class Config(StrictModel):
    """Knobs."""

    actors: tuple[int, ...] = (1, 2)
    """How many, each number a row."""
    cpus: int = Field(default=2, ge=1)
    """Of the Ray that is started."""
    size: tuple[int, int] = (480, 270)
    """Of the images (width, height)."""
    shards: int = Field(default=24, ge=4)
    """Of a run; each is one log."""
    shard_size: int = Field(default=16, ge=1)
    """Scenes a shard."""
    batch_ms: float = 80
    """Of the sleeping teacher, for 8 scenes."""
    repeats: int = Field(default=3, ge=1)
    """Of each row."""


def run(config: Config) -> None:
    with temporary() as root:
        frames = (config.shard_size + HISTORY + FUTURE - 1,) * config.shards
        write_logs(root / "data", frames, config.size)
        source = WindowSource(str(root / "data"), frames)
        vggt = {"weights": {"random": 0}, "network": "tiny", "views": ["CAM_F0"], "width": 266, "batch_size": 8}
        kinds: dict[str, Callable[[], Any]] = {
            f"sleeps {config.batch_ms:g} ms for 8": lambda: FixedTeacher(seconds=config.batch_ms / 1e3),
            "small VGGT, CPU": lambda: teachers.build("vggt", vggt),
        }
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(config.repeats):
            for kind, teacher in kinds.items():
                for actors in config.actors:
                    rates.setdefault((kind, actors), []).append(
                        _rate(config, source, [teacher()], actors, root / "out")
                    )
                    shutil.rmtree(root / "out")
        first = config.actors[0]
        rows = [
            [kind, str(actors), spread(found, 1), f"{median(found) / median(rates[kind, first]):.2f}"]
            for (kind, actors), found in rates.items()
        ]
        print(table(["teacher", "actors", "scenes/s", f"/ {first} actor"], rows), flush=True)


def _rate(config: Config, source: WindowSource, columns: Sequence[Any], actors: int, out: Path) -> float:
    worker = WorkerConfig(device="cpu", decode_threads=2, shards_in_flight=2, torch_threads=1)
    run, make = begin(source, out, columns, shard_size=config.shard_size, worker=worker)
    ready: list[float] = []
    receipts: list[tuple[float, ShardReceipt]] = []
    ray = ClusterConfig(workers=actors, cpus=config.cpus)
    with session(ray):
        drive(
            run.todo(),
            make,
            config=ray,
            in_flight=worker.shards_in_flight,
            on_start=lambda pid: ready.append(time.monotonic()),
            on_receipt=lambda receipt: receipts.append((time.monotonic(), receipt)),
        )
    runs.close(run)
    counted = [(at, max(c.written for c in receipt.columns)) for at, receipt in receipts if at > ready[-1]]
    return sum(scenes for _, scenes in counted) / (counted[-1][0] - ready[-1])
