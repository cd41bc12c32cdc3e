"""The whole job against the bare teacher loop: what share of the teacher's own speed is left when all is done.

The ceiling is a loop that does nothing but call the teacher on batches that lie ready. Against it: the plain worker in
threads, and the same worker in Ray actors, which read, decode, resize, batch, teach, hash, write both stores with
fsync, and commit. Time runs from the moment that the (last) worker is ready to the last receipt, so the filling and the
emptying of the pipeline count. The teacher sleeps: an imitated GPU that takes no CPU, and no more is claimed.

With `pdm` in the recipe the scenes are a generated town's, and NAVSIM's PDM works beside the imitated GPU, on the CPU.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import Field

from benchmarks.measure import spread, temporary
from benchmarks.workload import (
    CLIP,
    FUTURE,
    HEIGHT,
    HISTORY,
    LATENT_BYTES,
    WIDTH,
    FixedDevice,
    FixedTeacher,
    WindowSource,
    begin,
    write_logs,
)
from cluster import driver, session
from pipeline.sources import registry as sources
from pipeline.sources.base import Source
from pipeline.writing import run as runs
from pipeline.writing.task import ShardReceipt
from pipeline.writing.worker import WorkerConfig
from reports.tables import table
from shards_schema.inputs.models import StrictModel
from teachers import registry
from teachers.base import Teacher, TeacherInput

TOWN_FUTURE = 10
"""What `pdm` asks for."""


class Load(StrictModel):
    """One workload: images of `size` (width, height), and a teacher that takes `batch_ms` for `batch_size` scenes."""

    size: tuple[int, int]
    batch_ms: float
    batch_size: int = 8
    pdm: bool = False
    """Whether the recipe has the real `pdm` too; then shards have a quarter of `shard_size`, for it takes its time."""


class Config(StrictModel):
    """Knobs."""

    loads: tuple[Load, ...] = (
        Load(size=(480, 270), batch_ms=80),
        Load(size=(1920, 1080), batch_ms=160),
        Load(size=(480, 270), batch_ms=640, pdm=True),
    )
    """What is run. Full HD costs a core 9 ms an image against 1 ms, so two cores are asked for half the speed; `pdm`
    costs one some 30 ms a scene, so they are asked for an eighth."""
    shards: int = Field(default=8, ge=1)
    """Of a run; each is one log."""
    shard_size: int = Field(default=96, ge=1)
    """Scenes a shard; small, so that many begin and end in a short run."""
    repeats: int = Field(default=3, ge=1)
    """Of each variant, taken in turn."""
    actors: tuple[int, ...] = (1,)
    """Ray actors, each number a row; several share this machine's cores. None of them: without Ray."""
    worker: WorkerConfig = WorkerConfig(device="cpu")
    """Of both variants."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one variant.

    Attributes:
        rate: scenes a second.
        busy: teacher seconds over seconds.
        start: seconds from the driver's first step to a worker that is ready.
        first: seconds from a ready worker to its teacher's first batch.
    """

    rate: float
    busy: float
    start: float
    first: float


def run(config: Config) -> None:
    print(
        f"a clip of {CLIP} frames a scene, decoded and resized to {WIDTH} x {HEIGHT}; {LATENT_BYTES / 1e6:.1f} MB of "
        f"latents a scene, written twice (tar, Zarr);\n{config.worker.shards_in_flight} in "
        f"flight, {config.worker.decode_threads} decode threads, "
        f"{config.repeats} runs of each, taken in turn"
    )
    for load in config.loads:
        _run_load(config, load)


def _windows(root: Path, load: Load, logs: int, scenes: int) -> tuple[Source, list[Teacher]]:
    """So many logs of so many scenes, and no teacher beside the imitated one."""
    frames = (scenes + HISTORY + FUTURE - 1,) * logs
    write_logs(root, frames, load.size)
    return WindowSource(str(root), frames), []


def _town(root: Path, load: Load, logs: int, scenes: int) -> tuple[Source, list[Teacher]]:
    """Generated drives with a front camera, so many logs of so many scenes; and `pdm`."""
    told = {"kind": "synthetic", "root": str(root), "logs": logs, "width": load.size[0], "height": load.size[1]}
    windows = {"frame_interval": 1, "num_history_frames": HISTORY, "num_future_frames": TOWN_FUTURE}
    frames = scenes + HISTORY + TOWN_FUTURE - 1
    source = sources.build({**told, "frames": frames, "cameras": ["CAM_F0"], "lidar_points": 0, "filter": windows})
    return source, [registry.build("pdm", {"maps_root": str(root / "maps")})]


