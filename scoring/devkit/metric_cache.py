"""The NAVSIM devkit's metric caches (tag v1.1, and v2) as reward contexts, without the devkit.

A cache is ``<root>/<log>/<scenario type>/<token>/metric_cache.pkl``: an lzma stream of one pickle of a `MetricCache`.
It is read with an allow-list (`pickles.inert`), so a cache from anywhere is safe to open. Where things are:

- v1: boxes only as polygons, in 51 occupancy maps; class, size and speed in ``_unique_objects``; no lights, no human.
- v2: 41 lists of tracked objects; red lights in ``_occupancy_maps_tl``; the human's past and future.
- both: the drivable map (token, layer, polygon), route lane ids, the centerline, and PDM-Closed's *unsimulated*
  reference, which `scoring.complete` simulates and scores for its progress.

All positions leave here relative to the rear axle at t0, float64.
"""

from __future__ import annotations

import lzma
import math
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from pickles.inert import Array, Record, load
from scoring.context import AGENT_STEPS, FILTERED, Layer, Polygons, RewardContext, Version
from scoring.devkit.frames import local_polygons, past_at_10_hz
from scoring.reference import interpolate, sample_times
from scoring.vehicle import FRONT_LENGTH, REAR_AXLE_TO_CENTRE, REAR_LENGTH, STATE_SIZE, STEPS, WHEEL_BASE, WIDTH
from shards_schema.errors import MissingFileError, SampleError, StoreError, UnsafePickleError
from shards_schema.inputs.reading import judged, read_local
from shards_schema.poses import Float64, to_local

MAX_BYTES = 1 << 30
"""A cache that unpacks to more is refused; real ones are some megabytes."""

_FILE = "metric_cache.pkl"
_CACHE = "navsim.planning.metric_caching.metric_cache.MetricCache"
_STOPPED_SPEED = 5e-2
_AGENT_TYPES = frozenset((0, 1, 2, 7))
"""nuPlan's TrackedObjectType: vehicle, pedestrian, bicycle, ego; 3 to 6 are static."""

_LAYERS = {
    17: Layer.ROADBLOCK,
    0: Layer.LANE,
    11: Layer.LANE_CONNECTOR,
    1: Layer.INTERSECTION,
    15: Layer.CARPARK,
    5: Layer.DRIVABLE_AREA,
}
"""nuPlan's SemanticMapLayer, those that a drivable map may hold."""

_PACIFICA = (WIDTH, FRONT_LENGTH, REAR_LENGTH, WHEEL_BASE)
_DAMAGE = (
    pickle.UnpicklingError,
    lzma.LZMAError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    shapely.errors.ShapelyError,
)
"""What damaged bytes make of the readers, where they do not say so themselves."""


def find_caches(root: Path) -> dict[str, Path]:
    """Token -> file, for every cache below `root`.

    Raises:
        MissingFileError: there is no such directory, or no cache in it.
        SampleError: code ``duplicate_token``, two caches of one token.
        StoreError: a folder of it cannot be looked into.
    """
    if not root.is_dir():
        raise MissingFileError(f"no directory of metric caches at {root}")
    out: dict[str, Path] = {}
    with judged(root, "list"):
        found = [Path(folder, _FILE) for folder, _, names in os.walk(root, onerror=_raise) if _FILE in names]
    for path in sorted(found):
        token = path.parent.name
        if token in out:
            raise SampleError("duplicate_token", f"token {token} has two caches: {out[token]} and {path}")
        out[token] = path
    if not out:
        raise MissingFileError(f"no {_FILE} below {root}: expected <log>/<scenario type>/<token>/{_FILE}")
    return out


def _raise(error: OSError) -> NoReturn:
    raise error


