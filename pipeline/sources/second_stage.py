"""The second stage of NAVSIM's two-stage splits: synthetic scenes, one a pickle, with sensors of their own.

Layout, below the dataset's root, for the split ``navhard_two_stage`` (``warmup_two_stage`` likewise)::

    <root>/navhard_two_stage/synthetic_scene_pickles/<token>.pkl
    <root>/navhard_two_stage/sensor_blobs/<data_path>

A pickle is what the devkit's ``Scene.save_to_disk`` writes. The files are named by scene; the token is that of the
metadata (``initial_token``), so a file of another name is found too, by looking into all of them. What lies after the
last frame (``extended_detections_tracks``, ``extended_traffic_light_data``) is in objects of nuPlan's classes, which
are read as inert data (`pickles.inert`); those steps become frames at the last pose, as the devkit has them, and
the scene is not `driven`.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np

from pickles import inert
from pickles.unpickle import load_pickle
from pipeline.sources import files
from pipeline.sources.base import Missing, Scan, Wanted, missing
from pipeline.sources.navsim_frame import FrameReader, require
from pipeline.sources.navsim_images import LogImages
from pipeline.sources.scan import LogScan, each_log
from pipeline.sources.scene_filter import SceneFilter
from pipeline.sources.untrusted import floats, integer, items, shown, text
from shards_schema.errors import ConfigError, SampleError, UnsafePickleError
from shards_schema.plan import SceneRef
from shards_schema.poses import Float64, to_local
from shards_schema.records import Frame, Scene

START: Final = -1
"""`SceneRef.start` of a second-stage scene: it is no window of its log."""

_PERIOD_US: Final = 500_000
_RED: Final = 2
_CLASSES: Final = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object", "ego")
"""nuPlan's types, by number."""
_METADATA: Final = (
    "log_name",
    "scene_token",
    "map_name",
    "initial_token",
    "num_history_frames",
    "num_future_frames",
    "corresponding_original_scene",
)
_STATUS: Final = ("ego_pose", "ego_velocity", "ego_acceleration", "driving_command")
_FRAME: Final = ("token", "timestamp", "roadblock_ids", "traffic_lights", "annotations", "ego_status", "camera_dict")


