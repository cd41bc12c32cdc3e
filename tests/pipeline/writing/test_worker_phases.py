"""The worker with a teacher in phases: same bytes, who runs what where, how far it runs ahead, and whose an error is.

The device is a thread with a queue, as a GPU is one: `launch` returns at once, and what was launched is done later.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.reading.verify import verify
from pipeline.stores.records import committed
from pipeline.writing import run as runs
from pipeline.writing.task import ShardReceipt
from shards_schema import layout
from teachers.base import PhasedTeacher, Targets, TeacherInput
from tests.committed import begin
from tests.toys import ToySource, ToyTeacher, write_images


class Device:
    """Does what is put in, one after the other, in a thread of its own."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._serve, daemon=True).start()

    def put(self, job: Any) -> None:
        self._queue.put(job)

    def _serve(self) -> None:
        while True:
            self._queue.get()()


class Job:
    """A launch: done when the device has come to it."""

    def __init__(self, teacher: Phased, batch: Sequence[TeacherInput]) -> None:
        self._teacher, self._batch = teacher, batch
        self._done = threading.Event()
        self.targets: list[Targets] = []
        self.error: Exception | None = None
        self.seconds = 0.0

    def __call__(self) -> None:
        if self._teacher.until_two:
            self._teacher.two.wait(timeout=60)  # or the test says that there never were two
        try:
            self.targets = self._teacher.compute(self._batch)
        except Exception as error:
            self.error = error
        self.seconds = 0.25
        self._teacher.note("done", -1)
        self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self.error is not None:
            raise self.error