def read_cache(path: Path) -> Record:
    """The records of one cache.

    Raises:
        MissingFileError: no such file.
        UnsafePickleError: it names something that is not a part of a metric cache.
        SampleError: code ``cache_unreadable`` (not lzma, truncated, damaged) or ``not_a_cache``.
        StoreError: the disk failed, or the file is gone with its folder.
    """
    try:
        packed = read_local(path)
    except FileNotFoundError:
        raise MissingFileError(f"no metric cache at {path}") from None
    except StoreError:
        raise
    except OSError as error:
        raise SampleError("cache_unreadable", f"{path}: {error}") from error
    try:
        decompressor = lzma.LZMADecompressor()
        data = decompressor.decompress(packed, MAX_BYTES)
        if not decompressor.eof:
            what = f"unpacks to more than {MAX_BYTES} bytes" if len(data) >= MAX_BYTES else "ends early (truncated)"
            raise SampleError("cache_unreadable", f"{path}: the lzma stream {what}")
        cache = load(data)
    except UnsafePickleError as error:
        raise UnsafePickleError(error.code, f"{path}: {error.reason}") from None
    except SampleError:
        raise
    except _DAMAGE as error:
        raise SampleError(
            "cache_unreadable", f"{path}: not an lzma-compressed pickle of a metric cache: {error or type(error)}"
        ) from error
    if not isinstance(cache, Record) or cache.kind != _CACHE:
        found = cache.kind if isinstance(cache, Record) else type(cache).__name__
        raise SampleError("not_a_cache", f"{path}: expected a pickled {_CACHE}, found {found}")
    return cache


def cache_version(cache: Record) -> Version:
    """Which devkit wrote it: v2 added the human's past."""
    return "v2" if "past_human_trajectory" in cache else "v1"


def context_from_cache(path: Path, version: Version) -> RewardContext:
    """The reward context of a cache file, for `scoring.complete`.

    Args:
        path: a ``metric_cache.pkl``.
        version: the score that it is wanted for; a cache serves only its own.

    Raises:
        SampleError: as `read_cache`, and codes ``version_mismatch``, ``other_vehicle`` (not nuPlan's Pacifica),
            ``bad_context`` (a part is missing or has another form than expected); each names the file.
    """
    cache = read_cache(path)
    found = cache_version(cache)
    if found != version:
        raise SampleError(
            "version_mismatch",
            f"{path}: a metric cache of {found}, asked for {version}: score it as {found}, or cache again with "
            f"the devkit of {version}",
        )
    try:
        return _context(path, cache, version)
    except SampleError as error:
        raise SampleError(error.code, f"{path}: {error.reason}") from error
    except _DAMAGE as error:
        raise SampleError("bad_context", f"{path}: not laid out as a {version} metric cache: {error}") from error


def _context(path: Path, cache: Record, version: Version) -> RewardContext:
    ego = cache["ego_state"]
    _check_vehicle(ego)
    origin = _rear_axle(ego)
    observation = cache["observation"]
    agents = _agents_v1(observation, origin) if version == "v1" else _agents_v2(observation, origin)
    lights, active = _lights(observation, origin) if version == "v2" else (Polygons.of([]), np.zeros((0, STEPS), bool))
    tokens, layers, geometries = cache["drivable_area_map"].args[:3]
    route = {str(i) for i in _items(cache["route_lane_ids"])}
    on_route = [str(token) in route for token in _items(tokens)]
    start_us = _time_us(ego)
    line = np.array([_se2(s) for s in _items(cache["centerline"].args[0])])
    human = cache["human_trajectory"] if version == "v2" else None
    return RewardContext(
        token=path.parent.name,
        version=version,
        timestamp_us=start_us,
        ego_state=_state(ego, origin),
        past_states=_past(cache["past_human_trajectory"], origin) if version == "v2" else np.zeros((0, STATE_SIZE)),
        **agents,
        map_polygons=_polygons(_items(geometries), origin),
        map_layer=np.array([_LAYERS[int(layer.args[0])] for layer in _items(layers)], dtype=np.int64),
        map_on_route=np.array(on_route, dtype=np.bool_),
        light_polygons=lights,
        light_active=active,
        centerline=to_local(line, origin)[:, :2],
        pdm_poses=_pdm_poses(cache["trajectory"], origin, start_us),
        human_poses=np.zeros((0, 3)) if human is None else _human_poses(human),
        human_zero=np.zeros(len(FILTERED), dtype=np.bool_),
    )


