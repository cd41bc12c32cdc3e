"""A toy dataset on disk for tests of the stream, made by the real worker in a second."""

from __future__ import annotations

from pathlib import Path

from pipeline import run as runs
from pipeline.plan import PlanConfig
from pipeline.samples import SamplesColumn, SamplesConfig
from pipeline.worker import ShardWorker, WorkerConfig
from teachers.base import column_manifest
from tests.toys import F, H, ToySource, ToyTeacher, write_images

TARGETS = {"samples": ["json", "cam_f0.jpg"], "toy": ["grid", "mean", "path"]}
SMALL = {"toy": ["mean"]}


def make(root: Path, *, logs: int = 3, frames: int = 9, shard_size: int = 6, poison: str | None = None) -> str:
    """A committed dataset of logs x (frames - 4) samples with the columns `samples` and `toy`; its path."""
    write_images(root / "data", logs, frames)
    source = ToySource(str(root / "data"), logs=logs, frames=frames)
    teacher = ToyTeacher(poison=poison)
    samples = SamplesColumn(SamplesConfig(), num_history=H, num_future=F)
    run = runs.begin(
        source,
        str(root / "out"),
        [samples.manifest({}), column_manifest(teacher)],
        plan_config=PlanConfig(shard_size=shard_size),
        with_zarr=False,
    )
    worker = ShardWorker(
        source=source,
        volume=run.volume,
        teachers=[teacher],
        samples=samples,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=shard_size,
        zarr=False,
        config=WorkerConfig(device="cpu", decode_threads=2),
    )
    worker.load()
    for task in run.todo():
        worker.process(task)
    worker.close()
    runs.close(run)
    return str(root / "out")
