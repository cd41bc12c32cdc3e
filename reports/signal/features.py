"""A target as numbers that a probe can take: averaged over a coarse grid, then its first principal directions.

Each number of the coarse grid is standardised over a spread subset of the scenes, so that no massive channel drowns the
others; the directions are those of that subset, which knows no label. Targets are read one sample after the other, and
of a sample `dims` numbers are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from pipeline.stores.threads import map_ahead
from shards_schema import layout
from shards_schema.specs import TargetSpec
from trainer.latents import averages
from trainer.splits import spread

Float32 = NDArray[np.float32]

LIMIT = 40_000
"""Numbers of a sample before the directions are taken."""
SUBSET = 768
"""Scenes that standardise, and that directions are of."""
_GRIDS = ((6, 9), (3, 6), (2, 3), (1, 3), (1, 1))
"""Rows and columns; the finest that fits is taken."""
_THREADS = 4


def probed(dataset: Dataset, column: str) -> list[TargetSpec]:
    """The targets of a column that hold features, floating and of a fixed shape; none where labels come from it."""
    specs = dataset.specs(column)
    if column == layout.SAMPLES or {"centerline", "ego_state"} <= specs.keys():
        return []
    floating = [s for s in specs.values() if np.dtype(s.dtype).kind == "f" and s.finite and not s.ragged]
    return [s for s in floating if math.prod(s.fixed_shape)]


def reader(dataset: Dataset, column: str, target: str) -> Callable[[str], NDArray[Any]]:
    """Token -> the array of that target, of any thread."""
    return lambda token: np.asarray(dataset.read(token, {column: [target]})[column][target])


@dataclass(frozen=True, eq=False)
class Features:
    """Of n samples.

    Attributes:
        values: float32 [n, d], centred, a mean square of 1.
        how: what they are, for a reader.
        slots: name of an entry of the axis of views or of time -> float32 [n, d'], what that entry alone says.
    """

    values: Float32
    how: str
    slots: Mapping[str, Float32]


def read(
    value: Callable[[str], NDArray[Any]], spec: TargetSpec, tokens: Sequence[str], dims: int, names: Sequence[str] = ()
) -> Features:
    """The features of a target.

    Args:
        value: token -> the target's array; called from several threads, twice for some.
        spec: of the target, as it is read.
        tokens: n, written in the column.
        dims: numbers that are kept of a sample; of each slot a quarter of them.
        names: of the entries of its first axis, where they are slots.
    """
    grid = _grid(spec)

    def coarse(token: str) -> Float32:
        return _coarse(value(token), spec.dims, grid)

    subset = np.stack(list(map_ahead(coarse, spread(tuple(tokens), SUBSET), threads=_THREADS)))
    parts = {"": slice(None)}
    width = subset.shape[1] // max(1, len(names))
    parts |= {name: slice(i * width, (i + 1) * width) for i, name in enumerate(names)}
    maps = {
        name: _Directions.of(subset[:, part], dims if not name else max(1, dims // 4)) for name, part in parts.items()
    }
    rows: dict[str, list[Float32]] = {name: [] for name in parts}
    for sample in map_ahead(coarse, tokens, threads=_THREADS):
        for name, part in parts.items():
            rows[name].append(maps[name](sample[part]))
    values = {name: np.stack(kept) for name, kept in rows.items()}
    cells = " x ".join(
        f"{min(size, grid.get(dim, size))} {dim}" for dim, size in zip(spec.dims, spec.fixed_shape, strict=True)
    )
    how = f"{cells or '1'}: {subset.shape[1]} numbers"
    if values[""].shape[1] < subset.shape[1]:
        how += f", their first {values[''].shape[1]} principal directions"
    return Features(values.pop(""), how, values)


def _grid(spec: TargetSpec) -> dict[str, int]:
    """Cells along the axes of an image; other axes are kept whole."""
    sizes = dict(zip(spec.dims, spec.fixed_shape, strict=True))
    rest = math.prod(n for dim, n in sizes.items() if not dim.endswith(("row", "col")))
    rows, columns = next((g for g in _GRIDS if rest * math.prod(g) <= LIMIT), _GRIDS[-1])
    wanted = {dim: rows if dim.endswith("row") else columns for dim in sizes if dim.endswith(("row", "col"))}
    return {dim: min(sizes[dim], n) for dim, n in wanted.items()}


def _coarse(array: NDArray[Any], dims: tuple[str, ...], grid: Mapping[str, int]) -> Float32:
    """float32 [p], axes in their order."""
    x = array.astype(np.float32)
    for dim, cells in grid.items():
        axis = dims.index(dim)
        x = np.moveaxis(np.tensordot(averages(x.shape[axis], cells), x, axes=(1, axis)), 0, axis)
    return x.reshape(-1)


@dataclass(frozen=True, eq=False)
class _Directions:
    """Standardise [p], then project to [d]."""

    mean: Float32
    scale: Float32
    matrix: Float32 | None

    @classmethod
    def of(cls, subset: Float32, dims: int) -> _Directions:
        """Of float32 [m, p]; at most `dims` directions, and none of those in which the subset does not differ."""
        mean = subset.mean(0, dtype=np.float64)
        std = subset.std(0, dtype=np.float64)
        inverse = np.where(std > 1e-6 * max(float(std.max()), 1e-30), 1 / np.maximum(std, 1e-30), 0.0)
        z = ((subset - mean) * inverse).astype(np.float32)
        if z.shape[1] <= dims:
            return cls(mean.astype(np.float32), inverse.astype(np.float32), None)
        values, left = np.linalg.eigh((z @ z.T).astype(np.float64))
        kept = np.flatnonzero(values > 1e-6 * max(float(values[-1]), 1e-30))[::-1][:dims]
        matrix = z.T @ (left[:, kept] / np.sqrt(values[kept]))
        spread_of = math.sqrt(float(values[kept].mean()) / len(z)) if len(kept) else 1.0
        return cls(mean.astype(np.float32), inverse.astype(np.float32), (matrix / spread_of).astype(np.float32))

    def __call__(self, sample: Float32) -> Float32:
        z = (sample - self.mean) * self.scale
        return np.asarray(z if self.matrix is None else z @ self.matrix, dtype=np.float32)
