"""Which vehicles of a scene stand on which lane, as the devkit's IDM agents are put on the map's rails."""

from __future__ import annotations

import math

import numpy as np
import shapely

from maps.lanes import Lane
from maps.nuplan_map import NuplanMap
from scoring.traffic import Seen, Traffic
from shards_schema.poses import Float64, to_local
from shards_schema.records import Scene
from teachers.pdm.observation import FRAMES, objects, ordered_tracks

_VEHICLE = 0
_AHEAD_M = 0.5
"""The heading of a lane at a place is that to the point so far on."""


def traffic(scene: Scene, world: NuplanMap) -> Traffic:
    """What reactive traffic needs of a scene, in the order of the agents of its v2 context.

    Raises:
        SampleError: code ``bad_map``, a lane is broken; those of `observation.objects`.
    """
    frames = [objects(scene.at(step)) for step in range(FRAMES["v2"])]
    now = frames[0]
    there = {token: n for n, token in enumerate(now.tracks)}
    seen, cars = [], []
    for token, kind in ordered_tracks(frames, "v2"):
        vehicle = kind == _VEHICLE
        if token in there:
            seen.append(Seen.VEHICLE_NOW if vehicle else Seen.OTHER_NOW)
            cars += [there[token]] if vehicle else []
        else:
            seen.append(Seen.VEHICLE_LATER if vehicle else Seen.OTHER_LATER)
    origin = scene.current.ego_pose
    ego_speed = float(np.hypot(*scene.current.velocity))
    rails, rows = [], []
    for n in cars:
        pose = now.pose[n]
        point = shapely.Point(pose[0], pose[1])
        lane, inside = _lane(world, point, pose[2])
        speed = float(np.hypot(*now.velocity[n]))
        row = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        if lane is not None:
            on, along = _nearest(lane, point)
            row = [*to_local(on, origin), math.hypot(on[0] - pose[0], on[1] - pose[1]), along, lane.speed_limit or 0.0]
        rails.append(np.zeros((0, 3)) if lane is None else to_local(lane.centre, origin))
        rows.append([*row, ego_speed if math.isnan(speed) else speed, float(inside)])
    table = np.array(rows, dtype=np.float64).reshape(-1, 8)
    return Traffic(
        seen=np.array(seen, dtype=np.int64),
        speed=table[:, 6],
        in_lane=table[:, 7] > 0,
        nearest=table[:, :3],
        offset=table[:, 3],
        progress=table[:, 4],
        limit=table[:, 5],
        rails_pose=np.concatenate([*rails, np.zeros((0, 3))]),
        rails=np.concatenate(([0], np.cumsum([len(rail) for rail in rails]))).astype(np.int64),
    )


def _lane(world: NuplanMap, point: shapely.Point, heading: float) -> tuple[Lane | None, bool]:
    """The lane of a vehicle, the one whose direction differs least (not wrapped, as the devkit has it), and whether its
    centre lies in a lane or an intersection at all.
    """
    lanes = world.lanes.holding(point)
    inside = bool(lanes) or world.intersections.holds(point)
    if not lanes and inside:
        lanes = world.connectors.holding(point)
    turned = [abs(float(_nearest(lane, point)[0][2] - heading)) for lane in lanes]
    return (lanes[int(np.argmin(turned))] if lanes else None), inside


def _nearest(lane: Lane, point: shapely.Point) -> tuple[Float64, float]:
    """The nearest pose [3] on the middle of a lane, global, and the metres along it to there."""
    line = lane.baseline
    along = float(line.project(point))
    here, there = line.interpolate(along), line.interpolate(along + _AHEAD_M)
    if here == there:
        here, there = line.interpolate(along - _AHEAD_M), here
        return np.array([there.x, there.y, math.atan2(there.y - here.y, there.x - here.x)]), along
    return np.array([here.x, here.y, math.atan2(there.y - here.y, there.x - here.x)]), along
