"""The lanes of a nuPlan map: area, baseline, speed limit, and what follows.

Names in the file are the devkit's: ``exit_lane_fid`` of a lane connector is the lane that it comes *from* and
``entry_lane_fid`` the one that it leads *to*; a connector's area is in a layer of its own; baselines name their lane in
one of two columns. Links to what the map does not have are dropped. A lane whose area or baseline is missing, or not
one, is refused when it is asked for: one broken lane does not cost the rest of the map.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from maps.geopackage import GeoPackage, Layer, Shapes
from shards_schema.errors import SampleError
from shards_schema.poses import Float64

_ById = defaultdict[int, list[shapely.Geometry]]


@dataclass(frozen=True, eq=False)
class Lane:
    """A lane, or a lane connector (a lane across an intersection).

    Attributes:
        id: its FID; lanes, connectors and blocks of a map share one series.
        connector: whether it is a lane connector.
        block: id of the roadblock (connector) that it belongs to.
        speed_limit: m/s; None where the map knows none.
        file: the map, for messages.
        polygons: its area; one, unless the map is broken.
        baselines: the line along its middle; likewise.
        onward: what one drives to from it, in the order of the file.
    """

    id: int
    connector: bool
    block: int
    speed_limit: float | None
    file: Path = field(repr=False)
    polygons: Sequence[shapely.Geometry] = field(repr=False)
    baselines: Sequence[shapely.Geometry] = field(repr=False)
    onward: list[Lane] = field(default_factory=list, repr=False)

    @property
    def polygon(self) -> shapely.Geometry:
        """Its area.

        Raises:
            SampleError: code ``bad_map``, it has none, or several.
        """
        return self._only(self.polygons, "polygon")

    @property
    def baseline(self) -> shapely.Geometry:
        """The line along its middle, as a LineString.

        Raises:
            SampleError: code ``bad_map``, it has none, or several, or one without length.
        """
        line = self._only(self.baselines, "baseline")
        if line.geom_type != "LineString" or not line.length > 0:
            raise SampleError("bad_map", f"{self.file}: the baseline of {self} is no line, but {line}")
        return line

    @cached_property
    def centre(self) -> Float64:
        """float64 [P, 3], read only: its baseline with the heading from each point to the next, the last repeated.

        Raises:
            SampleError: see `baseline`.
        """
        xy = shapely.get_coordinates(self.baseline)
        step = np.diff(xy, axis=0)
        heading = np.arctan2(step[:, 1], step[:, 0])
        poses = np.column_stack((xy, np.append(heading, heading[-1])))
        poses.setflags(write=False)
        return poses

    def offset(self, pose: Float64) -> tuple[float, float]:
        """Metres from a global pose [3] to the nearest point of `centre`, and radians, not negative, between the two
        headings.
        """
        distances = np.sqrt(((self.centre[:, :2] - pose[:2]) ** 2).sum(axis=1))
        nearest = int(np.argmin(distances))
        turned = self.centre[nearest, 2] - pose[2]
        return float(distances[nearest]), abs(math.atan2(math.sin(turned), math.cos(turned)))

    def _only(self, found: Sequence[shapely.Geometry], what: str) -> shapely.Geometry:
        if len(found) != 1:
            raise SampleError("bad_map", f"{self.file}: {self} should have one {what}, has {len(found)}")
        return found[0]

    def __str__(self) -> str:
        return f"lane connector {self.id}" if self.connector else f"lane {self.id}"


@dataclass(frozen=True, eq=False)
class LaneAreas:
    """Lanes by their areas; those without exactly one area are left out.

    Attributes:
        lanes: by id.
    """

    lanes: Sequence[Lane]
    _tree: shapely.STRtree = field(repr=False)

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> LaneAreas:
        """Those of a map."""
        whole = sorted((lane for lane in lanes if len(lane.polygons) == 1), key=lambda lane: lane.id)
        return cls(whole, shapely.STRtree([lane.polygon for lane in whole]))

    def holding(self, point: shapely.Point) -> list[Lane]:
        """Lanes that hold a point within."""
        return [self.lanes[n] for n in sorted(self._tree.query(point, predicate="within").tolist())]


def read_lanes(file: GeoPackage) -> list[Lane]:
    """Lanes, then lane connectors, linked; each in the order of the file.

    Raises:
        SampleError: code ``bad_map``: a layer or column is missing, or does not hold what it should.
    """
    here = file.layer("lanes_polygons", "lane_group_fid", "speed_limit_mps")
    names = ("lane_group_connector_fid", "exit_lane_fid", "entry_lane_fid", "speed_limit_mps")
    across = file.layer("lane_connectors", *names, shapes=False)
    areas = file.layer("gen_lane_connectors_scaled_width_polygons", "lane_connector_fid")
    lines = file.layer("baseline_paths", "lane_fid", "lane_connector_fid")

    def table(layer: Layer, block_column: str, polygons: _ById, baselines: _ById) -> dict[int, Lane]:
        return {
            i: Lane(i, layer is across, block, None if limit != limit else limit, file.path, polygons[i], baselines[i])
            for i, block, limit in layer.rows(block_column, "speed_limit_mps")
        }

    lanes = table(
        here, "lane_group_fid", _by_id(here.ids, here.shapes), _by_id(lines.columns["lane_fid"], lines.shapes)
    )
    connectors = table(
        across,
        "lane_group_connector_fid",
        _by_id(areas.columns["lane_connector_fid"], areas.shapes),
        _by_id(lines.columns["lane_connector_fid"], lines.shapes),
    )
    for i, before, after in across.rows("exit_lane_fid", "entry_lane_fid"):
        for one, following in ((lanes.get(before), connectors[i]), (connectors[i], lanes.get(after))):
            if one is not None and following is not None:
                one.onward.append(following)
    return [*lanes.values(), *connectors.values()]


def _by_id(ids: NDArray[np.int64], shapes: Shapes) -> _ById:
    out: _ById = defaultdict(list)
    for i, shape in zip(ids.tolist(), shapes, strict=True):
        if shape is not None:  # GDAL has none for a geometry that it cannot read
            out[i].append(shape)
    return out
