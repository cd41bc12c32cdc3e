"""NAVSIM logs made by hand, small enough for a job in a second: a root, its pickles, its grey front images."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Frames = list[dict[str, Any]]


def frames(log: str, count: int, prefix: str) -> Frames:
    """`count` frames of a straight drive, whose tokens begin with `prefix` (4 characters)."""
    return [_frame(log, i, f"{prefix}{i:012x}") for i in range(count)]


def _frame(log: str, index: int, token: str) -> dict[str, Any]:
    camera = {
        "data_path": f"{log}/CAM_F0/{token}.jpg",
        "sensor2lidar_rotation": np.eye(3),
        "sensor2lidar_translation": np.zeros(3),
        "cam_intrinsic": np.array([[384.0, 0, 240.0], [0, 384.0, 135.0], [0, 0, 1]]),
        "distortion": np.zeros(5),
    }
    return {
        "token": token,
        "timestamp": 1_000_000_000 + 500_000 * index,
        "log_name": log,
        "scene_token": "s" * 16,
        "map_location": "us-nv-las-vegas-strip",
        "roadblock_ids": ["1"],
        "driving_command": np.array([0, 1, 0, 0]),
        "ego2global_translation": np.array([4.0 * index, 0.0, 0.0]),
        "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
        "ego_dynamic_state": [8.0, 0.0, 0.0, 0.0],
        "traffic_lights": [],
        "cams": {"CAM_F0": camera},
        "lidar_path": None,
        "anns": {
            "gt_boxes": np.zeros((0, 7)),
            "gt_names": [],
            "gt_velocity_3d": np.zeros((0, 3)),
            "instance_tokens": [],
            "track_tokens": [],
        },
    }


def write(root: Path, logs: Mapping[str, Frames], has_image: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """Put logs down, and the images of the frames that have one; what is there stays."""
    folder = root / "navsim_logs" / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in logs.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))
        write_images(root, [frame for frame in content if has_image(frame)])


def write_images(root: Path, content: Sequence[dict[str, Any]]) -> None:
    """The images of some frames."""
    out = io.BytesIO()
    Image.fromarray(np.full((270, 480, 3), 90, np.uint8)).save(out, "JPEG")
    for frame in content:
        path = root / "sensor_blobs" / "mini" / frame["cams"]["CAM_F0"]["data_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out.getvalue())
