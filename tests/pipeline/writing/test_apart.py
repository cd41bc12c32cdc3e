"""Teachers in processes of their own: the same bytes, and errors that say what happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.writing import run as runs
from pipeline.writing.apart import ApartError, Processes, takes
from shards_schema import layout
from shards_schema.errors import SampleError, ShardsError
from teachers.base import Needs, Targets, TeacherInput
from tests.committed import begin
from tests.toys import ToySource, ToyTeacher, write_images

NOTHING = Needs()


@dataclass
class Reckoner(ToyTeacher):
    """Reads no image, and sums up the bytes of a token; `fails` names what it does instead."""

    name: str = "reckoner"
    needs: Any = NOTHING
    fails: str = ""

    def requests(self, scene: Any) -> list[Any]:
        return []

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        if self.fails == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails == "sample":
            raise SampleError("bad_map", "no such lane")
        if self.fails:
            raise _OddError(self.fails)
        fill = [sum(item.scene.token.encode()) % 97 for item in batch]
        shapes = {spec.name: ([n or 2 for n in spec.shape], spec.dtype) for spec in self.specs}
        return [{name: np.full(shape, value, dtype) for name, (shape, dtype) in shapes.items()} for value in fill]


class _OddError(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why, lambda: None)


def scenes() -> list[Any]:
    return [ToySource("/nowhere")._scene("log00", start) for start in range(5)]


@pytest.fixture
def one() -> Iterator[Processes]:
    kinds = [Reckoner(), Reckoner(name="dies", fails="dies"), Reckoner(name="sample", fails="sample")]
    processes = Processes([*kinds, Reckoner(name="odd", fails="odd")], 1)
    yield processes
    processes.close()


def test_only_what_reads_no_image_and_has_no_phases_is_apart() -> None:
    assert takes(Reckoner())
    assert not takes(ToyTeacher()), "it does not say what it needs"
    assert not takes(Reckoner(needs=Needs.of([*ToyTeacher().requests(scenes()[0])], "")))


def test_a_batch_and_what_can_happen_to_it(one: Processes) -> None:
    """One process: an error is told and it lives on; where it dies that is told, and the next call has another."""
    here = Reckoner().compute([TeacherInput(scene, np.zeros((0,), np.uint8)) for scene in scenes()])

    def compute(name: str) -> list[Targets]:
        targets, seconds = one.submit(name, scenes()).result(timeout=120)()
        assert 0 < seconds < 60
        return targets

    def same(made: list[Targets]) -> bool:
        return all(np.array_equal(a[k], b[k]) for a, b in zip(made, here, strict=True) for k in b)

    assert same(compute("reckoner"))
    ((first, _),) = one._all
    with pytest.raises(SampleError, match="no such lane") as caught:
        compute("sample")
    assert caught.value.code == "bad_map"
    with pytest.raises(ShardsError, match=r"_OddError: .*odd"):
        compute("odd")
    assert first.poll() is None
    with pytest.raises(ApartError, match="column dies: the process that computed 5 scenes ended with SIGKILL"):
        compute("dies")
    assert same(compute("reckoner"))
    second, talk = one._all[-1]
    assert second.pid != first.pid
    talk.close()  # as the kernel does when the worker is gone, in whatever way
    assert second.wait(60) == 0


def test_processes_change_no_byte(tmp_path: Path) -> None:
    write_images(tmp_path / "data", logs=2, frames=9)
    source = ToySource(str(tmp_path / "data"), logs=2)
    made = {}
    for count in (0, 1):
        out = tmp_path / str(count)
        run, worker = begin(source, out, [ToyTeacher(), Reckoner()], shard_size=8, compute_processes=count)
        for task in run.todo():
            receipt = worker.process(task)
            assert [c.written for c in receipt.columns] == [len(task.scenes)] * 3
        started = len(worker._apart._all)
        worker.close()
        runs.close(run)
        assert bool(started) == bool(count)
        files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
        made[count] = {n: p.read_bytes() for n, p in files.items() if n.split("/")[0] not in (layout.LOGS, layout.TEMP)}
    assert made[0] == made[1]
