"""A toy dataset on disk, planned and written by the real worker in about a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import run as runs
from pipeline.plan import PlanConfig
from pipeline.samples import SamplesColumn, SamplesConfig
from pipeline.worker import ShardWorker, WorkerConfig
from teachers.base import Teacher, column_manifest
from tests.toys import F, H, ToySource


def commit(source: ToySource, out: Path, teachers: Sequence[Teacher], *, shards: int | None = None) -> runs.Run:
    """Commit `source` with `teachers` at `out`, six samples a shard; only the first `shards` tasks where given."""
    samples = SamplesColumn(SamplesConfig(), num_history=H, num_future=F)
    manifests = [samples.manifest({}), *(column_manifest(t) for t in teachers)]
    run = runs.begin(source, str(out), manifests, plan_config=PlanConfig(shard_size=6))
    worker = ShardWorker(
        source=source,
        volume=run.volume,
        teachers=teachers,
        samples=samples,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=6,
        zarr=True,
        config=WorkerConfig(device="cpu", decode_threads=2),
    )
    worker.load()
    for task in run.todo()[:shards]:
        worker.process(task)
    worker.close()
    if shards is None:
        runs.close(run)
    return run
