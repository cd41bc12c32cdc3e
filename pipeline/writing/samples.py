"""The `samples` column: for each scene what a student sees, and what it should drive.

In the tar: ``<token>.json`` (records, trajectories, calibration, boxes) and one JPEG a view, ``<token>.cam_f0.jpg``,
either the original bytes or resized; with a history also those of the frames before, ``<token>.cam_f0.past1.jpg``.
In Zarr: token, timestamp, trajectories and ego status as arrays, so that a notebook plots trajectories without touching
a tar.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.stores.decode import Side, encode_jpeg
from pipeline.writing.calibration import scaled_intrinsics
from pipeline.writing.images import Make
from shards_schema import layout
from shards_schema.inputs.models import StrictModel
from shards_schema.manifests import ColumnManifest
from shards_schema.records import CHANNELS, COMMANDS, Camera, Frame, Image, Scene
from shards_schema.specs import TEXT, TargetSpec
from teachers.base import ImageRequest

REVISION = 3
"""Raised when the same config gives other bytes."""


class SamplesConfig(StrictModel):
    """What the `samples` column carries."""

    views: tuple[str, ...] = ("CAM_F0",)
    """Channels whose images at step 0 are stored."""
    history: int = Field(default=0, ge=0, le=64)
    """Frames before now whose images of the same channels are stored too, as far apart as the source's (0.5 s)."""
    size: tuple[Side, Side] | None = None
    """(width, height) of the stored images; None keeps the original bytes."""
    quality: int = Field(default=90, ge=1, le=100)
    """Of the JPEG when resized."""

    @field_validator("views")
    @classmethod
    def _known(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [v for v in views if v not in CHANNELS]
        if unknown or len(set(views)) != len(views):
            raise ValueError(f"views must be distinct channels of {CHANNELS}, got {views}")
        return views

    @property
    def images(self) -> dict[str, ImageRequest]:
        """What is stored: the names of images (`layout.past_image`), those of now first."""
        return {
            layout.past_image(view, back): ImageRequest(-back, view)
            for back in range(self.history + 1)
            for view in self.views
        }

    @property
    def told(self) -> dict[str, Any]:
        """All of it; a column without a history is the one that it was before there were any."""
        return self.model_dump(mode="json", exclude=None if self.history else {"history"})


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A JPEG of the `samples` column, with the size that it had and the size that it has, (width, height)."""

    data: bytes
    original: tuple[int, int]
    stored: tuple[int, int]


class SamplesColumn:
    """Makes the members and arrays of `samples`.

    Args:
        config: views and size.
        num_history: H of the source, the current frame counted.
        num_future: F of the source.
    """

    def __init__(self, config: SamplesConfig, *, num_history: int, num_future: int) -> None:
        self.config = config
        self.num_history = num_history
        self.num_future = num_future

    def manifest(self, environment: dict[str, str]) -> ColumnManifest:
        """`samples/column.json`."""
        return ColumnManifest(
            column=layout.SAMPLES,
            targets=self._specs(),
            provenance={
                "revision": REVISION,
                "views": list(self.config.views),
                "size": list(self.config.size) if self.config.size else None,
                "quality": self.config.quality if self.config.size else None,
                "num_history": self.num_history,
                "num_future": self.num_future,
                **({"history": self.config.history} if self.config.history else {}),
            },
            random_weights=False,
            config=self.config.told,
            environment=environment,
        )

    def _specs(self) -> tuple[TargetSpec, ...]:
        h, f = self.num_history, self.num_future
        f64 = partial(TargetSpec, dtype="float64")
        local = (
            "local poses x, y, heading, a frame (0.5 s, or the source's rate) apart: rear axle now, x forward, y left"
        )
        return (
            TargetSpec(name="token", dims=(), shape=(), dtype=TEXT, unit="1", meaning="the sample's token"),
            TargetSpec(name="timestamp", dims=(), shape=(), dtype="int64", unit="us", meaning="Unix time of step 0"),
            f64(name="ego_pose", dims=("xyh",), shape=(3,), unit="m, rad", meaning="global x, y, heading at step 0"),
            f64(name="history", dims=("past", "xyh"), shape=(h, 3), unit="m, rad", meaning=f"{local}; ends at step 0"),
            f64(name="velocity", dims=("past", "xy"), shape=(h, 2), unit="m/s", meaning="of the ego, ego axes"),
            f64(name="acceleration", dims=("past", "xy"), shape=(h, 2), unit="m/s2", meaning="of the ego, ego axes"),
            TargetSpec(
                name="command",
                dims=("past", "command"),
                shape=(h, 4),
                dtype="uint8",
                unit="1",
                meaning="driving command, one-hot: left, straight, right, unknown",
            ),
            f64(name="future", dims=("step", "xyh"), shape=(f, 3), unit="m, rad", meaning=f"{local}; from step +1"),
        )

    @property
    def make(self) -> Make:
        """What this column keeps of an image."""
        return self._store

    def _store(self, data: bytes, image: Image) -> StoredImage:
        original = (image.shape[1], image.shape[0])
        if self.config.size is None or self.config.size == original:
            return StoredImage(data, original, original)
        width, height = self.config.size
        chw = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
        small = torch.nn.functional.interpolate(chw, size=(height, width), mode="bicubic", antialias=True)
        resized: Image = small[0].permute(1, 2, 0).contiguous().numpy()
        return StoredImage(encode_jpeg(resized, self.config.quality), original, (width, height))

    def arrays(self, scene: Scene) -> dict[str, NDArray[Any] | str]:
        """The Zarr rows of a scene."""
        past = scene.frames[: scene.num_history]
        return {
            "token": scene.token,
            "timestamp": np.int64(scene.timestamp),  # type: ignore[dict-item]
            "ego_pose": scene.current.ego_pose,
            "history": scene.history_trajectory(),
            "velocity": np.stack([f.velocity for f in past]),
            "acceleration": np.stack([f.acceleration for f in past]),
            "command": np.array([f.command for f in past], dtype=np.uint8),
            "future": scene.future_trajectory(),
        }

    def members(self, scene: Scene, images: dict[str, StoredImage]) -> dict[str, bytes]:
        """The tar members of a scene; `images` by name, those of `SamplesConfig.images`.

        Raises:
            SampleError: code ``bad_calibration``: what an image's intrinsics are cannot be known.
        """
        document = scene_document(scene, images)
        members = {"json": json.dumps(document, separators=(",", ":"), allow_nan=False).encode()}
        return members | {f"{name.lower()}.jpg": image.data for name, image in images.items()}


def scene_document(scene: Scene, images: dict[str, StoredImage]) -> dict[str, Any]:
    """``<token>.json``; see docs/format.md for each key."""
    past = scene.frames[: scene.num_history]
    now = scene.current
    cameras, earlier = {}, {}
    for name, image in images.items():
        channel, back = layout.camera_of(name)
        camera, frame = _camera(scene.camera(-back, channel), image), scene.at(-back)
        if back:
            earlier[name.lower()] = {"step": -back, "token": frame.token, "timestamp": frame.timestamp, **camera}
        else:
            cameras[name.lower()] = camera
    return {
        "token": scene.token,
        "log": scene.log,
        "scene_token": scene.scene_token,
        "map": scene.map_name,
        "timestamp": scene.timestamp,
        "frames": [
            {"step": i - scene.num_history + 1, "token": f.token, "timestamp": f.timestamp}
            for i, f in enumerate(scene.frames)
        ],
        "ego": {
            "pose": now.ego_pose.tolist(),
            "translation": now.ego_translation.tolist(),
            "rotation": now.ego_rotation.tolist(),
            "velocity": now.velocity.tolist(),
            "acceleration": now.acceleration.tolist(),
            "command": COMMANDS[int(np.argmax(now.command))],
        },
        "history": {
            "trajectory": scene.history_trajectory().tolist(),
            "velocity": [f.velocity.tolist() for f in past],
            "acceleration": [f.acceleration.tolist() for f in past],
            "command": [COMMANDS[int(np.argmax(f.command))] for f in past],
        },
        "future": {"trajectory": scene.future_trajectory().tolist() if scene.driven else []},
        **({} if scene.original is None else {"original": scene.original}),
        "roadblock_ids": list(now.roadblock_ids),
        "traffic_lights": [{"lane_connector": number, "red": red} for number, red in now.traffic_lights],
        "cameras": cameras,
        **({"past": earlier} if earlier else {}),
        "annotations": _annotations(now),
    }


def _camera(camera: Camera, image: StoredImage) -> dict[str, Any]:
    return {
        "channel": camera.channel,
        "size": list(image.stored),
        "original_size": list(image.original),
        "intrinsics": scaled_intrinsics(camera, image.original, image.stored).tolist(),
        "distortion": camera.distortion.tolist(),
        "sensor2ego_rotation": camera.sensor2ego_rotation.tolist(),
        "sensor2ego_translation": camera.sensor2ego_translation.tolist(),
    }


def _annotations(frame: Frame) -> dict[str, Any] | None:
    if frame.annotations is None:
        return None
    a = frame.annotations
    return {
        "boxes": a.boxes.tolist(),
        "names": list(a.names),
        "velocity": [[v if np.isfinite(v) else None for v in row] for row in a.velocity.tolist()],
        "track_tokens": list(a.track_tokens),
    }