def _agents_v1(observation: Record, origin: Float64) -> dict[str, Any]:
    """Boxes from the polygons of the occupancy maps: corners front left, rear left, rear right, front right."""
    unique: Mapping[str, Record] = observation["_unique_objects"]
    ignored = {*observation["_collided_track_ids"]}
    tokens = [t for t in unique if observation["_red_light_token"] not in t and t not in ignored]
    index = {token: n for n, token in enumerate(tokens)}
    steps = AGENT_STEPS["v1"]
    maps, places = observation["_occupancy_maps"], observation["_global_to_local_idcs"]
    if len(places) < steps:
        raise SampleError("bad_context", f"expected {steps} occupancy maps at 10 Hz, found {len(places)}")
    where: list[tuple[int, int]] = []
    boxes: list[bytes] = []
    for step in range(steps):
        names, geometries = maps[places[step]].args[:2]
        for token, geometry in zip(_items(names), _items(geometries), strict=True):
            if token in index:
                where.append((index[token], step))
                boxes.append(geometry)
    corners = _box_corners(boxes)
    ahead = corners[:, 0] - corners[:, 1]
    poses = np.column_stack((corners.mean(axis=1), np.arctan2(ahead[:, 1], ahead[:, 0])))
    return _agent_arrays([unique[t] for t in tokens], where, to_local(poses, origin), steps)


def _agents_v2(observation: Record, origin: Float64) -> dict[str, Any]:
    """Boxes of the tracked objects of each step; class, size and speed are those of a track's first one."""
    steps = AGENT_STEPS["v2"]
    tracks = _items(observation["_detections_tracks"])
    if len(tracks) < steps:
        raise SampleError("bad_context", f"expected tracked objects of {steps} steps at 10 Hz, found {len(tracks)}")
    index: dict[str, int] = {}
    first: list[Record] = []
    where: list[tuple[int, int]] = []
    poses: list[tuple[float, float, float]] = []
    for step in range(steps):
        for item in _items(tracks[step]["tracked_objects"]["tracked_objects"]):
            token = str(item["_metadata"]["track_token"])
            if token not in index:
                index[token] = len(index)
                first.append(item)
            where.append((index[token], step))
            poses.append(_se2(item["_box"]["_center"]))
    return _agent_arrays(first, where, to_local(np.reshape(poses, (-1, 3)), origin), steps)


def _agent_arrays(
    objects: Sequence[Record], where: Sequence[tuple[int, int]], poses: Float64, steps: int
) -> dict[str, Any]:
    """Of N agents; `poses` [K, 3] are theirs at K places `where`, an agent and a step each."""
    n, t = np.reshape(where, (-1, 2)).astype(np.int64).T
    pose = np.zeros((len(objects), steps, 3))
    valid = np.zeros((len(objects), steps), dtype=np.bool_)
    pose[n, t], valid[n, t] = poses, True
    size = [(float(o["_box"]["_length"]), float(o["_box"]["_width"])) for o in objects]
    kinds = [int(o["_tracked_object_type"].args[0]) for o in objects]
    return {
        "agents_pose": pose,
        "agents_valid": valid,
        "agents_size": np.array(size, dtype=np.float64).reshape(-1, 2),
        "agents_is_agent": np.array([kind in _AGENT_TYPES for kind in kinds], dtype=np.bool_),
        "agents_stopped": np.array([_stopped(o) for o in objects], dtype=np.bool_),
    }


def _stopped(tracked: Record) -> bool:
    """nuPlan's rule: what is not an `Agent` stands, by class, not by type."""
    if not tracked.kind.endswith(".Agent"):
        return True
    return math.hypot(*_vector(tracked["_velocity"])) <= _STOPPED_SPEED


def _lights(observation: Record, origin: Float64) -> tuple[Polygons, NDArray[np.bool_]]:
    maps = _items(observation["_occupancy_maps_tl"])
    if len(maps) < STEPS:
        raise SampleError("bad_context", f"expected red lights of {STEPS} steps at 10 Hz, found {len(maps)}")
    areas: dict[bytes, int] = {}
    seen: list[tuple[int, int]] = []
    for step in range(STEPS):
        _tokens, geometries = maps[step]
        seen += [(areas.setdefault(bytes(g), len(areas)), step) for g in _items(geometries)]
    active = np.zeros((len(areas), STEPS), dtype=np.bool_)
    for area, step in seen:
        active[area, step] = True
    return _polygons(list(areas), origin), active


