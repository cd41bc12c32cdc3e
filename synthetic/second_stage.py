"""A second stage in NAVSIM's layout: follow-ups of a log's scenes, at poses that the ego of the log never had.

NAVSIM renders what a car beside the recorded one would have seen 4 s later; here the town is drawn again from there.
A follow-up is a pickle of one scene as the devkit's ``Scene.save_to_disk`` writes it (builtins and numpy arrays), with
sensors of its own; it comes in pairs, "now" and the frame 0.5 s before. ``filters`` has the two YAML files that ask for
first and second stage together, as the devkit's ``navhard_two_stage`` does.

    <root>/<name>/synthetic_scene_pickles/<token>.pkl
    <root>/<name>/sensor_blobs/<scene>/<channel>/<image>.jpg
    <root>/<name>/filters/<name>.yaml, <root>/<name>/filters/scene_filter/<name>.yaml
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from shards_schema.poses import heading_from_quaternion
from synthetic.config import SyntheticConfig
from synthetic.drive import Drive, EgoState
from synthetic.logs import LogSpec, drive_of, frame_records, pickled, timestamps, write_images
from synthetic.render import Renderer

HISTORY: Final = 4
FUTURE: Final = 8
"""Frames of a scene, of both stages: 1.5 s of history with now, 4 s ahead."""
AHEAD: Final = 8
"""Frames from a scene to its follow-ups."""
_ASIDE: Final = (0.0, 0.6, -0.8, 1.4, -1.8)
"""Metres to the left that follow-ups stand beside the log's path, in turn."""


@dataclass(frozen=True)
class FollowUp:
    """One pair of follow-ups: `now` starts `AHEAD` frames after frame `first` of the log, `before` a frame earlier."""

    first: int
    now: str
    before: str
    aside: float
    turned: float


class _Beside:
    """A drive in which the ego goes beside its path: all else is that drive."""

    def __init__(self, drive: Drive, aside: float, turned: float) -> None:
        self._drive, self._aside, self._turned = drive, aside, turned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drive, name)

    def ego(self, t: float) -> EgoState:
        """The ego, moved to its left and turned."""
        ego = self._drive.ego(t)
        x, y = ego.x - self._aside * math.sin(ego.yaw), ego.y + self._aside * math.cos(ego.yaw)
        return dataclasses.replace(ego, x=x, y=y, yaw=ego.yaw + self._turned)


def follow_ups(config: SyntheticConfig, spec: LogSpec) -> list[FollowUp]:
    """The pairs of a log: of every fifth scene that has both frames and room for what follows, so many each."""
    last = config.frames - 1 - AHEAD - FUTURE
    out = []
    for number, first in enumerate(range(HISTORY, last + 1, 5)):
        for j in range(config.follow_ups):
            aside = _ASIDE[(number + j) % len(_ASIDE)]
            tokens = [_token(config, spec, "follow-up", first, j, when) for when in ("now", "before")]
            out.append(FollowUp(first, tokens[0], tokens[1], aside, 0.02 * aside))
    return out


def write_second_stage(config: SyntheticConfig, spec: LogSpec, root: Path, staging: Path) -> None:
    """The follow-ups of one log, each unless its pickle is there already; `staging` is on the same file system."""
    home = root / config.second_stage
    pickles = home / "synthetic_scene_pickles"
    pickles.mkdir(parents=True, exist_ok=True)
    drive, original = drive_of(config, spec), _tokens(config, spec)
    for pair in follow_ups(config, spec):
        beside: Any = _Beside(drive, pair.aside, pair.turned)
        renderer = Renderer(beside, config.width, config.height)
        for token, at in ((pair.now, pair.first + AHEAD), (pair.before, pair.first + AHEAD - 1)):
            if (pickles / f"{token}.pkl").exists():
                continue
            frames = frame_records(config, spec, beside)[at - HISTORY + 1 : at + FUTURE + 1]
            own = [_token(config, spec, token, i) for i in range(len(frames))]
            own[HISTORY - 1] = token
            for i, frame in enumerate(frames):
                _rename(frame, token, own[i], i < HISTORY)
            work = staging / config.second_stage / token
            shutil.rmtree(work, ignore_errors=True)
            for frame in frames[:HISTORY]:
                write_images(config, renderer, (frame["timestamp"] - spec.start) / 1e6, frame, work.parent)
            blobs = home / "sensor_blobs" / token
            shutil.rmtree(blobs, ignore_errors=True)
            blobs.parent.mkdir(parents=True, exist_ok=True)
            os.rename(work, blobs)
            scene = {
                "scene_metadata": {
                    "log_name": spec.name,
                    "scene_token": token,
                    "map_name": spec.location,
                    "initial_token": token,
                    "num_history_frames": HISTORY,
                    "num_future_frames": FUTURE,
                    "corresponding_original_scene": original[at],
                    "corresponding_original_initial_token": original[at - AHEAD],
                },
                "frames": [_frame(frame, i < HISTORY) for i, frame in enumerate(frames)],
                "extended_traffic_light_data": None,
                "extended_detections_tracks": None,
            }
            draft = staging / config.second_stage / f"{token}.pkl"
            draft.write_bytes(pickled(scene))
            os.replace(draft, pickles / draft.name)


