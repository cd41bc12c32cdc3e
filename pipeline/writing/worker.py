"""The shard worker: a plain class that turns one planned shard at a time into committed columns.

    process(task)   records -> images wanted -> decode pool ----+
                                                                v
                    in each column's thread: batch -> stage -> [ launch, one at a time ] -> collect -> writer -> commit
                                             batch ----------> [ compute, one at a time ] ----------> writer -> commit

`process` may be called from two or three threads at once, and should be: while one shard holds the teacher, the next
one's images are being decoded and the last one's files are being written, so the teacher does not wait. A teacher
in phases (`teachers.base.PhasedTeacher`) holds the launching thread only to put a batch into the device's queue:
stacking, copies and taking apart are done beside it. The device has one batch at work and one in its queue at most. A
teacher without phases computes in another thread, one batch of all such teachers at a time, and no launch waits for it.

Batches follow from the plan alone (rows k*B .. k*B+B-1 of the shard, less the quarantined), never from timing. Memory
is bounded by the shards in flight: their small images, two batches of inputs and two of targets each. No Ray here, and
no argv.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from pydantic import Field

from pipeline.sources.base import Source
from pipeline.stores.column import ColumnShardWriter
from pipeline.stores.volume import Volume
from pipeline.writing import ground, witness
from pipeline.writing.apart import Processes, takes
from pipeline.writing.device import device_name, refuse_absent, resolved
from pipeline.writing.device_queue import DeviceQueue
from pipeline.writing.images import ShardImages, read_image
from pipeline.writing.samples import SamplesColumn, StoredImage
from pipeline.writing.task import ColumnReceipt, ShardReceipt, ShardTask
from shards_schema import layout
from shards_schema.errors import MismatchError, SampleError
from shards_schema.inputs.models import StrictModel
from shards_schema.manifests import ColumnManifest, ZarrMode
from shards_schema.plan import PlannedScene
from shards_schema.records import Scene
from shards_schema.storage import storage_of
from teachers.base import ImageRequest, Launch, PhasedTeacher, TakenInput, Targets, Teacher, TeacherInput, fingerprint


class WorkerConfig(StrictModel):
    """How one worker uses its machine; none of it changes a byte of the output."""

    device: str = "auto"
    """Where the teachers run: "cpu", "cuda", "cuda:1"; "auto" is cuda where there is one."""
    decode_threads: int = Field(default=4, ge=1, le=1024)
    """Threads that read, decode and shrink images."""
    shards_in_flight: int = Field(default=2, ge=1, le=64)
    """Shards that a worker holds at once; memory grows with it."""
    torch_threads: int | None = Field(default=None, ge=1, le=1024)
    """Intra-op threads of a teacher on the CPU; None leaves torch's default."""
    compute_processes: int = Field(default=0, ge=0, le=256)
    """Processes for teachers that are Python on the CPU and read no image, as `pdm`; 0 computes them in a thread."""
    sandbox: bool = False
    """Decode every image in a process of its own, not only those of a shard at which a worker died: slower, and no
    image can end a worker (see `pipeline.writing.sandbox`)."""


