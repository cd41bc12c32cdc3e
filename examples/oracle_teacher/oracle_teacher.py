"""An oracle: a teacher whose targets are the labels, which is the most that a network could tell of a scene.

What does alignment gain where the teacher is perfect? A column of this one says so before real teachers are run. Three
targets, in the ego's frame now (rear axle, x forward, y left), at some frames from now on:

    grid    cells of a map: who is there, where exactly and how fast; and red lights of the route
    route   what the drive depends on: the nearest vehicle and person on the way, the next red light, the bends
    view    cells of the front image, now: what shows vehicles, people and cyclists, and how near they are

It reads records and nuPlan's map, and no image; the maps are its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from maps.folder import MapFolder
from maps.nuplan_map import load_map
from questions.making.seeing import see
from scoring.context import RewardContext
from shards_schema.errors import SampleError, WeightsError
from shards_schema.poses import to_local
from shards_schema.records import Image, Scene
from shards_schema.specs import TargetSpec
from teachers.base import ImageRequest, Needs, Targets, TeacherInput
from teachers.pdm.observation import CLASSES, FRAMES, objects, ordered_tracks
from teachers.pdm.scene_context import Prepared, prepare
from teachers.registry import parse_config
from teachers.weights import file_digest

REVISION = 1  # raise it whenever the same config and maps give other targets

AGENTS = ("vehicle", "pedestrian", "bicycle")
ROWS, COLS = (0.0, 15.0, 35.0, 70.0), (-12.0, -1.75, 1.75, 5.25, 15.0)  # metres ahead, and to the left: own lane second
FAR = 60.0  # metres along the route; also where nothing stands in the way
BENDS = (10.0, 20.0, 40.0)  # metres ahead at which the route's heading is told
ON_ROUTE, BESIDE = 2.0, 4.0  # metres from its middle: a vehicle that is on it, a person who is or may step on it
VIEW = (3, 4)  # rows and columns of the front image
PERIOD = 5  # steps of 0.1 s in a frame

GRID_CHANNELS = (*AGENTS, "x", "y", "speed x", "speed y", "red light", "its x")
ROUTE_CHANNELS = ("vehicle", "its speed", "person", "aside", "red light", "crossing", *(f"bend {b:g} m" for b in BENDS))
VIEW_CHANNELS = (*AGENTS, "nearness")
EGO_CHANNELS = ("ego x", "ego y", "ego heading")


class OracleConfig(BaseModel):
    """What the column holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "oracle"
    maps_root: str
    """The folder of ``nuplan-maps-v1.0.json`` (NUPLAN_MAPS_ROOT)."""
    steps: tuple[int, ...] = Field(default=(0, 4, 8), min_length=1)
    """Frames from now, 0.5 s each, at which `grid` and `route` are told; 8 at most."""
    channel: str = "CAM_F0"
    """The camera of `view`."""
    ego: bool = False
    """Whether `grid` and `route` also tell where the ego will be at each of the steps: the answer itself."""
    batch_size: int = Field(default=16, ge=1)


def build(config: Mapping[str, Any]) -> Oracle:
    return Oracle(parse_config(OracleConfig, config, "oracle"))