def _run_load(config: Config, load: Load) -> None:
    if load.pdm:
        config = config.model_copy(update={"shard_size": max(load.batch_size, config.shard_size // 4)})
    with temporary() as root:
        source, beside = (_town if load.pdm else _windows)(root / "data", load, config.shards, config.shard_size)
        size = next((root / "data").rglob("*.jpg")).stat().st_size
        print(
            f"\n{load.size[0]} x {load.size[1]} JPEGs of {size / 1e3:.0f} kB; teacher {load.batch_ms:.0f} ms a batch "
            f"of {load.batch_size}{', and pdm beside it' if load.pdm else ''}; {config.shards} shards of "
            f"{config.shard_size} scenes\n",
            flush=True,
        )
        variants: dict[str, Callable[[], Outcome]] = {
            "bare teacher loop (ceiling)": lambda: _bare(config, load),
            "worker in threads": lambda: _plain(config, load, source, beside, root / "out"),
        }
        for actors in config.actors:
            variants[f"worker in {actors} Ray actor{'s' * (actors > 1)}"] = partial(
                _ray, config, load, source, beside, root / "out", actors
            )
        outcomes: dict[str, list[Outcome]] = {name: [] for name in variants}
        for _ in range(config.repeats):
            for name, variant in variants.items():
                outcomes[name].append(variant())
                shutil.rmtree(root / "out", ignore_errors=True)
        ceiling = median(o.rate for o in outcomes["bare teacher loop (ceiling)"])
        rows = [
            [
                name,
                spread([o.rate for o in done], 1),
                spread([o.rate / ceiling for o in done], 2),
                spread([100 * o.busy for o in done]),
                f"{median(o.start for o in done):.2f}",
                f"{median(o.first for o in done):.2f}",
            ]
            for name, done in outcomes.items()
        ]
        print(table(["", "scenes/s", "/ bare loop", "teacher busy %", "start s", "first batch s"], rows), flush=True)


def _teacher(load: Load, stamp: Path | None = None) -> FixedTeacher:
    kind = FixedDevice if load.pdm else FixedTeacher
    return kind(seconds=load.batch_ms / 1e3, batch_size=load.batch_size, stamp=None if stamp is None else str(stamp))


def _bare(config: Config, load: Load) -> Outcome:
    teacher = _teacher(load)
    teacher.load("cpu")
    images = np.zeros((CLIP, HEIGHT, WIDTH, 3), np.uint8)
    scene = WindowSource("", (HISTORY + FUTURE,)).scenes("log000", WindowSource("", (HISTORY + FUTURE,)).scan().refs)[0]
    batch = [TeacherInput(scene, images)] * load.batch_size  # type: ignore[arg-type]
    batches = config.shards * (config.shard_size // load.batch_size)
    busy = 0.0
    began = time.monotonic()
    for _ in range(batches):
        entered = time.monotonic()
        teacher.compute(batch)
        busy += time.monotonic() - entered
    seconds = time.monotonic() - began
    return Outcome(batches * load.batch_size / seconds, busy / seconds, 0.0, 0.0)


def _plain(config: Config, load: Load, source: Source, beside: list[Teacher], out: Path) -> Outcome:
    stamp = out.parent / "stamp"
    run, make = begin(source, out, [_teacher(load, stamp), *beside], shard_size=config.shard_size, worker=config.worker)
    began = time.monotonic()
    worker = make()
    worker.load()
    ready = time.monotonic()
    with ThreadPoolExecutor(config.worker.shards_in_flight) as pool:
        receipts = list(pool.map(worker.process, run.todo()))
    ended = time.monotonic()
    worker.close()
    runs.close(run)
    return _outcome(receipts, began, ready, ended, stamp)


def _ray(config: Config, load: Load, source: Source, beside: list[Teacher], out: Path, actors: int) -> Outcome:
    stamp = out.parent / "stamp"
    run, make = begin(source, out, [_teacher(load, stamp), *beside], shard_size=config.shard_size, worker=config.worker)
    ray = session.ClusterConfig(workers=actors, cpus=max(actors, 2))
    receipts: list[tuple[float, ShardReceipt]] = []
    times: list[float] = []
    began = time.monotonic()
    with session.session(ray):
        driver.drive(
            run.todo(),
            make,
            config=ray,
            in_flight=config.worker.shards_in_flight,
            on_start=lambda pid: times.append(time.monotonic()),
            on_receipt=lambda receipt: receipts.append((time.monotonic(), receipt)),
        )
    runs.close(run)
    counted = [receipt for at, receipt in receipts if at > times[-1]]
    return _outcome(counted, began, times[-1], receipts[-1][0], stamp)


def _outcome(receipts: list[ShardReceipt], began: float, ready: float, ended: float, stamp: Path) -> Outcome:
    scenes = sum(c.written for r in receipts for c in r.columns if c.column == "latents")
    busy = sum(c.teacher_seconds for r in receipts for c in r.columns if c.column == "latents")
    seconds = ended - ready
    return Outcome(scenes / seconds, busy / seconds, ready - began, float(stamp.read_text()) - ready)