def _polygons(geometries: Iterable[bytes], origin: Float64) -> Polygons:
    """Rings of polygons and multipolygons, in the ego frame."""
    return local_polygons(shapely.from_wkb([bytes(g) for g in geometries]), origin)


def _box_corners(boxes: Sequence[bytes]) -> Float64:
    """Corners [K, 4, 2] of boxes that came as polygons."""
    distinct = {box: n for n, box in enumerate(dict.fromkeys(boxes))}
    geometries = shapely.from_wkb([bytes(box) for box in distinct])
    counts = shapely.get_num_coordinates(geometries)
    if (counts != 5).any():
        raise SampleError("bad_context", f"an agent's box has {int(counts[counts != 5][0]) - 1} corners, expected 4")
    corners = shapely.get_coordinates(geometries).reshape(-1, 5, 2)[:, :4]
    return np.asarray(corners[[distinct[box] for box in boxes]], dtype=np.float64)


def _pdm_poses(trajectory: Record, origin: Float64, start_us: int) -> Float64:
    """The 41 reference poses of PDM-Closed, sampled as the devkit samples any trajectory."""
    states = _items(trajectory.args[0])
    times = torch.tensor([[_time_us(s) - start_us for s in states]])
    poses = torch.from_numpy(to_local(np.stack([_rear_axle(s) for s in states]), origin))[None]
    sampled = interpolate(times, poses, sample_times(torch.tensor([start_us])))
    return np.asarray(sampled[0].numpy(), dtype=np.float64)


def _human_poses(trajectory: Record) -> Float64:
    sampling = trajectory["trajectory_sampling"]
    if not math.isclose(float(sampling["interval_length"]), 0.5):
        raise SampleError("bad_context", f"human poses are {sampling['interval_length']} s apart, expected 0.5 s")
    return np.array(_items(trajectory["poses"]), dtype=np.float64)


def _past(trajectory: Record, origin: Float64) -> Float64:
    states = _items(trajectory.args[0])
    times = np.array([_time_us(s) for s in states], dtype=np.int64)
    return past_at_10_hz(times, np.stack([_state(s, origin) for s in states]))


def _state(ego: Record, origin: Float64) -> Float64:
    """float64 [11] of an EgoState, its pose relative to `origin`."""
    motion = ego["_dynamic_car_state"]
    return np.array(
        [
            *to_local(_rear_axle(ego), origin),
            *_vector(motion["_rear_axle_velocity_2d"]),
            *_vector(motion["_rear_axle_acceleration_2d"]),
            ego["_tire_steering_angle"],
            motion["_tire_steering_rate"],
            motion["_angular_velocity"],
            motion["_angular_acceleration"],
        ],
        dtype=np.float64,
    )


def _rear_axle(ego: Record) -> Float64:
    """Global pose [3]; nuPlan keeps the centre, and the rear axle only where someone asked for it."""
    footprint = ego["_car_footprint"]
    if "rear_axle" in footprint:
        return np.array(_se2(footprint["rear_axle"]))
    x, y, heading = _se2(footprint["_center"])
    back = REAR_AXLE_TO_CENTRE
    return np.array([x - back * math.cos(heading), y - back * math.sin(heading), heading])


def _check_vehicle(ego: Record) -> None:
    width, front, rear, _cog, wheel_base = (float(v) for v in ego["_car_footprint"]["_vehicle_parameters"].args[:5])
    found = (width, front, rear, wheel_base)
    if not np.allclose(found, _PACIFICA, rtol=0, atol=1e-9):
        raise SampleError(
            "other_vehicle", f"(width, front, rear, wheel base) of the ego are {found}; the scorer is for {_PACIFICA}"
        )


def _time_us(ego: Record) -> int:
    return int(ego["_time_point"]["time_us"])


def _se2(state: Record) -> tuple[float, float, float]:
    return float(state["x"]), float(state["y"]), float(state["heading"])


def _vector(vector: Record) -> tuple[float, float]:
    return float(vector["_x"]), float(vector["_y"])


def _items(values: Any) -> Any:
    """A list, tuple or array, however it was pickled."""
    if isinstance(values, Array):
        return values.value
    if isinstance(values, list | tuple | np.ndarray):
        return values
    raise TypeError(f"expected a list or an array, found {type(values).__name__}")
