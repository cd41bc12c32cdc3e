"""One location's nuPlan map (a GeoPackage), read without GeoPandas: lanes, roadblocks, and what lies around a point.

Layers and columns are those of spec section 5, with their quirks: a feature's FID is its id; ``exit_lane_fid`` of a
lane connector is the lane that it comes *from* and ``entry_lane_fid`` the one that it leads *to*; a connector's area is
in a layer of its own; baselines name their lane in one of two columns. Everything is moved to the metre grid of
``meta.projectedCoordSystem``, the frame of the logs' poses. Rows keep the order of the file, which decides ties.

A map is read once a process (`load_map`) and whole, but only the eight layers that a reward context needs; boundaries,
stop lines and crosswalks, the larger part of a file, are left alone.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pyproj
import shapely
from numpy.typing import NDArray

from shards_schema.errors import SampleError, WeightsError

Float64 = NDArray[np.float64]
Geometries = NDArray[np.object_]

INDEX = "nuplan-maps-v1.0.json"
"""Beside the locations' folders: location -> its map's version."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane, or a lane connector (a lane across an intersection).

    Attributes:
        id: its FID.
        connector: whether it is a lane connector.
        block: the roadblock (connector) that it belongs to.
        speed_limit: m/s; None where the map knows none.
    """

    id: int
    connector: bool
    block: int
    speed_limit: float | None


@dataclass(frozen=True, slots=True)
class Block:
    """A roadblock (parallel lanes of one direction), or a roadblock connector.

    Attributes:
        id: its FID.
        connector: whether it is a roadblock connector.
    """

    id: int
    connector: bool


@dataclass(frozen=True, slots=True, eq=False)
class Areas:
    """Polygons of one layer.

    Attributes:
        ids: int64 [N], in the order of the file.
        geometries: object [N], shapely, metres.
    """

    ids: NDArray[np.int64]
    geometries: Geometries
    tree: shapely.STRtree
    row: Mapping[int, int]

    @classmethod
    def of(cls, ids: NDArray[np.int64], geometries: Geometries) -> Areas:
        """With the indexes built."""
        return cls(ids, geometries, shapely.STRtree(geometries), {int(i): n for n, i in enumerate(ids)})

    def meeting(self, area: shapely.Geometry) -> list[int]:
        """Ids of the polygons that `area` touches, in the order of the file."""
        return [int(self.ids[n]) for n in np.sort(self.tree.query(area, predicate="intersects"))]

    def nearest(self, point: shapely.Geometry) -> int | None:
        """Id of the polygon nearest to `point`; None in an empty layer."""
        if len(self.ids) == 0:
            return None
        return int(self.ids[int(np.argmin(shapely.distance(self.geometries, point)))])


class NuplanMap:
    """The lane graph and the polygons of one location.

    Attributes:
        blocks, block_connectors, intersections, carparks: the polygons of those layers.
    """

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            SampleError: code ``bad_map``: a layer or column is missing, or does not hold what it should.
        """
        self._path = path
        try:
            self._read()
        except SampleError:
            raise
        except Exception as error:  # GDAL, PROJ and GEOS each have error classes of their own
            raise SampleError("bad_map", f"{path}: not a nuPlan map: {type(error).__name__}: {error}") from error

    def _read(self) -> None:
        crs = self._projection()
        self.blocks = Areas.of(*self._polygons("lane_groups_polygons", crs))
        ids, shapes, columns = self._layer("lane_group_connectors", crs, "from_lane_group_fid", "to_lane_group_fid")
        self.block_connectors = Areas.of(ids, shapes)
        self._block_from = dict(zip(ids.tolist(), columns["from_lane_group_fid"].tolist(), strict=True))
        self._block_to = dict(zip(ids.tolist(), columns["to_lane_group_fid"].tolist(), strict=True))
        self._connectors_from = _grouped(columns["from_lane_group_fid"], ids)
        self._connectors_to = _grouped(columns["to_lane_group_fid"], ids)
        self.intersections = Areas.of(*self._polygons("intersections", crs))
        self.carparks = Areas.of(*self._polygons("carpark_areas", crs))

        ids, shapes, columns = self._layer("lanes_polygons", crs, "lane_group_fid", "speed_limit_mps")
        self._lanes = _lanes(ids, columns["lane_group_fid"], columns["speed_limit_mps"], connector=False)
        self._lanes_of = _grouped(columns["lane_group_fid"], ids)
        self._polygon = {(False, int(i)): [shape] for i, shape in zip(ids, shapes, strict=True)}
        names = ("lane_group_connector_fid", "exit_lane_fid", "entry_lane_fid", "speed_limit_mps")
        ids, _, columns = self._layer("lane_connectors", None, *names)
        self._lane_connectors = _lanes(
            ids, columns["lane_group_connector_fid"], columns["speed_limit_mps"], connector=True
        )
        self._lane_connectors_of = _grouped(columns["lane_group_connector_fid"], ids)
        self._leaving = _grouped(columns["exit_lane_fid"], ids)
        self._leads_to = dict(zip(ids.tolist(), columns["entry_lane_fid"].tolist(), strict=True))
        _, shapes, columns = self._layer("gen_lane_connectors_scaled_width_polygons", crs, "lane_connector_fid")
        for i, shape in zip(columns["lane_connector_fid"].tolist(), shapes, strict=True):
            self._polygon.setdefault((True, i), []).append(shape)
        _, shapes, columns = self._layer("baseline_paths", crs, "lane_fid", "lane_connector_fid")
        self._line: dict[tuple[bool, int], list[shapely.Geometry]] = {}
        for name, connector in (("lane_fid", False), ("lane_connector_fid", True)):
            for i, shape in zip(columns[name].tolist(), shapes, strict=True):
                self._line.setdefault((connector, i), []).append(shape)

    def block(self, block_id: int) -> Block | None:
        """The roadblock of that id, else the roadblock connector, else None."""
        if block_id in self.blocks.row:
            return Block(block_id, connector=False)
        return Block(block_id, connector=True) if block_id in self.block_connectors.row else None

    def interior(self, block: Block) -> list[Lane]:
        """Its lanes, or lane connectors."""
        if block.connector:
            return [self._lane_connectors[i] for i in self._lane_connectors_of.get(block.id, ())]
        return [self._lanes[i] for i in self._lanes_of.get(block.id, ())]

    def area(self, block: Block) -> shapely.Geometry:
        """Its polygon."""
        layer = self.block_connectors if block.connector else self.blocks
        return layer.geometries[layer.row[block.id]]

    def next_blocks(self, block: Block) -> list[Block]:
        """What one drives to from it."""
        if block.connector:
            return [Block(self._block_to[block.id], connector=False)]
        return [Block(i, connector=True) for i in self._connectors_from.get(block.id, ())]

    def previous_blocks(self, block: Block) -> list[Block]:
        """What one comes from to it."""
        if block.connector:
            return [Block(self._block_from[block.id], connector=False)]
        return [Block(i, connector=True) for i in self._connectors_to.get(block.id, ())]

    def next_lanes(self, lane: Lane) -> list[Lane]:
        """What one drives to from it, less what the map does not have."""
        if not lane.connector:
            return [self._lane_connectors[i] for i in self._leaving.get(lane.id, ())]
        following = self._lanes.get(self._leads_to[lane.id])
        return [] if following is None else [following]

    def polygon(self, lane: Lane) -> shapely.Geometry:
        """Its area.

        Raises:
            SampleError: code ``bad_map``, it has none, or several.
        """
        return self._only(self._polygon, lane, "polygon")

    def baseline(self, lane: Lane) -> shapely.Geometry:
        """The line along its middle, as a LineString.

        Raises:
            SampleError: code ``bad_map``, it has none, or several, or one without length.
        """
        line = self._only(self._line, lane, "baseline")
        if line.geom_type != "LineString" or not line.length > 0:
            raise SampleError("bad_map", f"{self._path}: the baseline of {_name(lane)} is no line, but {line}")
        return line

    def centre(self, lane: Lane) -> Float64:
        """float64 [P, 3]: its baseline with the heading from each point to the next, the last one repeated."""
        xy = shapely.get_coordinates(self.baseline(lane))
        step = np.diff(xy, axis=0)
        heading = np.arctan2(step[:, 1], step[:, 0])
        return np.column_stack((xy, np.append(heading, heading[-1])))

    def _only(
        self, table: Mapping[tuple[bool, int], Sequence[shapely.Geometry]], lane: Lane, what: str
    ) -> shapely.Geometry:
        found = table.get((lane.connector, lane.id), ())
        if len(found) != 1:
            raise SampleError("bad_map", f"{self._path}: {_name(lane)} should have one {what}, has {len(found)}")
        return found[0]

    def _projection(self) -> pyproj.CRS:
        _, _, _, values = pyogrio.raw.read(self._path, layer="meta", columns=["key", "value"], read_geometry=False)
        meta = dict(zip(*(column.tolist() for column in values), strict=True))
        if "projectedCoordSystem" not in meta:
            raise SampleError("bad_map", f"{self._path}: layer meta has no projectedCoordSystem, only {sorted(meta)}")
        return pyproj.CRS.from_user_input(meta["projectedCoordSystem"])

    def _polygons(self, layer: str, crs: pyproj.CRS) -> tuple[NDArray[np.int64], Geometries]:
        ids, shapes, _ = self._layer(layer, crs)
        return ids, shapes

    def _layer(
        self, layer: str, crs: pyproj.CRS | None, *columns: str
    ) -> tuple[NDArray[np.int64], Geometries, dict[str, NDArray[Any]]]:
        """FIDs, shapes in `crs` (none are read without one), and columns: ids as int64, -1 where there is none."""
        meta, ids, wkb, values = pyogrio.raw.read(
            self._path, layer=layer, columns=list(columns), read_geometry=crs is not None, return_fids=True
        )
        found = dict(zip(meta["fields"], values, strict=True))
        if missing := [name for name in columns if name not in found]:
            raise SampleError("bad_map", f"{self._path}: layer {layer} lacks {', '.join(missing)}")
        out = {name: _ids(v) if name.endswith("_fid") else v.astype(np.float64) for name, v in found.items()}
        if crs is None:
            return ids, np.empty(0, dtype=object), out
        return ids, _projected(shapely.from_wkb(wkb), pyproj.CRS.from_user_input(meta["crs"]), crs), out