@dataclass(frozen=True, slots=True)
class SecondStage:
    """The synthetic scenes of a split.

    Attributes:
        root: the dataset's.
        folder: of the split, below it.
        history, future: frames of a scene, the current one in the history.
    """

    root: str
    folder: str
    history: int
    future: int

    @property
    def pickles(self) -> str:
        """Where they lie, below the root."""
        return f"{self.folder}/synthetic_scene_pickles"

    @property
    def _home(self) -> str:
        return f"{self.root.rstrip('/')}/{self.pickles}"

    def names(self) -> list[str]:
        """The pickles' file names, sorted."""
        return sorted(name for name in files.names(self._home) if name.endswith(".pkl"))

    @property
    def blobs(self) -> str:
        """Where its images are named from."""
        return f"{self.root.rstrip('/')}/{self.folder}/sensor_blobs"

    def scan_one(self, name: str, tokens: frozenset[str], logs: frozenset[str] | None, images: Wanted) -> LogScan | str:
        """The scene of one pickle, none where it is not wanted, or why it cannot be read.

        `tokens` and `logs` (None: all) are those that are wanted, `images` those to be looked for.
        """
        try:
            raw = self._read(name)
            token, timestamp = self._identity(raw, name)
            log = text(raw["scene_metadata"]["log_name"], "bad_frame", f"{name}: log_name")
        except SampleError as error:
            return error.reason
        if token not in tokens or (logs is not None and log not in logs):
            return LogScan((), Counter({"synthetic_not_wanted": 1}))
        ref = SceneRef(log, timestamp, token, START)
        lost: Missing = {}
        if images:
            frames = [{"cams": _channels(f.get("camera_dict"))} if isinstance(f, Mapping) else f for f in raw["frames"]]
            there = LogImages(frames, self.blobs, self.history)
            lost = missing([replace(ref, start=max(0, self._now(raw) + 1 - self.history))], images, there.has)
        return LogScan((ref,), Counter(), missing=lost)

    def scene(self, ref: SceneRef, map_names: Iterable[str]) -> Scene | SampleError:
        """The records of one scene; an error's code is ``log_changed`` or one of `navsim_frame`'s."""
        try:
            return self._scene(ref, tuple(map_names))
        except SampleError as error:
            return SampleError(error.code, f"synthetic scene {ref.token} of log {ref.log}: {error.reason}")

    def _scene(self, ref: SceneRef, map_names: tuple[str, ...]) -> Scene:
        name = f"{ref.token}.pkl"
        raw = self._read(name if name in files.names(self._home) else self._file_of(ref.token))
        if (found := self._identity(raw, name)) != (ref.token, ref.timestamp):
            raise SampleError(
                "log_changed",
                f"it should be {ref.token} at {ref.timestamp} us, found {found[0]} at {found[1]} us: it changed since "
                "the plan was made; plan again",
            )
        metadata = raw["scene_metadata"]
        map_name = metadata["map_name"]
        if not isinstance(map_name, str) or map_name not in map_names:
            raise SampleError("bad_frame", f"expected a map of {', '.join(map_names)}, got {shown(map_name, 40)}")
        now = self._now(raw)
        if now + 1 < self.history:
            raise SampleError("missing_frame", f"{now + 1} frames of history, the filter wants {self.history}")
        logged = items(raw["frames"], "bad_frame", "frames")
        as_log = [_as_log(frame, f"frame {i}") for i, frame in enumerate(logged)]
        reader = FrameReader(as_log, self.blobs)
        frames = [_posed(reader.frame(i), logged[i]) for i in range(len(logged))]
        wanted = self.future - (len(frames) - 1 - now)
        driven = wanted <= 0
        frames += [_after(frames[-1], raw, k, f"{ref.token}-{k}") for k in range(1, wanted + 1)]
        if any(a.timestamp >= b.timestamp for a, b in pairwise(frames)):
            raise SampleError("bad_timestamps", "time should go on from frame to frame")
        first = now + 1 - self.history
        return Scene(
            log=ref.log,
            scene_token=text(metadata["scene_token"], "bad_frame", "scene_token"),
            map_name=map_name,
            frames=tuple(frames[first : now + 1 + self.future]),
            num_history=self.history,
            before=tuple(frames[:first]),
            original=text(metadata["corresponding_original_scene"], "bad_frame", "corresponding_original_scene"),
            driven=driven,
        )

    def _identity(self, raw: Mapping[str, Any], name: str) -> tuple[str, int]:
        """The token of the scene and the time of its current frame."""
        frames = items(raw["frames"], "bad_frame", f"{name}: frames")
        now = self._now(raw)
        token = text(raw["scene_metadata"]["initial_token"], "bad_frame", f"{name}: initial_token")
        if not 0 <= now < len(frames):
            raise SampleError("bad_frame", f"{name}: num_history_frames is {now + 1}, and there are {len(frames)}")
        if not isinstance(frames[now], Mapping) or frames[now].get("token") != token:
            raise SampleError("bad_frame", f"{name}: its current frame should have the token {shown(token)}")
        return token, integer(frames[now].get("timestamp"), "bad_frame", f"{name}: timestamp, as integer microseconds,")

    @staticmethod
    def _now(raw: Mapping[str, Any]) -> int:
        return integer(raw["scene_metadata"]["num_history_frames"], "bad_frame", "num_history_frames") - 1

    def _file_of(self, token: str) -> str:
        found = _files(self).get(token)
        if found is None:
            raise SampleError("log_changed", f"no pickle of {self.pickles} holds it any more")
        return found

    def _read(self, name: str) -> dict[str, Any]:
        where = f"{self.pickles}/{name}"
        data = files.read_log(f"{self._home}/{name}", where)
        raw = _loaded(data, where)
        if not isinstance(raw, dict) or not all(isinstance(raw.get(key), kind) for key, kind in _FORM):
            raise SampleError(
                "log_unreadable", f"{where} should hold one scene (scene_metadata, frames), got {shown(raw)}"
            )
        require(raw["scene_metadata"], _METADATA, "bad_frame", f"{where}: scene_metadata")
        return raw


