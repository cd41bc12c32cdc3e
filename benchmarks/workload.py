"""The load of the job measurements: a source of overlapping windows, and a teacher of a known, fixed cost.

Each log is one camera's JPEGs; each scene is a window of 4 + 8 frames, one frame after the last, whose teacher wants
the 9 frames 0..+8. The teacher sleeps, as a CPU does while a GPU works, and hands out 0.8 MB of fresh arrays a scene.
The files are hard links to a few images, so they come from the page cache: this measures CPU work, not a disk's reads.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.sources.base import Scan, Source
from pipeline.stores.decode import encode_jpeg
from pipeline.writing import run as runs
from pipeline.writing.run import Run
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema.errors import SampleError
from shards_schema.plan import PlanConfig, SceneRef
from shards_schema.records import Frame, Image, Scene
from shards_schema.specs import TargetSpec
from teachers.base import ImageRequest, Targets, Teacher, TeacherInput, column_manifest
from teachers.testing import synthetic_scene
from teachers.vggt.preprocess import preprocess

HISTORY, FUTURE = 4, 8
CLIP = 1 + FUTURE
SHAPE = (2, 196, 1024)
LATENT_BYTES = 2 * 196 * 1024 * 2
WIDTH, HEIGHT = 518, 294
"""What `preprocess` makes of a 16:9 image."""
START = 1_600_000_000_000_000
LIKE = synthetic_scene().current
"""What is not of one frame alone."""


def write_logs(root: Path, frames: Sequence[int], size: tuple[int, int]) -> None:
    """`frames[i]` JPEGs for log i, of `size` (width, height): smooth shapes and some grain."""
    width, height = size
    rng = np.random.default_rng(0)
    base = root / "base"
    base.mkdir(parents=True)
    for image in range(16):
        coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 18, 32)))
        pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0)
        noisy = pixels.numpy() + rng.normal(0, 6, (height, width, 3))
        (base / f"{image}.jpg").write_bytes(encode_jpeg(noisy.clip(0, 255).astype(np.uint8), 90))
    for log, count in enumerate(frames):
        folder = root / f"log{log:03d}"
        folder.mkdir()
        for frame in range(count):
            os.link(base / f"{frame % 16}.jpg", folder / f"{frame:05d}.jpg")


@dataclass(frozen=True)
class WindowSource:
    """Logs as `write_logs` wrote them; every window of HISTORY + FUTURE frames is a scene."""

    root: str
    frames: tuple[int, ...]
    synthetic: bool = True
    num_history: int = HISTORY
    num_future: int = FUTURE

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {"kind": "windows", "frames": list(self.frames)}

    def scan(self, *, processes: int = 1) -> Scan:
        """See `Source`."""
        return Scan(
            tuple(
                SceneRef(
                    log=f"log{log:03d}",
                    timestamp=START + 500_000 * (first + HISTORY - 1),
                    token=f"{log:08x}{first + HISTORY - 1:08x}",
                    start=first,
                )
                for log, frames in enumerate(self.frames)
                for first in range(frames - HISTORY - FUTURE + 1)
            )
        )

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        """See `Source`."""
        frames = {i: self._frame(log, i) for ref in refs for i in range(ref.start, ref.start + HISTORY + FUTURE)}
        return [
            Scene(
                log=log,
                scene_token=log,
                map_name="none",
                frames=tuple(frames[ref.start + i] for i in range(HISTORY + FUTURE)),
                num_history=HISTORY,
            )
            for ref in refs
        ]

    def _frame(self, log: str, index: int) -> Frame:
        camera = replace(LIKE.cameras["CAM_F0"], image=f"{self.root}/{log}/{index:05d}.jpg")
        return replace(
            LIKE,
            token=f"{int(log[3:]):08x}{index:08x}",
            timestamp=START + 500_000 * index,
            ego_pose=np.array([2.0 * index, 0.0, 0.0]),
            cameras={"CAM_F0": camera},
            annotations=None,
        )


@dataclass
class FixedTeacher:
    """Takes `seconds` a batch, whatever is in it, and gives each scene `latents`, float16 [2, 196, 1024].

    Attributes:
        name: its column.
        seconds: of one `compute` call, the copy of its output included.
        steps: the frames that it wants.
        stamp: a file into which the first `compute` writes its time (`time.monotonic`); None writes none.
    """

    name: str = "latents"
    seconds: float = 0.08
    batch_size: int = 8
    steps: tuple[int, ...] = tuple(range(CLIP))
    stamp: str | None = None
    random_weights: bool = True
    _pool: NDArray[np.float16] | None = field(default=None, repr=False)

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        """See `Teacher`."""
        dims = ("view", "patch", "channel")
        return (TargetSpec(name="latents", dims=dims, shape=SHAPE, dtype="float16", unit="1", meaning="noise"),)

    def provenance(self) -> dict[str, Any]:
        """See `Teacher`."""
        return {"batch_size": self.batch_size}

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """See `Teacher`."""
        return [ImageRequest(step, "CAM_F0") for step in self.steps]

    def preprocess(self, image: Image) -> Image:
        """VGGT's own, to 518 pixels across."""
        return preprocess(image, WIDTH)

    def load(self, device: str) -> None:
        """See `Teacher`."""
        self._pool = np.random.default_rng(0).standard_normal((16, *SHAPE)).astype(np.float16)

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        """See `Teacher`."""
        began = time.monotonic()
        self._stamp(began)
        out = self._latents(len(batch))
        time.sleep(max(0.0, self.seconds - (time.monotonic() - began)))
        return out

    def _stamp(self, now: float) -> None:
        if self.stamp is not None:
            Path(self.stamp).write_text(str(now))
            self.stamp = None

    def _latents(self, scenes: int) -> list[Targets]:
        assert self._pool is not None
        return [{"latents": self._pool[i % 16].copy()} for i in range(scenes)]


