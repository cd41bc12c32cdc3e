"""A committed dataset of four short logs, written by the real worker, and a recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.committed import commit
from tests.toys import ToySource, ToyTeacher, write_images
from trainer.config import SFTConfig


def write_dataset(root: Path, logs: int = 4, frames: int = 9, history: int = 0) -> str:
    """`logs` x (frames - 4) scenes of 2 history and 3 future steps, with the column `toy`."""
    write_images(root / "data", logs=logs, frames=frames)
    source = ToySource(str(root / "data"), logs=logs, frames=frames)
    commit(source, root / "out", [ToyTeacher(random_weights=True)], shard_size=8, zarr=False, history=history)
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
