"""A small real source and a small real teacher for tests of the pipeline: no network, no NAVSIM, but bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from pipeline.sources.base import Scan
from shards_schema.errors import SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import Camera, Frame, Image, Scene
from shards_schema.specs import TargetSpec
from teachers.base import ImageRequest, Targets, TeacherInput

H, F = 2, 3


def write_images(root: Path, logs: int, frames: int, size: tuple[int, int] = (48, 32)) -> None:
    """One front JPEG a frame, each with pixels of its own."""
    for log in range(logs):
        for frame in range(frames):
            rng = np.random.default_rng([log, frame])
            coarse = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
            path = root / f"log{log:02d}" / f"{frame:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1))))


@dataclass(frozen=True)
class ToySource:
    """`logs` logs of `frames` frames; every window of H + F frames is a scene."""

    root: str
    logs: int = 3
    frames: int = 9
    synthetic: bool = True
    num_history: int = H
    num_future: int = F
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        return {"kind": "toy", "logs": self.logs, "frames": self.frames}

    def scan(self, *, processes: int = 1) -> Scan:
        refs = [
            SceneRef(log=f"log{log:02d}", timestamp=self._time(i + H - 1), token=f"{log:08x}{i + H - 1:08x}", start=i)
            for log in range(self.logs)
            for i in range(self.frames - H - F + 1)
        ]
        return Scan(tuple(refs), unreadable=dict(self.unreadable))

    def _time(self, index: int) -> int:
        return 1_600_000_000_000_000 + 500_000 * index

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        if not (Path(self.root) / log).is_dir():
            raise SampleError("log_unreadable", f"log {log} is gone")
        return [self._scene(log, ref.start) for ref in refs]

    def _scene(self, log: str, start: int) -> Scene:
        frames = tuple(self._frame(log, start + i) for i in range(H + F))
        before = (self._frame(log, start - 1),) if start else ()
        return Scene(log=log, scene_token="s", map_name="toy", frames=frames, num_history=H, before=before)

    def _frame(self, log: str, index: int) -> Frame:
        camera = Camera(
            channel="CAM_F0",
            image=f"{self.root}/{log}/{index:03d}.jpg",
            intrinsics=np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]),
            distortion=np.zeros(5),
            sensor2ego_rotation=np.eye(3),
            sensor2ego_translation=np.zeros(3),
        )
        return Frame(
            token=f"{int(log[3:]):08x}{index:08x}",
            timestamp=self._time(index),
            ego_pose=np.array([10.0 + 2 * index, 5.0, 0.1 * index]),
            ego_translation=np.array([10.0 + 2 * index, 5.0, 0.0]),
            ego_rotation=np.array([1.0, 0, 0, 0]),
            velocity=np.array([4.0, 0.0]),
            acceleration=np.array([0.0, 0.0]),
            command=(0, 1, 0, 0),
            roadblock_ids=("1",),
            traffic_lights=(),
            cameras={"CAM_F0": camera},
        )


@dataclass
class ToyTeacher:
    """Means of image blocks over steps 0..+2: a fixed function of the pixels, optionally of a fixed cost."""

    name: str = "toy"
    gain: float = 1.0
    batch_size: int = 4
    width: int = 12
    sleep: float = 0.0
    poison: str | None = None
    random_weights: bool = False

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        wide = {"dims": ("step", "row", "col", "channel"), "shape": (3, 8, self.width, 16), "unit": "1"}
        return (
            TargetSpec(name="grid", dtype="float16", meaning="block means, repeated over 16 channels", **wide),  # type: ignore[arg-type]
            TargetSpec(name="mean", dims=("channel",), shape=(3,), dtype="float32", unit="1", meaning="mean colour"),
            TargetSpec(name="path", dims=("n",), shape=(None,), dtype="int16", unit="1", meaning="a ragged one"),
        )

    def provenance(self) -> dict[str, Any]:
        return {"gain": self.gain, "width": self.width, "batch_size": self.batch_size}

    def requests(self, scene: Scene) -> list[ImageRequest]:
        return [ImageRequest(step, "CAM_F0") for step in range(3)]

    def preprocess(self, image: Image) -> Image:
        blocks = image[: 8 * (image.shape[0] // 8), : self.width * (image.shape[1] // self.width)]
        h, w = image.shape[0] // 8, image.shape[1] // self.width
        return blocks.reshape(8, h, self.width, w, 3).mean((1, 3)).astype(np.uint8)

    def load(self, device: str) -> None:
        self.loaded = device

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        if self.sleep:
            time.sleep(self.sleep)
        out: list[Targets] = []
        for item in batch:
            small = item.images.astype(np.float32) * self.gain / 255
            grid = small.mean(-1, keepdims=True).repeat(16, -1).astype(np.float16)
            if item.scene.token == self.poison:
                grid[0, 0, 0, 0] = np.nan
            ragged = np.arange(int(item.scene.token, 16) % 5, dtype=np.int16)
            out.append({"grid": grid, "mean": small.mean((0, 1, 2)), "path": ragged})
        return out
