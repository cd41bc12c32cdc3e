"""A NAVSIM root made by hand: logs of plain frames, and the images that a test says are there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from shards_schema.records import CHANNELS

Frames = list[dict[str, Any]]
Has = Callable[[int, str], bool]
"""Whether the image of a frame (its place in the log) and a channel is there."""


def frames(log: str, count: int, channels: Sequence[str] = CHANNELS) -> Frames:
    """A straight drive at 8 m/s; the token of frame i of "log_a" is ``a000...i``."""
    camera = {
        "sensor2lidar_rotation": np.eye(3),
        "sensor2lidar_translation": np.zeros(3),
        "cam_intrinsic": np.array([[384.0, 0, 240.0], [0, 384.0, 135.0], [0, 0, 1]]),
        "distortion": np.zeros(5),
    }
    annotations = {"gt_boxes": np.zeros((0, 7)), "gt_names": [], "gt_velocity_3d": np.zeros((0, 3)), "track_tokens": []}
    return [
        {
            "token": (token := token_of(log, i)),
            "timestamp": 1_000_000_000 + 500_000 * i,
            "log_name": log,
            "scene_token": "5" * 16,
            "map_location": "us-nv-las-vegas-strip",
            "roadblock_ids": ["1"],
            "driving_command": np.array([0, 1, 0, 0]),
            "ego2global_translation": np.array([4.0 * i, 0.0, 0.0]),
            "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
            "ego_dynamic_state": [8.0, 0.0, 0.0, 0.0],
            "traffic_lights": [],
            "cams": {c: {"data_path": f"{log}/{c}/{token}.jpg", **camera} for c in channels},
            "lidar_path": None,
            "anns": annotations,
        }
        for i in range(count)
    ]


def token_of(log: str, index: int) -> str:
    """Of a frame."""
    return f"{log[-1]}{index:015x}"


def write_log(root: Path, log: str, content: Frames, split: str = "mini") -> None:
    """The pickle."""
    folder = root / "navsim_logs" / split
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{log}.pkl").write_bytes(pickle.dumps(content, 5))


def write_images(
    root: Path, content: Frames, has: Has = lambda index, channel: True, size: tuple[int, int] = (96, 54)
) -> None:
    """The images of a log's frames, below ``sensor_blobs/mini`` of the root; all of them the same grey JPEG."""
    jpeg = simplejpeg.encode_jpeg(np.full((size[1], size[0], 3), 90, np.uint8))
    for index, frame in enumerate(content):
        for channel, camera in frame["cams"].items():
            if has(index, channel):
                path = root / "sensor_blobs" / "mini" / camera["data_path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg)


def write(
    root: Path, logs: Mapping[str, int], has: Has = lambda index, channel: True, channels: Sequence[str] = ("CAM_F0",)
) -> None:
    """Logs of so many frames each, with their images."""
    for log, count in logs.items():
        content = frames(log, count, channels)
        write_log(root, log, content)
        write_images(root, content, has)