def find_map(root: Path, location: str) -> Path:
    """The file of a location.

    Raises:
        WeightsError: no index in `root`, the location is not in it, or its file is not there.
    """
    index = root / INDEX
    try:
        versions = json.loads(index.read_text())
        path = root / location / str(versions[location]["version"]) / "map.gpkg"
    except FileNotFoundError:
        raise WeightsError(f"no maps at {root}: expected {INDEX} and a folder for each location there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index}: should tell the version of {location}: {type(error).__name__} {error}") from None
    if not path.is_file():
        raise WeightsError(f"no map of {location} at {path}")
    return path


def load_map(path: Path) -> NuplanMap:
    """The map in that file, read once a process until the file changes.

    Raises:
        SampleError: code ``bad_map``.
    """
    stat = path.stat()
    return _load(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: Path, size: int, mtime_ns: int) -> NuplanMap:
    return NuplanMap(path)


def _projected(shapes: Geometries, source: pyproj.CRS, target: pyproj.CRS) -> Geometries:
    """`shapes` in the other coordinate system, without heights."""
    shapes = shapely.force_2d(shapes)
    if not source.is_exact_same(target):
        move = pyproj.Transformer.from_crs(source, target, always_xy=True)
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(move.transform(xy[:, 0], xy[:, 1])))
    return np.asarray(shapes, dtype=object)


def _ids(values: NDArray[Any]) -> NDArray[np.int64]:
    """Ids, which stand as integers, as floats (NaN where there is none) or as text."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    known = np.array([np.nan if v is None or v == "" else float(v) for v in values.tolist()], dtype=np.float64)
    return np.where(np.isnan(known), -1, np.nan_to_num(known)).astype(np.int64)


def _grouped(keys: NDArray[np.int64], ids: NDArray[np.int64]) -> dict[int, list[int]]:
    out: defaultdict[int, list[int]] = defaultdict(list)
    for key, i in zip(keys.tolist(), ids.tolist(), strict=True):
        out[key].append(i)
    return dict(out)


def _lanes(ids: NDArray[np.int64], blocks: NDArray[np.int64], limits: Float64, *, connector: bool) -> dict[int, Lane]:
    rows: Iterable[tuple[int, int, float]] = zip(ids.tolist(), blocks.tolist(), limits.tolist(), strict=True)
    return {i: Lane(i, connector, block, None if limit != limit else limit) for i, block, limit in rows}


def _name(lane: Lane) -> str:
    return f"lane connector {lane.id}" if lane.connector else f"lane {lane.id}"