def add_second_stage(first: Scan, stage: SecondStage, wanted: SceneFilter, images: Wanted, processes: int) -> Scan:
    """The scan of the logs with the synthetic scenes that the filter lists.

    Raises:
        ConfigError: two pickles hold the same scene, or one that a log has.
    """
    names = stage.names()
    logs = None if wanted.log_names is None else frozenset(wanted.log_names)
    one = partial(stage.scan_one, tokens=wanted.second_stage, logs=logs, images=images)
    refs = {ref.token: ref for ref in first.refs}
    found: set[str] = set()
    skipped, unreadable = Counter(first.skipped), dict(first.unreadable)
    lost = {column: dict(scenes) for column, scenes in first.missing.items()}
    del skipped["synthetic_scene"]
    for name, result in zip(names, each_log(one, names, processes, 64), strict=True):
        if isinstance(result, str):
            unreadable[f"{stage.folder}/{name}"] = result
            continue
        skipped.update(result.skipped)
        for column, scenes in result.missing.items():
            lost.setdefault(column, {}).update(scenes)
        for ref in result.refs:
            if ref.token in refs:
                raise ConfigError(
                    f"{stage.pickles}/{name}: its scene {ref.token} is there already, in {refs[ref.token].log}"
                )
            refs[ref.token] = ref
            found.add(ref.token)
    return replace(
        first,
        refs=tuple(sorted(refs.values())),
        unreadable=dict(sorted(unreadable.items())),
        not_found=tuple(sorted({*first.not_found, *(wanted.second_stage - found)})),
        skipped=dict(skipped),
        missing=lost,
    )


_FORM: Final = (("scene_metadata", dict), ("frames", list))


@functools.lru_cache(maxsize=4)
def _files(stage: SecondStage) -> dict[str, str]:
    """Which file holds which scene, for pickles that are not named by their token."""
    out = {}
    for name in stage.names():
        try:
            out[stage._identity(stage._read(name), name)[0]] = name
        except SampleError:
            continue  # the scan has said why
    return out


def _loaded(data: bytes, where: str) -> Any:
    """A pickle of plain data, or of nuPlan's objects too, as inert records."""
    try:
        return load_pickle(data, where)
    except UnsafePickleError as refused:
        if b"nuplan" not in data:
            raise
        try:
            return _plain(inert.load(data), {})
        except UnsafePickleError:
            raise refused from None
        except Exception as error:  # bytes that are no pickle can fail in any way: see pickle.UnpicklingError
            raise SampleError("log_unreadable", f"{where} ({len(data)} bytes) is not a whole pickle: {error}") from None


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """The same with plain arrays; records stay as they are. What stands in many places is made once (`seen`, by id)."""
    if isinstance(value, inert.Array):
        return value.value
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in seen:
        if isinstance(value, dict):
            filled: dict[Any, Any] = {}
            seen[id(value)] = filled
            filled.update((key, _plain(item, seen)) for key, item in value.items())
        elif isinstance(value, list):
            several: list[Any] = []
            seen[id(value)] = several
            several.extend(_plain(item, seen) for item in value)
        else:
            seen[id(value)] = tuple(_plain(item, seen) for item in value)
    return seen[id(value)]


def _as_log(frame: Any, where: str) -> dict[str, Any]:
    """A saved scene's frame in the form of a log's; `_posed` sets its heading, which no quaternion holds exactly."""
    require(frame, _FRAME, "bad_frame", where)
    status, annotations, cameras = frame["ego_status"], frame["annotations"], frame["camera_dict"]
    require(status, _STATUS, "bad_frame", f"{where}: ego_status")
    require(annotations, ("boxes", "names", "velocity_3d", "track_tokens"), "bad_frame", f"{where}: annotations")
    require(cameras, (), "bad_frame", f"{where}: camera_dict")
    x, y, heading = floats(status["ego_pose"], (3,), "bad_pose", f"{where}: ego_pose").tolist()
    velocity = floats(status["ego_velocity"], (2,), "bad_pose", f"{where}: ego_velocity")
    acceleration = floats(status["ego_acceleration"], (2,), "bad_pose", f"{where}: ego_acceleration")
    return {
        "token": frame["token"],
        "timestamp": frame["timestamp"],
        "ego2global_translation": [x, y, 0.0],
        "ego2global_rotation": [math.cos(heading / 2), 0.0, 0.0, math.sin(heading / 2)],
        "ego_dynamic_state": [*velocity.tolist(), *acceleration.tolist()],
        "driving_command": status["driving_command"],
        "roadblock_ids": frame["roadblock_ids"],
        "traffic_lights": frame["traffic_lights"],
        "cams": _channels(cameras),
        "anns": {
            "gt_boxes": annotations["boxes"],
            "gt_names": annotations["names"],
            "gt_velocity_3d": annotations["velocity_3d"],
            "track_tokens": annotations["track_tokens"],
        },
        "lidar_path": None,
    }


