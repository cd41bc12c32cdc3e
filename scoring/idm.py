"""Vehicles that react to the ego: NAVSIM's traffic of the two-stage run (``navsim_IDM_traffic_agents``), in arrays.

Each vehicle that stands on a lane when the scene begins follows the middle of that lane, and of that alone, by the
intelligent driver model; others stay where they are or are gone, and what is no vehicle is replayed from the log. As in
the devkit, and as one might not expect: the ego's outline is put with its centre on the rear axle; a vehicle answers to
the ego of one step before; it brakes for the end of its lane; a lane ends at its last point but one.

Legend: N agents of a context, K vehicles that are there at t0, in the order of the context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import shapely

from scoring.context import RewardContext
from scoring.traffic import Seen, Traffic
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, REAR_AXLE_TO_CENTRE, STEPS
from shards_schema.errors import SampleError
from shards_schema.poses import Float64

TARGET_MPS: Final = 10.0
MIN_GAP_M: Final = 1.0
HEADWAY_S: Final = 1.5
ACCELERATION: Final = 1.0
DECELERATION: Final = 2.0
SNAP_M: Final = 3.0
RADIUS_M: Final = 100.0
_STANDING_MPS: Final = 0.1
_DT: Final = 0.1
_TOLERANCE: Final = 1e-5
_EGO: Final = -1


def react(context: RewardContext, states: Float64) -> RewardContext:
    """The context with the traffic that answers to an ego that drives `states`.

    Args:
        context: v2, with `traffic`; as replayed.
        states: float64 [41, 11], simulated, in the context's frame.

    Returns:
        the same with other agents; its `pdm_progress` and `human_zero` are still those of the replay.

    Raises:
        SampleError: code ``no_traffic``, the context has none.
    """
    traffic = context.traffic
    if traffic is None:
        raise SampleError(
            "no_traffic", f"scene {context.token}: no rails for reactive traffic; see teachers.pdm.reactive"
        )
    pose, valid = context.agents_pose.astype(np.float64), context.agents_valid.copy()
    valid[traffic.seen == Seen.VEHICLE_LATER] = False
    valid[traffic.seen == Seen.OTHER_LATER, 0] = False
    now = np.flatnonzero(traffic.seen == Seen.VEHICLE_NOW)
    valid[now, 1:] = False
    size = context.agents_size[now].astype(np.float64)
    for step, places in enumerate(_drive(traffic, pose[now, 0], size, context.ego_state, states), start=1):
        for k, place in places:
            pose[now[k], step], valid[now[k], step] = place, True
    pose[~valid] = 0.0
    return replace(context, agents_pose=pose, agents_valid=valid, replayed=False)


@dataclass(slots=True)
class _Rider:
    """A vehicle on its lane. `path` is float64 [P, 3] poses with unwrapped headings, `along` [P] metres of them."""

    path: Float64
    along: Float64
    length: float
    width: float
    target: float
    progress: float
    speed: float

    def clamped(self, progress: float) -> float:
        return max(float(self.along[0]), min(progress, float(self.along[-1])))

    def pose(self, progress: float) -> Float64:
        return np.array([np.interp(progress, self.along, column) for column in self.path.T])

    @property
    def place(self) -> Float64:
        """Where it is, heading wrapped."""
        x, y, heading = self.pose(self.clamped(self.progress))
        return np.array([x, y, (heading + math.pi) % (2 * math.pi) - math.pi])

    def ahead(self) -> Float64:
        """What it still has to go, [P', 2]."""
        here = self.clamped(self.progress)
        rest = np.flatnonzero(self.along > here)
        if not len(rest):
            return self.path[-2:, :2]
        return np.concatenate((self.pose(here)[None], self.path[rest[0] :]))[:, :2]

    def claimed(self) -> shapely.Geometry:
        """Itself and the way that it will be on within the headway."""
        start = self.clamped(self.progress - self.length / 2)
        end = self.clamped(self.progress + self.length / 2 + self.speed * HEADWAY_S)
        front, tail = np.flatnonzero(self.along > start), np.flatnonzero(self.along < end)
        if not len(front):
            way = self.path[-2:]
        elif not len(tail):
            way = self.path[:2]
        else:
            way = np.concatenate((self.pose(start)[None], self.path[front[0] : tail[-1] + 1], self.pose(end)[None]))
        corridor = shapely.LineString(way[:, :2]).buffer(self.width / 2, cap_style="flat")
        return shapely.union_all([corridor, outline(self.place, self.length, self.width)])

    def go(self, gap: float, lead_speed: float, lead_rear: float) -> None:
        """One step of the model behind something `gap` metres ahead."""
        wish = (
            MIN_GAP_M
            + self.speed * HEADWAY_S
            + self.speed * (self.speed - lead_speed) / (2 * math.sqrt(ACCELERATION * DECELERATION))
        )
        room = max(gap - lead_rear, MIN_GAP_M)
        rate = ACCELERATION * (1 - (self.speed / self.target) ** 4 - (wish / room) ** 2)
        self.progress += _DT * self.speed
        self.speed = max(self.speed + _DT * min(max(-DECELERATION, rate), ACCELERATION), 0.0)


def _drive(
    traffic: Traffic, start: Float64, size: Float64, ego: Float64, states: Float64
) -> list[list[tuple[int, Float64]]]:
    """For each step from the first on: which of K vehicles are there, and where."""
    riders, occupied = _riders(traffic, size, ego)
    outlines = [outline(p, *s) for p, s in zip(start, size, strict=True)]
    out = []
    for step in range(1, STEPS):
        state = states[step - 1]
        _propagate(riders, occupied, state)
        places = [(k, rider.place) for k, rider in riders.items()]
        taken = [outline(place, riders[k].length, riders[k].width) for k, place in places]
        for k in range(len(start)):
            if k in riders or any(outlines[k].intersects(other) for other in taken):
                continue
            parked = traffic.speed[k] < _STANDING_MPS and not traffic.in_lane[k]
            beside = traffic.rail(k) is not None and traffic.offset[k] > SNAP_M
            if parked or beside:
                places.append((k, start[k]))
                taken.append(outlines[k])
        out.append(places)
    return out


def _riders(traffic: Traffic, size: Float64, ego: Float64) -> tuple[dict[int, _Rider], dict[int, shapely.Geometry]]:
    """The vehicles that can be put on a lane, and their outlines there; one that would overlap is left out."""
    heading = np.array([math.cos(ego[2]), math.sin(ego[2])])
    centre = np.array([*(ego[:2] + REAR_AXLE_TO_CENTRE * heading), ego[2]])
    taken = [outline(centre, 2 * HALF_LENGTH, 2 * HALF_WIDTH)]
    riders: dict[int, _Rider] = {}
    occupied: dict[int, shapely.Geometry] = {}
    target = TARGET_MPS
    for k in range(len(traffic.speed)):
        rail = traffic.rail(k)
        if rail is None or traffic.offset[k] > SNAP_M:
            continue
        box = outline(traffic.nearest[k], *size[k])
        if any(box.intersects(other) for other in taken):
            continue
        path, along = _path(rail)
        if len(path) < 2:
            continue
        taken.append(box)
        occupied[k] = box
        target = float(traffic.limit[k]) or target
        riders[k] = _Rider(
            path,
            along,
            float(size[k, 0]),
            float(size[k, 1]),
            target,
            float(traffic.progress[k]),
            float(traffic.speed[k]),
        )
    return riders, occupied


def _path(rail: Float64) -> tuple[Float64, Float64]:
    """A lane's middle as the devkit interpolates it: without points that repeat, and without the last."""
    step = np.linalg.norm(np.diff(rail[:, :2], axis=0), axis=1)
    along = np.concatenate(([0.0], np.cumsum(step)))[:-1]
    keep = ~np.isclose(step, 0.0)
    path = rail[:-1][keep].copy()
    path[:, 2] = np.unwrap(path[:, 2])
    return path, along[keep]


def _propagate(riders: dict[int, _Rider], occupied: dict[int, shapely.Geometry], state: Float64) -> None:
    """One step of all vehicles, one after another; each sees where those before it will be."""
    occupied[_EGO] = outline(state[:3], 2 * HALF_LENGTH, 2 * HALF_WIDTH)
    for k in [k for k, rider in riders.items() if np.hypot(*(rider.place[:2] - state[:2])) > RADIUS_M]:
        del riders[k], occupied[k]
    for k, rider in riders.items():
        way = shapely.LineString(rider.ahead()).buffer(rider.width / 2, cap_style="flat")
        names, shapes = list(occupied), np.array(list(occupied.values()), dtype=object)
        found = [int(i) for i in shapely.STRtree(shapes).query(way) if shapes[i].intersects(way)]
        others = [i for i in found if names[i] != k]
        if others:
            own = occupied[k]
            nearest = others[int(shapely.STRtree(shapes[others]).nearest(own))]
            gap, name = float(shapely.distance(own, shapes[nearest])), names[nearest]
            if name == _EGO:
                speed, turned = float(np.hypot(state[3], state[4])), state[2] - rider.place[2]
            else:
                speed, turned = riders[name].speed, riders[name].place[2] - rider.place[2]
            rider.go(gap, speed * math.cos(turned), 0.0)
        else:
            rider.go(float(rider.along[-1]) - rider.progress, 0.0, rider.length / 2)
        occupied[k] = shapely.simplify(rider.claimed(), _TOLERANCE)


def outline(pose: Float64, length: float, width: float) -> Any:
    """The polygon of a box, its centre at `pose` [3]."""
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    ahead, left = np.array([cos, sin]) * (length / 2), np.array([-sin, cos]) * (width / 2)
    return shapely.Polygon(pose[:2] + np.stack((ahead + left, left - ahead, -ahead - left, ahead - left)))