@dataclass
class Phased(ToyTeacher):
    """The toy in phases; counts what is under way in each, and who did it."""

    until_two: bool = False
    fail_at: str = ""
    device: Any = field(default_factory=Device, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = {"staged": 0, "launched": 0}
        self.most = {"staged": 0, "launched": 0}
        self.threads: dict[str, set[str]] = {}
        self.two = threading.Event()

    def note(self, what: str, change: int) -> None:
        where = threading.current_thread().name.split("_")[0]
        with self._lock:
            self.threads.setdefault(what, set()).add(where)
            counted = {"stage": "staged", "collect": "staged", "launch": "launched", "done": "launched"}[what]
            self.counts[counted] += change
            self.most[counted] = max(self.most[counted], self.counts[counted])
            if self.counts["launched"] == 2:
                self.two.set()

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        if self.fail_at == "device":
            raise ValueError("the device is on fire")
        return super().compute(batch)

    def stage(self, batch: Sequence[TeacherInput]) -> list[TeacherInput]:
        self.note("stage", 1)
        if self.fail_at == "stage":
            raise ValueError("does not stack")
        return [TeacherInput(item.scene, item.images.copy()) for item in batch]

    def launch(self, staged: list[TeacherInput]) -> Job:
        self.note("launch", 1)
        if self.fail_at == "launch":
            raise ValueError("does not start")
        job = Job(self, staged)
        self.device.put(job)
        return job

    def collect(self, launch: Job) -> list[Targets]:
        launch.wait()
        self.note("collect", -1)
        return launch.targets


@pytest.fixture
def source(tmp_path: Path) -> ToySource:
    write_images(tmp_path / "data", logs=3, frames=12)
    return ToySource(str(tmp_path / "data"), frames=12)


def make(source: ToySource, out: Path, teacher: ToyTeacher, threads: int = 2) -> list[ShardReceipt]:
    run, worker = begin(source, out, [teacher], shard_size=8)
    with ThreadPoolExecutor(threads) as pool:
        receipts = list(pool.map(worker.process, run.todo()))
    worker.close()
    runs.close(run)
    return receipts


def content(out: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name.split("/")[0] not in (layout.LOGS, layout.TEMP)}


def test_phases_change_no_byte(source: ToySource, tmp_path: Path) -> None:
    (Path(source.root) / "log01/004.jpg").write_bytes(b"")  # holes in batches
    teacher = Phased(batch_size=3)
    assert isinstance(teacher, PhasedTeacher)
    assert not isinstance(ToyTeacher(), PhasedTeacher)
    make(source, tmp_path / "plain", ToyTeacher(batch_size=3))
    for threads in (1, 3):
        make(source, tmp_path / f"phased{threads}", Phased(batch_size=3), threads=threads)
        assert content(tmp_path / f"phased{threads}") == content(tmp_path / "plain")
    assert verify(str(tmp_path / "phased3")).faults == ()


def test_a_batch_that_is_wholly_quarantined_is_never_staged(source: ToySource, tmp_path: Path) -> None:
    for log in range(3):
        for frame in range(12):
            (Path(source.root) / f"log{log:02d}/{frame:03d}.jpg").write_bytes(b"")
    teacher = Phased(batch_size=3)
    receipts = make(source, tmp_path / "out", teacher)
    assert teacher.threads == {}
    assert sum(c.quarantined.get("image_empty", 0) for r in receipts for c in r.columns if c.column == "toy") == 24


def test_each_phase_in_its_thread_and_no_further_ahead_than_said(source: ToySource, tmp_path: Path) -> None:
    teacher = Phased(batch_size=1, until_two=True)
    receipts = make(source, tmp_path / "out", teacher, threads=2)
    assert teacher.threads == {
        "stage": {"column"}, "launch": {"launch"}, "collect": {"column"}, "done": teacher.threads["done"],
    }  # fmt: skip
    assert teacher.counts == {"staged": 0, "launched": 0}
    assert teacher.most["launched"] == 2, "one at work and one in the queue, or the device waits"
    assert 2 <= teacher.most["staged"] <= 4, "two a column, of two shards in flight"
    batches = sum(c.written for r in receipts for c in r.columns if c.column == "toy")
    assert sum(c.teacher_seconds for r in receipts for c in r.columns) == pytest.approx(0.25 * batches), "its own clock"


@dataclass
class Waiting(ToyTeacher):
    """Without phases; each batch of it takes until the device has done all of the other column's."""

    until: Any = None

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        assert self.until.wait(timeout=120), "a launch stood behind a teacher that only computes"
        return super().compute(batch)


@dataclass
class Counting(Phased):
    """Tells when the device has done `batches`."""

    batches: int = 0
    all_done: Any = field(default_factory=threading.Event, repr=False, compare=False)

    def note(self, what: str, change: int) -> None:
        super().note(what, change)
        if what == "done":
            self.batches -= 1
            if not self.batches:
                self.all_done.set()


def test_no_launch_waits_for_a_teacher_that_only_computes(source: ToySource, tmp_path: Path) -> None:
    phased = Counting(name="phased", batch_size=2, batches=4)
    run, worker = begin(source, tmp_path / "out", [phased, Waiting(batch_size=8, until=phased.all_done)], shard_size=8)
    receipt = worker.process(run.todo()[0])
    worker.close()
    assert {c.column: (c.written, c.launched) for c in receipt.columns} == {
        layout.SAMPLES: (8, False), "phased": (8, True), "toy": (8, False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("where", "message"), [("stage", "does not stack"), ("launch", "does not start"), ("device", "on fire")]
)
def test_an_error_ends_the_shard_and_the_worker_lives(
    where: str, message: str, source: ToySource, tmp_path: Path
) -> None:
    teacher = Phased(batch_size=3, fail_at=where)
    run, worker = begin(source, tmp_path / "out", [teacher], shard_size=8)
    tasks = run.todo()
    with pytest.raises(ValueError, match=message):
        worker.process(tasks[0])
    assert committed(run.volume, "toy") == []
    teacher.fail_at = ""
    receipt = worker.process(tasks[0])
    worker.close()
    assert [c.written for c in receipt.columns] == [8, 8]
    assert committed(run.volume, "toy") == [tasks[0].shard]