def write_filters(config: SyntheticConfig, specs: list[LogSpec], root: Path) -> None:
    """The split and its scene filter, in the form of the devkit's."""
    mapping: list[list[Any]] = []
    for spec in specs:
        original = _tokens(config, spec)
        for first, pairs in _by_scene(follow_ups(config, spec)):
            mapping.append([original[first], original[first - 1], [[p.now, p.before] for p in pairs]])
    filters = {
        "_target_": "navsim.common.dataclasses.SceneFilter",
        "_convert_": "all",
        "num_history_frames": HISTORY,
        "num_future_frames": FUTURE,
        "frame_interval": 1,
        "has_route": True,
        "max_scenes": None,
        "include_synthetic_scenes": True,
        "log_names": sorted(spec.name for spec in specs),
        "tokens": sorted({token for now, before, _ in mapping for token in (now, before)}),
        "reactive_synthetic_initial_tokens": sorted(t for _, _, pairs in mapping for pair in pairs for t in pair),
    }
    split = {
        "defaults": [{"scene_filter": config.second_stage}],
        "data_split": config.splits[0],
        "reactive_all_mapping": mapping,
    }
    folder = root / config.second_stage / "filters"
    (folder / "scene_filter").mkdir(parents=True, exist_ok=True)
    for path, value in (
        (folder / "scene_filter" / f"{config.second_stage}.yaml", filters),
        (folder / f"{config.second_stage}.yaml", split),
    ):
        path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def _by_scene(pairs: list[FollowUp]) -> Iterator[tuple[int, list[FollowUp]]]:
    for first in dict.fromkeys(pair.first for pair in pairs):
        yield first, [pair for pair in pairs if pair.first == first]


def _tokens(config: SyntheticConfig, spec: LogSpec) -> list[str]:
    """The tokens of the log's own frames."""
    return [_token(config, spec, "frame", i)[:16] for i in range(len(timestamps(config, spec)))]


def _token(config: SyntheticConfig, spec: LogSpec, *parts: object) -> str:
    """17 hex characters: the devkit knows a follow-up by the length of its token."""
    return hashlib.sha256("/".join(map(str, (config.seed, spec.key, *parts))).encode()).hexdigest()[:17]


def _rename(frame: dict[str, Any], scene: str, token: str, seen: bool) -> None:
    frame["token"] = token
    for channel, camera in frame["cams"].items():
        camera["data_path"] = f"{scene}/{channel}/{token}.jpg" if seen else ""


def _frame(frame: dict[str, Any], seen: bool) -> dict[str, Any]:
    """A log's frame in the form of a saved scene's."""
    x, y, _ = frame["ego2global_translation"]
    annotations, dynamics = frame["anns"], frame["ego_dynamic_state"]
    return {
        "token": frame["token"],
        "timestamp": frame["timestamp"],
        "roadblock_ids": frame["roadblock_ids"],
        "traffic_lights": frame["traffic_lights"],
        "annotations": {
            "boxes": annotations["gt_boxes"],
            "names": annotations["gt_names"],
            "velocity_3d": annotations["gt_velocity_3d"],
            "instance_tokens": annotations["instance_tokens"],
            "track_tokens": annotations["track_tokens"],
        },
        "ego_status": {
            "ego_pose": np.array([x, y, heading_from_quaternion(frame["ego2global_rotation"])]),
            "ego_velocity": np.array(dynamics[:2], dtype=np.float32),
            "ego_acceleration": np.array(dynamics[2:], dtype=np.float32),
            "driving_command": frame["driving_command"],
            "in_global_frame": True,
        },
        "lidar_path": None,
        "camera_dict": {channel.lower(): camera if seen else {} for channel, camera in frame["cams"].items()},
    }
