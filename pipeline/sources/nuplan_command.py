"""The driving command as OpenScene made it of a log: left, straight, right or unknown.

    route, made whole -> the lane one is in -> the lanes ahead -> 20 m on along their middle: how far to the side?

This is not the route correction of PDM-Closed (`teachers.pdm.route`), though they share steps (`maps.ways`): a route
that the ego is not on is mended backwards only, or the command is unknown; loops are not cut; the lane is the first on
the route that holds the rear axle, whatever its heading. A route that names a block which the map lacks stopped
OpenScene; here it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import shapely

from maps.lanes import Lane
from maps.roads import Roads
from maps.ways import begun_at, block_at, centerline, without_gaps
from shards_schema.poses import Float64, to_local
from shards_schema.records import COMMANDS

AHEAD_M: Final = 20.0
SIDEWAYS_M: Final = 2.0
_FIRST_M: Final = 1e-5
"""The nearest to its beginning that one stands on a centerline."""


def driving_command(roads: Roads, pose: Float64, route: Sequence[str]) -> int:
    """Place in `COMMANDS` for a global `pose` [3] of the rear axle and the roadblock ids of the scene's route.

    Raises:
        SampleError: code ``bad_map``, a lane that counts has not one area and one baseline.
    """
    unknown = COMMANDS.index("unknown")
    named = [roads.block(name) for name in route]
    logged = list(dict.fromkeys(block for block in named if block is not None))
    if not named or None in named:
        return unknown
    begun = begun_at(logged, *block_at(roads, pose, logged))
    if begun is None:
        return unknown
    blocks = list(dict.fromkeys(without_gaps(begun)))
    lanes = {lane.id: lane for block in blocks for lane in block.lanes}
    here = _lane_at(lanes, pose)
    if here is None:
        return unknown
    left = float(_further(centerline(blocks, lanes, here), pose)[1])
    return COMMANDS.index("left" if left >= SIDEWAYS_M else "right" if left <= -SIDEWAYS_M else "straight")


def _lane_at(lanes: Mapping[int, Lane], pose: Float64) -> Lane | None:
    """The first lane that holds the rear axle, else the nearest."""
    point = shapely.Point(pose[0], pose[1])
    inside = next((lane for lane in lanes.values() if shapely.contains(lane.polygon, point)), None)
    if inside is not None or not lanes:
        return inside
    return min(lanes.values(), key=lambda lane: float(shapely.distance(lane.polygon, point)))


def _further(line: Float64, pose: Float64) -> Float64:
    """The pose `AHEAD_M` on along `line` [P, 3], in the frame of the place on it nearest to `pose`."""
    along = np.append(0.0, np.hypot(*np.diff(line[:, :2], axis=0).T)).cumsum()
    at = float(shapely.line_locate_point(shapely.linestrings(line[:, :2]), shapely.Point(pose[0], pose[1])))
    places = np.clip([at, at + AHEAD_M], _FIRST_M, along[-1])
    heading = np.unwrap(line[:, 2])
    here, there = np.column_stack([np.interp(places, along, values) for values in (line[:, 0], line[:, 1], heading)])
    return to_local(there, here)