@dataclass(frozen=True)
class _Flight:
    """A batch of `scenes` on its imitated device, which is at work on it from `began` to `ends` (`time.monotonic`)."""

    began: float
    ends: float
    scenes: int

    def wait(self) -> None:
        time.sleep(max(0.0, self.ends - time.monotonic()))

    @property
    def seconds(self) -> float:
        return self.ends - self.began


@dataclass
class FixedDevice(FixedTeacher):
    """The same as a device of its own: `launch` returns at once, and its batches take `seconds` one after the other."""

    _free: float = 0.0

    def stage(self, batch: Sequence[TeacherInput]) -> int:
        """See `PhasedTeacher`."""
        return len(batch)

    def launch(self, staged: int) -> _Flight:
        """See `PhasedTeacher`."""
        began = time.monotonic()
        self._stamp(began)
        began = max(began, self._free)
        self._free = began + self.seconds
        return _Flight(began, self._free, staged)

    def collect(self, launch: _Flight) -> list[Targets]:
        """See `PhasedTeacher`."""
        launch.wait()
        return self._latents(launch.scenes)


def begin(
    source: Source,
    out: Path,
    teachers: Sequence[Teacher],
    *,
    shard_size: int,
    worker: WorkerConfig,
    stored: SamplesConfig | None = None,
    zarr: bool = True,
) -> tuple[Run, Callable[[], ShardWorker]]:
    """A run that has begun, and what makes its worker (picklable), as `jobs.teachers` does it."""
    samples = SamplesColumn(stored or SamplesConfig(), num_history=source.num_history, num_future=source.num_future)
    manifests = [samples.manifest({}), *(column_manifest(t) for t in teachers)]
    run = runs.begin(source, str(out), manifests, plan_config=PlanConfig(shard_size=shard_size), with_zarr=zarr)
    make = functools.partial(
        ShardWorker,
        source=source,
        volume=run.volume,
        teachers=list(teachers),
        samples=samples,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=shard_size,
        zarr=run.manifest.zarr,
        config=worker,
    )
    return run, make
