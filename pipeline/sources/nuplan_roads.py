"""The road graph of a nuPlan map (a GeoPackage), as far as the driving command needs it (spec/navsim.md 5).

Six layers are read, moved to the metre grid of ``meta.projectedCoordSystem``; rows keep the order of the file, which
decides ties. Lanes and lane connectors share one table of `Lane`s, roadblocks and roadblock connectors one of
`Block`s: in a map their ids never collide. A lane without an area or a baseline is left out. Note the names in the
file: ``exit_lane_fid`` of a connector is the lane that it comes from, ``entry_lane_fid`` the one that it leads to.

`teachers.pdm` reads the same files for more; this room may not import it, nor the other way round.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyogrio.raw
import pyproj
import shapely
from numpy.typing import NDArray

from shards_schema.errors import ConfigError, SampleError
from shards_schema.poses import Float64

INDEX: Final = "nuplan-maps-v1.0.json"
"""Beside the locations' folders: location -> the version of its map."""
NEAR_M: Final = 1.0
"""Half of the square within which a block is where one is."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A lane or lane connector.

    Attributes:
        id: its FID.
        block: FID of the roadblock (connector) that it belongs to.
        polygon: its area.
        centre: float64 [P, 3], the points of its baseline with the heading to the next one (the last repeats).
        length: of the baseline, metres.
        onward: FIDs of what follows.
    """

    id: int
    block: int
    polygon: shapely.Geometry
    centre: Float64
    length: float
    onward: tuple[int, ...]


@dataclass(slots=True)
class Block:
    """A roadblock or roadblock connector: its lanes, and the blocks before and after it, by FID."""

    lanes: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Areas:
    ids: list[int]
    shapes: NDArray[np.object_]

    def around(self, point: shapely.Point) -> list[int]:
        """FIDs of what meets the square around `point`."""
        square = shapely.box(point.x - NEAR_M, point.y - NEAR_M, point.x + NEAR_M, point.y + NEAR_M)
        return [self.ids[n] for n in np.flatnonzero(shapely.intersects(self.shapes, square))]

    def nearest(self, point: shapely.Point) -> list[int]:
        return [self.ids[int(np.argmin(shapely.distance(self.shapes, point)))]] if self.ids else []


