"""What PDM-Closed expects of the traffic: everyone goes on at the velocity of now.

It looks no farther than the map's radius, and at no more than the nearest so many of each class. What touches the ego
at t0 is ignored, as is a red light whose area holds the whole ego. Agents are moved along their *boxes*, forwards or
backwards, whichever is nearer to their velocity. The forecast is known every 0.2 s and held in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from scoring.context import AGENT_STEPS, RewardContext
from scoring.devkit.frames import local_polygons
from scoring.vehicle import STEPS
from shards_schema.poses import Float64, to_local
from teachers.pdm.observation import MOVING, STOPPED_MPS, Objects, objects, red_connectors
from teachers.pdm.scene_context import Prepared, box_outlines, ego_centre, ego_outlines

EVERY = 2
"""Steps of 0.1 s between two forecasts."""

_STEP_S = 0.1
_NEAREST = {0: 50, 1: 25, 2: 10}
"""By class: vehicles, pedestrians, bicycles."""

_NEAREST_STATIC = 50
_NODE_CAPACITY = 10


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """K obstacles: static objects, then agents by class, then red lights.

    Attributes:
        pose: float64 [N, 3], global, of the N objects among them, now.
        size: float64 [N, 2].
        shift: float64 [N, 2], metres a second.
        speed: float64 [K], m/s along the box's heading; 0 for static objects and lights.
        heading: float64 [K]; 0 for lights.
        moving: bool [N].
        stopped: bool [N].
        lights: R areas.
        ignored: bool [K].
    """

    pose: Float64
    size: Float64
    shift: Float64
    speed: Float64
    heading: Float64
    moving: NDArray[np.bool_]
    stopped: NDArray[np.bool_]
    lights: NDArray[np.object_]
    ignored: NDArray[np.bool_]

    def obstacles(self, step: int) -> Obstacles:
        """Where they are at a 10 Hz step."""
        outlines = np.concatenate((_outlines(self, step), self.lights))
        return Obstacles(outlines, shapely.STRtree(outlines, _NODE_CAPACITY), self.ignored)

    def context(self, base: RewardContext, origin: Float64) -> RewardContext:
        """`base` with this forecast in the place of what really happened."""
        kept = ~self.ignored[: len(self.pose)]
        steps = np.arange(AGENT_STEPS[base.version]) // EVERY * EVERY * _STEP_S
        pose = np.repeat(self.pose[:, None], len(steps), axis=1)
        pose[..., :2] += steps[None, :, None] * self.shift[:, None]
        lights = list(self.lights) if base.version == "v2" else []
        return replace(
            base,
            past_states=base.past_states[:0],
            agents_pose=to_local(pose[kept], origin),
            agents_valid=np.ones(pose[kept].shape[:2], dtype=np.bool_),
            agents_size=self.size[kept],
            agents_is_agent=self.moving[kept],
            agents_stopped=self.stopped[kept],
            light_polygons=local_polygons(lights, origin),
            light_active=np.ones((len(lights), STEPS), dtype=np.bool_),
            human_poses=np.zeros((0, 3)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Obstacles:
    """The K obstacles of a `Forecast` at one step.

    Attributes:
        outlines: polygons [K].
    """

    outlines: NDArray[np.object_]
    tree: shapely.STRtree
    ignored: NDArray[np.bool_]

    def meeting(self, area: shapely.Geometry) -> NDArray[np.int64]:
        """Places of those that touch `area` and are not ignored, in the order in which ties are decided."""
        places = self.tree.query(area, predicate="intersects")
        return np.asarray(places[~self.ignored[places]], dtype=np.int64)


def forecast(prepared: Prepared) -> Forecast:
    """Of the current frame of a scene."""
    frame = prepared.scene.current
    now = objects(frame)
    places = _nearest(now, ego_centre(frame.ego_pose), prepared.radius)
    heading, velocity = now.pose[places, 2], now.velocity[places]
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    backwards = np.cos(heading - np.arctan2(velocity[:, 1], velocity[:, 0])) <= 0
    course = np.where(backwards, heading + np.pi, heading)
    red = [prepared.route.lanes[i].polygon for i in red_connectors(frame, prepared.route)]
    lights = np.empty(len(red), dtype=object)
    lights[:] = red
    moving = np.isin(now.kind[places], list(MOVING))
    none = np.zeros(len(red))
    found = Forecast(
        pose=now.pose[places],
        size=now.size[places],
        shift=np.column_stack((np.cos(course), np.sin(course))) * speed[:, None],
        speed=np.concatenate((speed, none)),
        heading=np.concatenate((heading, none)),
        moving=moving,
        stopped=~moving | (speed <= STOPPED_MPS),
        lights=lights,
        ignored=np.zeros(len(places) + len(red), dtype=np.bool_),
    )
    ego = ego_outlines(frame.ego_pose[None])[0]
    touched = np.concatenate((shapely.intersects(_outlines(found, 0), ego), shapely.within(ego, lights)))
    return replace(found, ignored=touched.astype(np.bool_))


def _nearest(now: Objects, centre: Float64, radius: float) -> NDArray[np.int64]:
    """Places of the objects that count: static ones, then each class of agents, nearest first."""
    distance = np.sqrt(((now.pose[:, :2] - centre) ** 2).sum(axis=1))
    # An agent of unknown velocity has no place in the future, and upstream none at t0 either.
    near = (distance <= radius) & np.isfinite(now.velocity).all(axis=1)
    groups = [(~np.isin(now.kind, list(MOVING)), _NEAREST_STATIC)]
    groups += [(now.kind == kind, count) for kind, count in _NEAREST.items()]
    chosen = []
    for group, count in groups:
        members = np.flatnonzero(near & group)
        chosen.append(members[np.argsort(distance[members])][:count])
    return np.concatenate(chosen)


def _outlines(found: Forecast, step: int) -> NDArray[np.object_]:
    axis = np.column_stack((np.cos(found.pose[:, 2]), np.sin(found.pose[:, 2])))
    centre = found.pose[:, :2] + step // EVERY * EVERY * _STEP_S * found.shift
    return box_outlines(centre, axis, found.size / 2.0)