class ShardWorker:
    """Holds the teachers of one device and makes shards with them.

    Args:
        source: where scenes come from.
        volume: where shards go.
        teachers: constructed, not loaded.
        samples: the `samples` column.
        manifests: column name -> what the driver wrote into `column.json`.
        dataset: seal of `dataset.json`.
        shard_size: of the plan.
        zarr: whether to write Zarr as well as tars.
        config: threads and device.
    """

    def __init__(
        self,
        *,
        source: Source,
        volume: Volume,
        teachers: Sequence[Teacher],
        samples: SamplesColumn,
        manifests: Mapping[str, ColumnManifest],
        dataset: str,
        shard_size: int,
        zarr: ZarrMode,
        config: WorkerConfig,
    ) -> None:
        self._source, self._volume = source, volume
        self._teachers = {t.name: t for t in teachers}
        self._samples = samples
        self._manifests = manifests
        self._dataset, self._shard_size, self._zarr = dataset, shard_size, zarr
        self._config = config
        self._queued: deque[Launch] = deque()
        self._launching = DeviceQueue("launch", self._make_room)
        self._computing = DeviceQueue("compute")
        apart = [t for t in teachers if takes(t)] if config.compute_processes else []
        self._apart = Processes(apart, max(1, config.compute_processes), config.torch_threads)
        self._tickets = itertools.count()
        self._pool = ThreadPoolExecutor(config.decode_threads, "decode")

    @property
    def device(self) -> str:
        """As configured."""
        return self._config.device

    def load(self) -> None:
        """Build the networks and read the weights.

        Raises:
            MismatchError: a teacher here is not the one that the driver wrote down (other weights on this machine).
            ConfigError: this machine has no such device.
        """
        device = resolved(self._config.device)
        refuse_absent(device)
        if self._config.torch_threads is not None:
            torch.set_num_threads(self._config.torch_threads)
        for name, teacher in self._teachers.items():
            manifest = self._manifests[name]
            here, recorded = fingerprint(teacher, storage_of(manifest.targets)), manifest.identity
            if here != recorded:
                raise MismatchError(
                    f"column {name}: the driver recorded fingerprint {recorded[:12]}, this worker has {here[:12]}; "
                    "do the machines see the same weights?"
                )
            teacher.load(device)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._launching.close()
        self._computing.close()
        self._apart.close()

    def process(self, task: ShardTask) -> ShardReceipt:
        """Make and commit the columns of one shard. Safe to call from `shards_in_flight` threads at once."""
        began = time.perf_counter()
        ticket = next(self._tickets)
        shard = _OpenShard(task, ticket, self._load_scenes(task.scenes))
        consumers = {name: t for name, t in self._teachers.items() if name in task.columns}
        images = ShardImages(
            partial(read_image, absent=shard.absent()),
            {name: _preprocess(t) for name, t in consumers.items()} | {layout.SAMPLES: self._samples.make},
            sandbox=task.sandbox or self._config.sandbox,
        )
        for planned, scene in shard.good():
            self._want(shard, planned, scene, images, task.columns)
        images.start(self._pool)
        try:
            # side by side, so that what all of them made of an image is taken, and freed, at about the same time
            with ThreadPoolExecutor(len(task.columns), "column") as threads:
                receipts = tuple(threads.map(lambda name: self._column(shard, name, images), task.columns))
        finally:
            images.drop()
        return ShardReceipt(
            shard=task.shard,
            columns=receipts,
            decodes=images.decodes,
            images=images.unique,
            seconds=time.perf_counter() - began,
            host=socket.gethostname(),
            device=device_name(resolved(self._config.device)),
            read=witness.of_shard(task, shard.paths, images.seen),
        )

    def _load_scenes(self, scenes: Sequence[PlannedScene]) -> list[Scene | SampleError]:
        """The records of every scene, each log opened once; a scene that cannot be had is its error."""
        out: list[Scene | SampleError] = []
        for log, group in groupby(scenes, key=lambda planned: planned.ref.log):
            refs = [planned.ref for planned in group]
            try:
                out += self._source.scenes(log, refs)
            except SampleError as error:
                out += [error] * len(refs)
        return out

    def _want(
        self, shard: _OpenShard, planned: PlannedScene, scene: Scene, images: ShardImages, columns: Sequence[str]
    ) -> None:
        """Announce the images that each column needs of a scene; a column that cannot have them quarantines it."""
        for column in columns:
            try:
                if column == layout.SAMPLES:
                    requests: Iterable[ImageRequest] = self._samples.config.images.values()
                else:
                    requests = self._teachers[column].requests(scene)
                paths = [scene.camera(r.step, r.channel).image for r in requests]
            except SampleError as error:
                shard.fail(column, planned, error)
                continue
            shard.paths[column, planned.row] = paths
            for path in paths:
                images.want(column, path)

    def _column(self, shard: _OpenShard, column: str, images: ShardImages) -> ColumnReceipt:
        still_ours = partial(ground.refuse_other, self._volume, self._dataset, self._manifests[column])
        still_ours()
        writer = ColumnShardWriter(
            self._volume,
            self._manifests[column],
            dataset=self._dataset,
            shard=shard.task.shard,
            shard_size=self._shard_size,
            zarr=self._zarr,
            again=column in shard.task.again,
        )
        with writer:
            if column == layout.SAMPLES:
                self._write_samples(shard, writer, images)
                seconds = 0.0
            else:
                seconds = self._teach(shard, writer, self._teachers[column], images)
            still_ours()
            record = writer.commit([planned.ref.token for planned in shard.task.scenes])
        return ColumnReceipt(
            column=column,
            planned=record.planned,
            written=record.written,
            quarantined=dict(Counter(q.code for q in record.quarantined)),
            size=record.size,
            teacher_seconds=seconds,
            launched=isinstance(self._teachers.get(column), PhasedTeacher),
        )

    def _write_samples(self, shard: _OpenShard, writer: ColumnShardWriter, images: ShardImages) -> None:
        for planned, scene in shard.rows(layout.SAMPLES, writer):
            with _quarantine(writer, planned):
                paths = shard.paths[layout.SAMPLES, planned.row]
                stored: dict[str, StoredImage] = dict(
                    zip(self._samples.config.images, images.take_all(layout.SAMPLES, paths), strict=True)
                )
                members, arrays = self._samples.members(scene, stored), self._samples.arrays(scene)
                writer.add(scene.token, planned.row, members, arrays)

    def _teach(self, shard: _OpenShard, writer: ColumnShardWriter, teacher: Teacher, images: ShardImages) -> float:
        """Batches of rows through the teacher, into the writer. Returns the seconds that the teacher was at work.

        The next batch is staged and waits at the teacher before the one there is done; then this thread writes the one
        before. So two batches of a column are staged or under way at most.
        """
        seconds = 0.0
        sent: _Batch | None = None
        for first in range(0, len(shard.task.scenes), teacher.batch_size):
            batch = self._send(shard, writer, teacher, images, slice(first, first + teacher.batch_size))
            if sent is not None:
                seconds += sent.write(writer)
            sent = batch
        return seconds + (sent.write(writer) if sent is not None else 0.0)

    def _send(
        self, shard: _OpenShard, writer: ColumnShardWriter, teacher: Teacher, images: ShardImages, rows: slice
    ) -> _Batch | None:
        """Gather the images of a batch, waiting for the decode pool, and hand it to the teacher, who alone keeps them.

        What cannot be had is quarantined; None where that is all of it.
        """
        scenes: list[PlannedScene] = []
        inputs: list[TeacherInput] = []
        for planned, scene in shard.rows(teacher.name, writer, rows):
            with _quarantine(writer, planned):
                taken = images.take_all(teacher.name, shard.paths[teacher.name, planned.row])
                inputs.append(TakenInput(scene, taken))
                scenes.append(planned)
        if not inputs:
            return None
        if teacher.name in self._apart.names:
            return _Batch(scenes, self._apart.submit(teacher.name, [item.scene for item in inputs]))
        if isinstance(teacher, PhasedTeacher):
            launch = partial(self._launch, teacher, teacher.stage(inputs))
            return _Batch(scenes, self._launching.submit(shard.ticket, launch))
        return _Batch(scenes, self._computing.submit(shard.ticket, partial(_compute, teacher, inputs)))

    def _launch(self, teacher: PhasedTeacher, staged: Any) -> _Collect:
        """In the launching thread: begin a batch. What it gives is called in the column's thread."""
        launch = teacher.launch(staged)
        self._queued.append(launch)
        return partial(_collect, teacher, launch)

    def _make_room(self) -> None:
        """Wait until the device has nothing but the last batch to do."""
        while len(self._queued) > 1:
            with suppress(Exception):  # what went wrong on the device is told to who collects it
                self._queued.popleft().wait()