def _channels(cameras: Any) -> dict[str, Any]:
    """The cameras that a frame has, under the names of a log's."""
    return {str(c).upper(): camera for c, camera in cameras.items() if camera} if isinstance(cameras, Mapping) else {}


def _posed(frame: Frame, raw: Mapping[str, Any]) -> Frame:
    """The frame at the very pose that was saved."""
    pose = floats(raw["ego_status"]["ego_pose"], (3,), "bad_pose", f"{frame.token}: ego_pose")
    return replace(frame, ego_pose=pose)


def _after(last: Frame, raw: Mapping[str, Any], step: int, token: str) -> Frame:
    """The frame `step` (1, 2, ...) steps after the last one: traffic as it was foreseen, the ego where it was last."""
    tracks, lights = raw.get("extended_detections_tracks"), raw.get("extended_traffic_light_data")
    if not isinstance(tracks, list) or len(tracks) < step:
        raise SampleError("missing_frame", f"there is neither a frame nor a foreseen one {step} after the last")
    known = lights[step - 1] if isinstance(lights, list) and len(lights) >= step else None
    try:
        foreseen = [] if known is None else _lights(known)
        annotations = _annotations(last.ego_pose, tracks[step - 1])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise SampleError(
            "bad_annotations", f"extended_detections_tracks or extended_traffic_light_data {step - 1}: {error}"
        ) from None
    read = FrameReader(
        [
            {
                "token": token,
                "timestamp": last.timestamp + step * _PERIOD_US,
                "ego2global_translation": last.ego_translation,
                "ego2global_rotation": last.ego_rotation,
                "ego_dynamic_state": [*last.velocity.tolist(), *last.acceleration.tolist()],
                "driving_command": list(last.command),
                "roadblock_ids": list(last.roadblock_ids),
                "traffic_lights": foreseen,
                "cams": {},
                "anns": annotations,
                "lidar_path": None,
            }
        ],
        "",
    ).frame(0)
    return replace(read, ego_pose=last.ego_pose)


def _lights(known: Any) -> list[tuple[int, bool]]:
    """nuPlan's traffic lights as a log has them."""
    found = items(known["traffic_lights"], "bad_frame", "extended_traffic_light_data")
    return [(int(light["lane_connector_id"]), light["status"].args[:1] == (_RED,)) for light in found]


def _annotations(ego: Float64, tracks: Any) -> dict[str, Any]:
    """nuPlan's tracked objects, which are global, as boxes in the frame of the pose `ego` [3]."""
    boxes, velocity, names, tokens = [], [], [], []
    cos, sin = math.cos(-ego[2]), math.sin(-ego[2])
    for item in items(tracks["tracked_objects"]["tracked_objects"], "bad_annotations", "tracked objects"):
        box = item["_box"]
        centre = np.array([box["_center"][name] for name in ("x", "y", "heading")], dtype=np.float64)
        x, y, heading = to_local(centre, ego).tolist()
        boxes.append([x, y, 0.0, box["_length"], box["_width"], box["_height"], heading])
        vx = vy = 0.0
        if "_velocity" in item:  # an agent, and no static object
            vx, vy = float(item["_velocity"]["_x"]), float(item["_velocity"]["_y"])
        velocity.append([cos * vx - sin * vy, sin * vx + cos * vy, 0.0])
        names.append(_CLASSES[item["_tracked_object_type"].args[0]])
        tokens.append(item["_metadata"]["track_token"])
    return {
        "gt_boxes": np.array(boxes, dtype=np.float64).reshape(-1, 7),
        "gt_names": names,
        "gt_velocity_3d": np.array(velocity, dtype=np.float64).reshape(-1, 3),
        "track_tokens": tokens,
    }
