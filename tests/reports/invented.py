"""A street whose steps nobody can foresee, and teachers that know of it what they are told to: for probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from reports.signal.labels import DIRECTIONS
from shards_schema.records import Annotations, Frame, Scene
from shards_schema.specs import TargetSpec
from teachers.base import ImageRequest, Targets, TeacherInput
from tests.committed import commit
from tests.toys import ToySource

Float64 = np.ndarray[Any, np.dtype[np.float64]]

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
LOGS, FRAMES, SHARD = 16, 13, 18
CAMERAS = ("CAM_F0", "CAM_L0", "CAM_R0")


@dataclass(frozen=True)
class Street(ToySource):
    """Each step of a drive is drawn by itself, so that no status tells the next; agents stand anywhere around."""

    logs: int = LOGS
    frames: int = FRAMES
    known: bool = True

    def _frame(self, log: str, index: int) -> Frame:
        number, frame = int(log[3:]), super()._frame(log, index)
        steps = np.random.default_rng([number, 1]).uniform(1, 5, self.frames + 1)
        rng = np.random.default_rng([number, index, 2])
        away, bearing = rng.uniform(6, 38, 24), rng.uniform(-math.pi, math.pi, 24)
        boxes = np.zeros((24, 7))
        boxes[:, 0], boxes[:, 1] = away * np.cos(bearing), away * np.sin(bearing)
        boxes[:, 2], boxes[:, 3:6] = 0.5, 0.6
        names = tuple(("vehicle", "pedestrian", "bicycle", "barrier")[i % 4] for i in range(24))
        camera = replace(
            frame.cameras["CAM_F0"], sensor2ego_rotation=FORWARD, sensor2ego_translation=np.array([1.0, 0, 1.5])
        )
        return replace(
            frame,
            ego_pose=np.array([steps[: index + 1].sum(), 5.0, 0.0]),
            velocity=np.array([2 * steps[index], 0.0]),
            cameras={"CAM_F0": camera},
            annotations=Annotations(
                boxes=boxes, names=names, velocity=np.zeros((24, 3)), track_tokens=tuple(map(str, range(24)))
            )
            if self.known
            else None,
        )


def speed(scene: Scene) -> Float64:
    return scene.current.velocity[:1]


def next_second(scene: Scene) -> Float64:
    return scene.future_trajectory()[1, :1]


def around(camera: str) -> Callable[[Scene], Float64]:
    """Agents in the left and the right half of what a camera sees within 40 m."""

    def tell(scene: Scene) -> Float64:
        found = scene.current.annotations
        assert found is not None
        aside = np.degrees(np.arctan2(found.boxes[:, 1], found.boxes[:, 0])) - DIRECTIONS[camera]
        agent = np.array([name != "barrier" for name in found.names])
        left, right = agent & (aside > 0) & (aside < 32), agent & (aside < 0) & (aside > -32)
        return np.array([left.sum(), right.sum()], float)

    return tell


@dataclass
class Invented:
    """A teacher that knows: entry i of its first axis mixes what `tells[i]` says of a scene, and noise."""

    name: str
    tells: Sequence[Callable[[Scene], Float64]] = (speed,)
    dims: tuple[str, ...] = ("token", "channel")
    says: dict[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    target: str = "grid"
    seed: int = 0
    gain: float = 1.0
    aside: float = 3.0
    other_logs: frozenset[str] = frozenset()
    shuffle: bool = False
    batch_size: int = 4

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        shape = (len(self.tells), 12, *[1] * (len(self.dims) - 2))
        return (
            TargetSpec(name=self.target, dims=self.dims, shape=shape, dtype="float32", unit="1", meaning="invented"),
        )

    def provenance(self) -> dict[str, Any]:
        return {"gain": 1.0, **self.says}  # not what it does: that is the harm

    def requests(self, scene: Scene) -> list[ImageRequest]:
        return []

    def preprocess(self, image: Any) -> Any:
        return image

    def load(self, device: str) -> None:
        pass

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [{self.target: self._grid(item.scene)} for item in batch]

    def _grid(self, scene: Scene) -> Any:
        noise = np.random.default_rng([int(scene.token, 16) % 2**32, int(scene.token, 16) >> 32, self.seed])
        weights = np.random.default_rng(self.seed + 100 * (scene.log in self.other_logs))
        out = []
        order = noise.permutation(len(self.tells)) if self.shuffle else range(len(self.tells))
        for i in order:
            told = self.tells[i](scene)
            mixed = told @ weights.normal(size=(len(told), 12)) + self.aside * weights.normal(size=12)
            out.append(self.gain * (mixed + 0.1 * noise.normal(size=12)))
        return np.array(out, dtype=np.float32).reshape(self.specs[0].fixed_shape)


def made(source: ToySource, out: Path, *teachers: Invented) -> Dataset:
    commit(source, out, teachers, shard_size=SHARD, zarr=False)
    return Dataset(str(out))
