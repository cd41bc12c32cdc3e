"""A toy dataset on disk for tests of the stream, made by the real worker in a second."""

from __future__ import annotations

from pathlib import Path

from tests.committed import commit
from tests.toys import ToySource, ToyTeacher, write_images

TARGETS = {"samples": ["json", "cam_f0.jpg"], "toy": ["grid", "mean", "path"]}
SMALL = {"toy": ["mean"]}


def make(
    root: Path,
    *,
    logs: int = 3,
    frames: int = 9,
    shard_size: int = 6,
    poison: str | None = None,
    storage: dict[str, dict[str, str]] | None = None,
) -> str:
    """A committed dataset of logs x (frames - 4) samples with the columns `samples` and `toy`; its path."""
    write_images(root / "data", logs, frames)
    source = ToySource(str(root / "data"), logs=logs, frames=frames)
    commit(source, root / "out", [ToyTeacher(poison=poison)], shard_size=shard_size, zarr=False, storage=storage or {})
    return str(root / "out")
