"""Layers of a nuPlan map (a GeoPackage), read without GeoPandas.

Shapes are moved to the metre grid of ``meta.projectedCoordSystem``, the frame of the logs' poses, without heights. A
feature's FID is its id. Rows keep the order of the file, which decides ties. Only what is asked for is read: of a file
of 50 to 100 MB the larger part is boundaries, stop lines and crosswalks, which nobody here needs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pyproj
import shapely
from numpy.typing import NDArray

from shards_schema.errors import SampleError, StoreError
from shards_schema.inputs.reading import read_local

Shapes = NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """N rows.

    Attributes:
        ids: int64 [N], FIDs.
        shapes: shapely, object [N], metres; [0] where none were asked for.
        columns: arrays [N] by name: ids (``*_fid``) as int64, -1 where there is none; speeds (``*_mps``) as float64,
            NaN where there is none; others as they are.
    """

    ids: NDArray[np.int64]
    shapes: Shapes
    columns: Mapping[str, NDArray[Any]]

    def rows(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """FID and values of each row."""
        return zip(self.ids.tolist(), *(self.columns[name].tolist() for name in columns), strict=True)


class GeoPackage:
    """A file; every fault in it is a `SampleError` of code ``bad_map``, and one of the disk below it a `StoreError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def layer(self, name: str, *columns: str, shapes: bool = True) -> Layer:
        """Read a layer.

        Raises:
            SampleError: code ``bad_map``: it or a column is missing, or does not hold what it should.
        """
        with self._named_faults():
            meta, ids, wkb, values = pyogrio.raw.read(
                self.path, layer=name, columns=list(columns), read_geometry=shapes, return_fids=True
            )
            found = dict(zip(meta["fields"], values, strict=True))
            if missing := [column for column in columns if column not in found]:
                raise SampleError("bad_map", f"{self.path}: layer {name} lacks {', '.join(missing)}")
            found = {column: _typed(column, v) for column, v in found.items()}
            return Layer(ids, self._projected(wkb, meta["crs"]) if shapes else np.empty(0, dtype=object), found)

    @cached_property
    def _grid(self) -> pyproj.CRS:
        pairs = {key: value for _, key, value in self.layer("meta", "key", "value", shapes=False).rows("key", "value")}
        if "projectedCoordSystem" not in pairs:
            raise SampleError("bad_map", f"{self.path}: layer meta has no projectedCoordSystem, only {sorted(pairs)}")
        return pyproj.CRS.from_user_input(pairs["projectedCoordSystem"])

    def _projected(self, wkb: NDArray[np.object_], crs: str) -> Shapes:
        shapes = shapely.force_2d(shapely.from_wkb(wkb))
        source = pyproj.CRS.from_user_input(crs)
        if not source.is_exact_same(self._grid):
            move = pyproj.Transformer.from_crs(source, self._grid, always_xy=True)
            shapes = shapely.transform(shapes, lambda xy: np.column_stack(move.transform(xy[:, 0], xy[:, 1])))
        return np.asarray(shapes, dtype=object)

    @contextmanager
    def _named_faults(self) -> Generator[None, None, None]:
        try:
            yield
        except SampleError:
            raise
        except Exception as error:  # GDAL, PROJ and GEOS each have error classes of their own
            self._refuse_passing()
            raise SampleError("bad_map", f"{self.path}: not a nuPlan map: {type(error).__name__}: {error}") from error

    def _refuse_passing(self) -> None:
        """After a fault: whether the file can be read at all; GDAL does not say so in a way that one could ask for."""
        try:
            read_local(self.path)
        except FileNotFoundError as error:  # it was there when its path was asked for
            raise StoreError(f"read {self.path}: it is not there any more; bring it back and run again") from error


def _typed(column: str, values: NDArray[Any]) -> NDArray[Any]:
    """Ids and speeds, which stand as integers, as floats or as text; those that are not there are NaN, None or ""."""
    is_id = column.endswith("_fid")
    if not is_id and not column.endswith("_mps"):
        return values
    if values.dtype.kind not in "iuf":
        values = np.array([np.nan if v is None or v == "" else float(v) for v in values.tolist()])
    if is_id and values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1.0, values)
    return values.astype(np.int64 if is_id else np.float64)
