"""Scene records and a map in, the reward context of each version out, without PDM-Closed's path.

What the versions share (route, lanes, polygons, centerline) is found once. Everything here can fail on a scene, which
is then quarantined; what comes after (`closed`) cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from maps.lanes import Lane
from maps.nuplan_map import NuplanMap
from maps.ways import centerline
from scoring.context import FILTERED, Polygons, RewardContext, Version
from scoring.devkit.frames import local_polygons
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, REAR_AXLE_TO_CENTRE, STATE_SIZE, STEPS
from shards_schema.errors import SampleError
from shards_schema.poses import Float64, to_local
from shards_schema.records import Scene
from teachers.pdm.drivable_map import RADIUS_M, DrivableMap, drivable_map
from teachers.pdm.ego import ego_state, human_poses, past_states
from teachers.pdm.observation import agents, red_lights
from teachers.pdm.rails import traffic
from teachers.pdm.route import Route, corrected_route, logged_route, starting_lane

FRAME_SECONDS = 0.5
"""NAVSIM's rate."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A scene on its map.

    Attributes:
        scene: the records.
        radius: metres around the ego that count.
        route: corrected.
        lane: the one that the ego starts in.
        centerline: float64 [P, 3], global poses.
        contexts: one a version, without the path of PDM-Closed (`pdm_poses` is 0) and what follows from it.
    """

    scene: Scene
    radius: float
    route: Route
    lane: Lane
    centerline: Float64
    contexts: tuple[RewardContext, ...]


def prepare(
    scene: Scene, world: NuplanMap, versions: Sequence[Version], radius: float = RADIUS_M, *, reactive: bool = False
) -> Prepared:
    """Find a scene's route, map, agents and lights.

    Raises:
        SampleError: codes ``wrong_rate``, ``no_route``, ``route_not_on_map``, ``bad_map``, ``missing_frame``,
            ``no_annotations``, ``unknown_class``, ``bad_context``; each names the scene.
    """
    try:
        found = _prepare(scene, world, versions, radius)
        if not reactive:
            return found
        contexts = [replace(c, traffic=traffic(scene, world)) if c.version == "v2" else c for c in found.contexts]
        return replace(found, contexts=tuple(contexts))
    except SampleError as error:
        raise SampleError(error.code, f"scene {scene.token} of log {scene.log}: {error.reason}") from error
    except shapely.errors.ShapelyError as error:
        raise SampleError(
            "bad_map", f"scene {scene.token} of log {scene.log}: a polygon of the map is broken: {error}"
        ) from error


def _prepare(scene: Scene, world: NuplanMap, versions: Sequence[Version], radius: float) -> Prepared:
    if abs(scene.period - FRAME_SECONDS) > 0.1:
        raise SampleError(
            "wrong_rate",
            f"frames are {scene.period:.2f} s apart; NAVSIM's score wants {FRAME_SECONDS} s (source.rate: 2)",
        )
    pose = scene.current.ego_pose
    centre = ego_centre(pose)
    logged = logged_route(world.roads, scene.current.roadblock_ids)
    route = corrected_route(world.roads, logged, pose)
    around = drivable_map(world, centre, radius)
    lane = starting_lane(route, around.holding(pose[0], pose[1]), pose, centre, ego_outlines(pose[None])[0])
    line = centerline(route.blocks, route.lanes, lane)
    shared = _shared(scene, around, route, line)
    contexts = tuple(_context(scene, logged, version, shared) for version in versions)
    return Prepared(scene, radius, route, lane, line, contexts)


def ego_centre(pose: Float64) -> Float64:
    """The centre [2] of an ego whose rear axle is at `pose` [3]."""
    ahead = REAR_AXLE_TO_CENTRE
    return np.array([pose[0] + ahead * math.cos(pose[2]), pose[1] + ahead * math.sin(pose[2])])


def ego_outlines(poses: Float64) -> NDArray[np.object_]:
    """Polygons [K] of the ego with its rear axle at poses [K, 3]."""
    axis = np.stack((np.cos(poses[:, 2]), np.sin(poses[:, 2])), axis=-1)
    return box_outlines(poses[:, :2] + REAR_AXLE_TO_CENTRE * axis, axis, np.array([[HALF_LENGTH, HALF_WIDTH]]))


def box_outlines(centre: Float64, axis: Float64, half: Float64) -> NDArray[np.object_]:
    """Polygons [K] of boxes: centres [K, 2], unit vectors along them [K, 2], half length and width [K, 2]."""
    ahead, left = half[:, :1] * axis, half[:, 1:] * np.stack((-axis[:, 1], axis[:, 0]), axis=-1)
    corners = np.stack((ahead + left, left - ahead, -ahead - left, ahead - left), axis=1)
    return np.asarray(shapely.polygons(centre[:, None] + corners), dtype=object)


def _shared(scene: Scene, around: DrivableMap, route: Route, line: Float64) -> dict[str, Any]:
    pose = scene.current.ego_pose
    return {
        "token": scene.token,
        "timestamp_us": scene.timestamp,
        "ego_state": ego_state(scene.current, pose),
        "map_polygons": local_polygons(list(around.geometries), pose),
        "map_layer": around.layers,
        "map_on_route": np.array([int(i) in route.lanes for i in around.ids], dtype=np.bool_),
        "centerline": to_local(line, pose)[:, :2],
        "pdm_poses": np.zeros((STEPS, 3)),
        "human_zero": np.zeros(len(FILTERED), dtype=np.bool_),
    }


def _context(scene: Scene, logged: Route, version: Version, shared: dict[str, Any]) -> RewardContext:
    known = {**shared, **agents(scene, version)}
    if version == "v1":
        lights, active, past, human = Polygons.of([]), np.zeros((0, STEPS), np.bool_), np.zeros((0, STATE_SIZE)), None
    else:
        areas, active = red_lights(scene, logged)
        lights, past, human = local_polygons(areas, scene.current.ego_pose), past_states(scene), human_poses(scene)
    return RewardContext(
        version=version,
        past_states=past,
        light_polygons=lights,
        light_active=active,
        human_poses=np.zeros((0, 3)) if human is None else human,
        **known,
    )