class Oracle:
    """A `teachers.base.Teacher`."""

    random_weights = False

    def __init__(self, config: OracleConfig) -> None:
        self.config, self.name, self.batch_size = config, config.name, config.batch_size
        self._maps = MapFolder(Path(config.maps_root).expanduser(), f"teachers.{config.name}.maps_root", WeightsError)
        self.needs = Needs(first=-3, last=FRAMES["v2"] - 1, rate=2)
        ego, times = EGO_CHANNELS if config.ego else (), len(config.steps)
        grid, route = (*GRID_CHANNELS, *ego), (*ROUTE_CHANNELS, *ego)
        what = {
            "grid": (("time", "row", "col", "grid_channel"), (times, len(ROWS) - 1, len(COLS) - 1, len(grid)), grid),
            "route": (("time", "route_channel"), (times, len(route)), route),
            "view": (("view_row", "view_col", "view_channel"), (*VIEW, len(VIEW_CHANNELS)), VIEW_CHANNELS),
        }
        self.specs = tuple(
            TargetSpec(name=name, dims=dims, shape=shape, dtype="float32", unit="m, m/s, rad, 1", meaning=told)
            for name, (dims, shape, channels) in what.items()
            for told in [f"Labels, not a network's answers. Channels: {', '.join(channels)}."]
        )

    def provenance(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "oracle",
            "revision": REVISION,
            "maps": {location: file_digest(self._maps.file(location)) for location in self._maps.locations()},
            "steps": list(config.steps),
            "channel": config.channel,
            "ego": config.ego,
            "batch_size": config.batch_size,
        }

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """No images; a scene without route, labels or enough future is refused here."""
        self._prepared(scene)
        scene.camera(0, self.config.channel)
        for step in self.config.steps:
            scene.at(step)
        return []

    def preprocess(self, image: Image) -> Image:
        return image

    def load(self, device: str) -> None:
        self._maps.locations()  # a WeightsError where there are none

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [self._targets(item.scene) for item in batch]

    def _prepared(self, scene: Scene) -> Prepared:
        if scene.map_name not in self._maps.locations():
            raise SampleError("no_map", f"scene {scene.token} of log {scene.log}: no map of {scene.map_name!r}")
        return prepare(scene, load_map(self._maps.file(scene.map_name)), ["v2"])

    def _targets(self, scene: Scene) -> Targets:
        prepared = self._prepared(scene)
        (context,) = prepared.contexts
        frames = [objects(scene.at(step)) for step in range(FRAMES["v2"])]
        kinds = np.array([kind for _, kind in ordered_tracks(frames, "v2")], dtype=np.int64)
        way = Way(prepared)
        grid, route = [], []
        for step in self.config.steps:
            seen, where, speed = agents_at(context, PERIOD * step)
            red = red_at(context, PERIOD * step)
            cells, line = grid_of(kinds[seen], where, speed, red), way.told(kinds[seen], where, speed, red)
            if self.config.ego:
                driven = np.vstack((np.zeros((1, 3)), scene.future_trajectory()))[step]
                cells = np.concatenate((cells, np.broadcast_to(driven, (*cells.shape[:2], 3))), axis=-1)
                line = np.concatenate((line, driven))
            grid.append(cells)
            route.append(line)
        told = {"grid": np.stack(grid), "route": np.stack(route), "view": view_of(scene, self.config.channel)}
        return {name: array.astype(np.float32) for name, array in told.items()}


Float64 = NDArray[np.float64]


def agents_at(context: RewardContext, at: int) -> tuple[NDArray[np.bool_], Float64, Float64]:
    """Which agents are there after `at` tenths of a second (bool [N]), where [n, 2] and how fast [n, 2]."""
    last = context.agents_valid.shape[1] - 1
    now, then = min(at, last - 1), min(at, last - 1) + 1
    seen = context.agents_valid[:, at] & context.agents_is_agent
    both = context.agents_valid[:, [now, then]].all(1)
    moved = (context.agents_pose[:, then, :2] - context.agents_pose[:, now, :2]) * 10
    return seen, context.agents_pose[seen, at, :2], np.where(both[:, None], moved, 0.0)[seen]


def red_at(context: RewardContext, at: int) -> Float64:
    """Where the lane connectors of the route begin that are red then, [n, 2]: the corner next to the ego."""
    areas, corners = context.light_polygons, []
    for i in np.flatnonzero(context.light_active[:, at]):
        first, end = areas.rings[areas.polygons[i]], areas.rings[areas.polygons[i + 1]]
        ring = areas.xy[first:end]
        corners.append(ring[np.hypot(*ring.T).argmin()])
    return np.array(corners, dtype=np.float64).reshape(-1, 2)


def grid_of(kinds: NDArray[np.int64], where: Float64, speed: Float64, red: Float64) -> Float64:
    """[row, col, GRID_CHANNELS]; of the agents in a cell, the nearest tells its place and speed."""
    cells = np.zeros((len(ROWS) - 1, len(COLS) - 1, len(GRID_CHANNELS)))

    def cell(point: Float64) -> Float64 | None:
        row, col = np.searchsorted(ROWS, point[0], "right") - 1, np.searchsorted(COLS, point[1], "right") - 1
        inside = 0 <= row < cells.shape[0] and 0 <= col < cells.shape[1]
        return cells[row, col] if inside else None

    for i in np.argsort(-np.hypot(*where.T), kind="stable"):  # the nearest last
        if (found := cell(where[i])) is not None:
            found[AGENTS.index(CLASSES[kinds[i]])] = 1
            found[3:7] = (*where[i], *speed[i])
    for point in red:
        if (found := cell(point)) is not None:
            found[7:9] = (1, point[0])
    return cells