_Collect = Callable[[], tuple[list[Targets], float]]
"""Waits for the targets of a batch; gives them, and the teacher's seconds."""


def _compute(teacher: Teacher, inputs: Sequence[TeacherInput]) -> _Collect:
    """In the computing thread: all of a batch."""
    began = time.perf_counter()
    targets = teacher.compute(inputs)
    seconds = time.perf_counter() - began
    return lambda: (targets, seconds)


def _collect(teacher: PhasedTeacher, launch: Launch) -> tuple[list[Targets], float]:
    targets = teacher.collect(launch)
    return targets, launch.seconds


@dataclass(frozen=True, slots=True)
class _Batch:
    """Scenes, and their targets as soon as the teacher has begun or made them."""

    scenes: Sequence[PlannedScene]
    turn: Future[_Collect]

    def write(self, writer: ColumnShardWriter) -> float:
        """Wait for the targets and write them; returns the teacher's seconds."""
        targets, seconds = self.turn.result()()
        for planned, arrays in zip(self.scenes, targets, strict=True):
            writer.add_targets(planned.ref.token, planned.row, arrays)
        writer.check_begun()
        return seconds


@dataclass(slots=True)
class _OpenShard:
    """A task under way: its scenes, and what is known to fail.

    Attributes:
        ticket: when it came to this worker, as a number.
        scenes: aligned with the task's; the error in the place of a scene that cannot be had.
        paths: (column, row) -> the images it will take, in order.
        failed: (column, row) -> why it will not be written.
    """

    task: ShardTask
    ticket: int
    scenes: list[Scene | SampleError]
    paths: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    failed: dict[tuple[str, int], SampleError] = field(default_factory=dict)

    def good(self) -> Iterator[tuple[PlannedScene, Scene]]:
        """The scenes that can be had."""
        for planned, scene in zip(self.task.scenes, self.scenes, strict=True):
            if isinstance(scene, Scene):
                yield planned, scene

    def absent(self) -> frozenset[str]:
        """The paths of images that were not there when the run began."""
        scenes, paths = {scene.token: scene for _, scene in self.good()}, set()
        for token, step, channel in self.task.absent:
            with suppress(KeyError, SampleError):
                paths.add(scenes[token].camera(step, channel).image)
        return frozenset(paths)

    def fail(self, column: str, planned: PlannedScene, error: SampleError) -> None:
        """Note that a column cannot have a scene."""
        self.failed[column, planned.row] = error

    def rows(
        self, column: str, writer: ColumnShardWriter, batch: slice = slice(None)
    ) -> Iterator[tuple[PlannedScene, Scene]]:
        """The scenes of a batch that `column` can have; the others are quarantined in `writer`."""
        for planned, scene in zip(self.task.scenes[batch], self.scenes[batch], strict=True):
            error = scene if isinstance(scene, SampleError) else self.failed.get((column, planned.row))
            if error is not None:
                writer.quarantine(planned.ref.token, planned.row, error)
            else:
                assert isinstance(scene, Scene)
                yield planned, scene


def _preprocess(teacher: Teacher) -> Any:
    return lambda data, image: teacher.preprocess(image)


@contextmanager
def _quarantine(writer: ColumnShardWriter, planned: PlannedScene) -> Iterator[None]:
    """Turn a `SampleError` of the block into a quarantined row."""
    try:
        yield
    except SampleError as error:
        writer.quarantine(planned.ref.token, planned.row, error)
