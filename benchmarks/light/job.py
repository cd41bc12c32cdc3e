"""The job over the bare loop: the plain shard worker against the same loaded teachers on batches that lie ready.

The worker reads synthetic JPEG logs of three cameras, every window of 12 frames a scene, decodes, resizes, batches,
teaches, hashes, and writes `samples` and the teachers' columns, tars and Zarr, with fsync. Its time is from a ready
worker to the last receipt, so the filling and the emptying of its pipeline count: the more shards, the less they do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from benchmarks.light import Config
from benchmarks.light.meter import Device
from benchmarks.light.networks import VIEWS, loop, ready
from benchmarks.measure import temporary
from benchmarks.workload import FUTURE, HISTORY, WindowSource, begin, write_logs
from pipeline.writing import run as runs
from pipeline.writing.task import ShardReceipt
from pipeline.writing.worker import WorkerConfig
from shards_schema.records import Frame
from teachers.base import Teacher


@dataclass(frozen=True)
class ViewsSource(WindowSource):
    """`WindowSource` with a camera a view: the logs of each lie in a folder of its name."""

    def _frame(self, log: str, index: int) -> Frame:
        frame = super()._frame(log, index)
        front = frame.cameras["CAM_F0"]
        cameras = {
            view: replace(front, channel=view, image=f"{self.root}/{view}/{log}/{index:05d}.jpg") for view in VIEWS
        }
        return replace(frame, cameras=cameras)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Readings of job and bare loop, in turn.

    Attributes:
        columns: of the teachers.
        scenes: of one run.
        bare: scenes a second.
        job: scenes a second.
        busy: share of the job's time in which the teachers were at work.
        decodes: JPEG decodes a distinct image.
    """

    columns: tuple[str, ...]
    scenes: int
    bare: list[float]
    job: list[float]
    busy: list[float]
    decodes: float


def measure(plan: Config, device: Device, teachers: Sequence[Teacher]) -> Outcome | None:
    """Both, `job_repeats` times; None where no teacher is there."""
    if not teachers:
        return None
    bare, job, busy, decodes = [], [], [], 0.0
    with temporary() as root:
        frames = (plan.shard_size + HISTORY + FUTURE - 1,) * plan.shards
        for view in VIEWS:
            write_logs(root / "logs" / view, frames, plan.image)
        source = ViewsSource(str(root / "logs"), frames)
        _job(plan, source, root / "warm", teachers, shards=1)
        for _ in range(plan.job_repeats):
            bare.append(_bare(plan, device, teachers))
            receipts, seconds = _job(plan, source, root / "out", teachers, shards=plan.shards)
            job.append(sum(c.written for r in receipts for c in r.columns if c.column == teachers[0].name) / seconds)
            busy.append(sum(c.teacher_seconds for r in receipts for c in r.columns) / seconds)
            decodes = sum(r.decodes for r in receipts) / sum(r.images for r in receipts)
    return Outcome(tuple(t.name for t in teachers), plan.shards * plan.shard_size, bare, job, busy, decodes)


def _bare(plan: Config, device: Device, teachers: Sequence[Teacher]) -> float:
    work = [(teacher, [ready(teacher, seed, teacher.batch_size) for seed in range(2)]) for teacher in teachers]
    size = teachers[0].batch_size
    calls = ceil(plan.shards * plan.shard_size / size)
    device.wait()
    began = time.perf_counter()
    loop(device, work, calls)
    device.wait()
    return calls * size / (time.perf_counter() - began)


def _job(
    plan: Config, source: ViewsSource, out: Path, teachers: Sequence[Teacher], *, shards: int
) -> tuple[list[ShardReceipt], float]:
    """The receipts of the first `shards` shards, and the seconds from a ready worker to the last of them."""
    threads = WorkerConfig(device=plan.device, decode_threads=plan.decode_threads)
    run, make = begin(source, out, teachers, shard_size=plan.shard_size, worker=threads)
    worker = make()
    worker.load()
    began = time.perf_counter()
    with ThreadPoolExecutor(threads.shards_in_flight) as pool:
        receipts = list(pool.map(worker.process, run.todo()[:shards]))
    seconds = time.perf_counter() - began
    worker.close()
    if len(receipts) == plan.shards:
        runs.close(run)  # raises where planned is not written and quarantined
    shutil.rmtree(out)
    return receipts, seconds
