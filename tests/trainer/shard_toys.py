"""A committed dataset of four short logs, written by the real worker, and a recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import run as runs
from pipeline.plan import PlanConfig
from pipeline.samples import SamplesColumn, SamplesConfig
from pipeline.worker import ShardWorker, WorkerConfig
from teachers.base import column_manifest
from tests.toys import F, H, ToySource, ToyTeacher, write_images
from trainer.config import SFTConfig


def write_dataset(root: Path, logs: int = 4, frames: int = 9) -> str:
    """`logs` x (frames - 4) scenes of 2 history and 3 future steps, with the column `toy`."""
    write_images(root / "data", logs=logs, frames=frames)
    source, teacher = ToySource(str(root / "data"), logs=logs, frames=frames), ToyTeacher(random_weights=True)
    samples = SamplesColumn(SamplesConfig(), num_history=H, num_future=F)
    manifests = [samples.manifest({}), column_manifest(teacher)]
    run = runs.begin(source, str(root / "out"), manifests, plan_config=PlanConfig(shard_size=8), with_zarr=False)
    worker = ShardWorker(
        source=source,
        volume=run.volume,
        teachers=[teacher],
        samples=samples,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=8,
        zarr=False,
        config=WorkerConfig(device="cpu", decode_threads=1),
    )
    worker.load()
    for shard in run.todo():
        worker.process(shard)
    worker.close()
    runs.close(run)
    return str(root / "out")


def recipe_values(data: str, out: Path | str, **changes: Any) -> dict[str, Any]:
    """Three steps of each stage, a batch of 4, everything logged and saved often."""
    grid = {"column": "toy", "target": "grid"}
    return {
        "data": data,
        "out": str(out),
        "samples": {"image": [48, 32], "steps": 3, "held_out": 0.25},
        "stream": {"batch_size": 4, "threads": 1},
        "student": {"kind": "tiny", "width": 16, "depth": 2, "heads": 2, "image": [48, 32], "dropout": 0.1},
        "answers": {"kind": "motion", "size": 6},
        "targets": {
            "wm": grid | {"grid": {"step": 3, "row": 1, "col": 2}},
            "geo": grid | {"grid": {"row": 2, "col": 2}, "select": {"step": 0}},
        },
        "adapter": 16,
        "stages": [{"stage": 1, "steps": 3, "lr": 3e-3}, {"stage": 2, "steps": 3, "lr": 3e-3}],
        "evaluate_every": 2,
        "save_every": 1,
        "log_every": 1,
        "device": "cpu",
        **changes,
    }


def recipe(data: str, out: Path | str, **changes: Any) -> SFTConfig:
    """The same, checked."""
    return SFTConfig.model_validate(recipe_values(data, out, **changes))