class Roads:
    """A map.

    Attributes:
        lanes: by FID.
        blocks: by FID.
    """

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            SampleError: code ``bad_map``: a layer or column is missing, or does not hold what it should.
        """
        try:
            self._read(path)
        except Exception as error:  # GDAL, PROJ and GEOS each have error classes of their own
            raise SampleError("bad_map", f"{path}: not a nuPlan map: {type(error).__name__}: {error}") from error

    def blocks_at(self, x: float, y: float) -> list[int]:
        """Blocks at a place; where there are none, the nearest of each kind."""
        point = shapely.Point(x, y)
        here = [i for layer in self._areas for i in layer.around(point)]
        return here or [i for layer in self._areas for i in layer.nearest(point)]

    def _read(self, path: Path) -> None:
        meta = _Layer(path, "meta", ("key", "value"), None)
        pairs = dict(zip(meta.columns["key"].tolist(), meta.columns["value"].tolist(), strict=True))
        crs = pyproj.CRS.from_user_input(pairs["projectedCoordSystem"])
        blocks = _Layer(path, "lane_groups_polygons", (), crs)
        links = _Layer(path, "lane_group_connectors", ("from_lane_group_fid", "to_lane_group_fid"), crs)
        lanes = _Layer(path, "lanes_polygons", ("lane_group_fid",), crs)
        turns = _Layer(path, "lane_connectors", ("lane_group_connector_fid", "exit_lane_fid", "entry_lane_fid"), None)
        areas = _Layer(path, "gen_lane_connectors_scaled_width_polygons", ("lane_connector_fid",), crs)
        lines = _Layer(path, "baseline_paths", ("lane_fid", "lane_connector_fid"), crs)

        self.blocks = {i: Block() for i in (*blocks.ids, *links.ids)}
        self._areas = (_Areas(blocks.ids, blocks.shapes), _Areas(links.ids, links.shapes))
        for link, before, after in links.rows("from_lane_group_fid", "to_lane_group_fid"):
            for here, there in ((before, link), (link, after)):
                if here in self.blocks and there in self.blocks:
                    self.blocks[here].after.append(there)
                    self.blocks[there].before.append(here)
        onward: defaultdict[int, list[int]] = defaultdict(list)
        known = set(lanes.ids)
        for turn, _, before, after in turns.rows("lane_group_connector_fid", "exit_lane_fid", "entry_lane_fid"):
            onward[before].append(turn)
            onward[turn] += [after] if after in known else []
        polygons = dict(zip((i for _, i in areas.rows("lane_connector_fid")), areas.shapes, strict=True))
        polygons |= dict(zip(lanes.ids, lanes.shapes, strict=True))
        baselines: dict[int, shapely.Geometry] = {}
        for (_, lane, turn), line in zip(lines.rows("lane_fid", "lane_connector_fid"), lines.shapes, strict=True):
            baselines[turn if lane < 0 else lane] = line
        self.lanes: dict[int, Lane] = {}
        for layer, column in ((lanes, "lane_group_fid"), (turns, "lane_group_connector_fid")):
            for i, block in layer.rows(column):
                line = baselines.get(i)
                if line is None or i not in polygons:
                    continue
                self.lanes[i] = Lane(i, block, polygons[i], _headed(line), float(line.length), tuple(onward[i]))
                if block in self.blocks:
                    self.blocks[block].lanes.append(i)


class _Layer:
    """Rows of one layer: `ids`, `shapes` in `crs` (none are read without one), `columns`."""

    def __init__(self, path: Path, name: str, columns: tuple[str, ...], crs: pyproj.CRS | None) -> None:
        meta, ids, wkb, values = pyogrio.raw.read(
            path, layer=name, columns=list(columns), read_geometry=crs is not None, return_fids=True
        )
        self.columns = dict(zip(meta["fields"], values, strict=True))
        if missing := [column for column in columns if column not in self.columns]:
            raise ValueError(f"layer {name} lacks {', '.join(missing)}")
        self.ids: list[int] = ids.tolist()
        self.shapes: NDArray[np.object_] = np.empty(0, dtype=object)
        if crs is not None:
            self.shapes = shapely.force_2d(shapely.from_wkb(wkb))
            source = pyproj.CRS.from_user_input(meta["crs"])
            if not source.is_exact_same(crs):
                move = pyproj.Transformer.from_crs(source, crs, always_xy=True)
                self.shapes = shapely.transform(self.shapes, lambda xy: np.column_stack(move.transform(*xy.T)))

    def rows(self, *columns: str) -> list[tuple[int, ...]]:
        """FID and ids of each row; -1 where there is none. They stand as integers, as floats with NaN, or as text."""
        return list(zip(self.ids, *(map(_number, self.columns[name].tolist()) for name in columns), strict=True))


def _number(value: Any) -> int:
    return -1 if value is None or value == "" or value != value else int(float(value))


def _headed(line: shapely.Geometry) -> Float64:
    xy = shapely.get_coordinates(line)
    step = np.diff(xy, axis=0)
    heading = np.arctan2(step[:, 1], step[:, 0])
    return np.column_stack((xy, np.append(heading, heading[-1])))


def map_path(root: str, location: str) -> Path:
    """The file of a location below the folder of all maps (NUPLAN_MAPS_ROOT).

    Raises:
        ConfigError: it is not there.
    """
    index = Path(root) / INDEX
    try:
        path = index.parent / location / str(json.loads(index.read_text())[location]["version"]) / "map.gpkg"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"source.maps_root: {index} should tell the version of the map of {location}, "
            f"found {type(error).__name__}: {error}. Set maps_root to nuPlan's maps folder (NUPLAN_MAPS_ROOT)"
        ) from None
    if not path.is_file():
        raise ConfigError(f"source.maps_root: no map of {location} at {path}")
    return path


@functools.lru_cache(maxsize=4)
def load_roads(path: Path) -> Roads:
    """The map in that file, read once a process.

    Raises:
        SampleError: code ``bad_map``.
    """
    return Roads(path)