class Way:
    """The middle of the lanes ahead, and what stands on it; distances are along it, from the ego."""

    def __init__(self, prepared: Prepared) -> None:
        (context,), pose = prepared.contexts, prepared.scene.current.ego_pose
        self._line = shapely.LineString(context.centerline)
        self._here = self._line.project(shapely.Point(0, 0))
        starts = [lane.centre[0] for lane in prepared.route.lanes.values() if lane.connector]
        crossings = to_local(np.array(starts).reshape(-1, 3), pose)[:, :2]
        along, aside = self._along(crossings)
        self._crossing = along[(along > 0) & (aside < ON_ROUTE)].min(initial=FAR)
        first = self._direction(0.0)
        self._bends = [float(np.angle(np.exp(1j * (self._direction(b) - first)))) for b in BENDS]

    def _along(self, points: Float64) -> tuple[Float64, Float64]:
        """Metres along and aside of points [n, 2]."""
        shapes = shapely.points(points)
        return shapely.line_locate_point(self._line, shapes) - self._here, shapely.distance(self._line, shapes)

    def _direction(self, ahead: float) -> float:
        at = min(max(self._here + ahead, 0.5), self._line.length - 0.5)
        a, b = (self._line.interpolate(at + d) for d in (-0.5, 0.5))
        return float(np.arctan2(b.y - a.y, b.x - a.x))

    def told(self, kinds: NDArray[np.int64], where: Float64, speed: Float64, red: Float64) -> Float64:
        """ROUTE_CHANNELS."""
        along, aside = self._along(where)
        person = kinds == CLASSES.index("pedestrian")
        gap, pace, walker, offset = FAR, 0.0, FAR, BESIDE
        for i in np.flatnonzero((along > 0) & (along < FAR)):
            if not person[i] and aside[i] < ON_ROUTE and along[i] < gap:
                gap, pace = along[i], float(np.hypot(*speed[i]))
            if person[i] and aside[i] < BESIDE and along[i] < walker:
                walker, offset = along[i], aside[i]
        stop, _ = self._along(red)
        light = stop[stop > 0].min(initial=FAR)
        return np.array([gap, pace, walker, offset, min(light, FAR), self._crossing, *self._bends])


def view_of(scene: Scene, channel: str) -> Float64:
    """[row, col, VIEW_CHANNELS]: how much of a cell boxes cover, as far as they show, and 10 m / the nearest."""
    camera, labels = scene.camera(0, channel), scene.current.annotations
    assert labels is not None, "`prepare` refuses such a scene"
    width, height = 2 * camera.intrinsics[0, 2], 2 * camera.intrinsics[1, 2]  # the principal point is in the middle
    document = {
        "cameras": {
            channel: {
                "size": (width, height),
                "intrinsics": camera.intrinsics,
                "distortion": camera.distortion,
                "sensor2ego_rotation": camera.sensor2ego_rotation,
                "sensor2ego_translation": camera.sensor2ego_translation,
            }
        },
        "annotations": {
            "boxes": labels.boxes,
            "names": labels.names,
            "velocity": labels.velocity,
            "track_tokens": labels.track_tokens,
        },
    }
    cells = np.zeros((*VIEW, len(VIEW_CHANNELS)))
    rows, cols = (np.linspace(0, side, n + 1) for side, n in zip((height, width), VIEW, strict=True))
    for seen in see(document, channel):
        if seen.name not in AGENTS:
            continue
        left, top, right, bottom = seen.box2d
        across = np.clip(np.minimum(right, cols[1:]) - np.maximum(left, cols[:-1]), 0, None) / np.diff(cols)
        down = np.clip(np.minimum(bottom, rows[1:]) - np.maximum(top, rows[:-1]), 0, None) / np.diff(rows)
        share = down[:, None] * across * (1 - seen.hidden)
        cells[..., AGENTS.index(seen.name)] += share
        near = np.where(share > 0, 10 / max(seen.depth, 1.0), 0.0)
        cells[..., -1] = np.maximum(cells[..., -1], near)
    return np.minimum(cells, 10.0)
