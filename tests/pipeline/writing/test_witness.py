"""Images that were exchanged between two runs of a dataset are noticed before shards of both are mixed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cluster.timings import Timings
from pipeline.writing import run as runs
from shards_schema import layout
from shards_schema.errors import MismatchError
from tests.chaos.world import digests
from tests.committed import begin
from tests.toys import ToySource, ToyTeacher, write_images


@pytest.fixture
def source(tmp_path: Path) -> ToySource:
    write_images(tmp_path / "data", logs=3, frames=9)
    return ToySource(str(tmp_path / "data"))


def commit(source: ToySource, out: Path, teachers: list[ToyTeacher], *, shards: int | None = None) -> runs.Run:
    """As the job does it: with each shard's log."""
    run, worker = begin(source, out, teachers)
    with Timings(run.volume) as timings:
        for task in run.todo()[:shards]:
            timings.put(worker.process(task))
    worker.close()
    if shards is None:
        runs.close(run)
    return run


def exchange(data: Path, log: int) -> None:
    """Other pixels under the same names, and as many bytes as there were."""
    for path in (data / f"log{log:02d}").iterdir():
        other = (data / f"log{(log + 1) % 3:02d}" / path.name).read_bytes()
        path.write_bytes(other[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))


def test_other_images_of_a_committed_log_end_the_run_before_it_works(source: ToySource, tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    run = commit(source, out, [ToyTeacher()], shards=1)
    log = run.plan.shard(run.todo()[0].shard).scenes[0].ref.log
    shutil.copytree(data, tmp_path / "kept")
    exchange(data, int(log[3:]))
    before = digests(out)
    with pytest.raises(MismatchError, match=rf"{log}/\d+\.jpg of log {log} has .*images were exchanged.*logs/\*\.json"):
        commit(source, out, [ToyTeacher()])
    assert digests(out) == before
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "kept", data)  # the former images, with other times
    os.utime(data / log / "002.jpg", (0, 0))
    commit(source, out, [ToyTeacher()])
    commit(source, tmp_path / "clean", [ToyTeacher()])
    assert digests(out) == digests(tmp_path / "clean")


def test_a_column_is_not_added_from_other_images(source: ToySource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    commit(source, out, [])
    exchange(tmp_path / "data", 1)
    commit(source, out, [])  # nothing to do: nothing can be mixed
    with pytest.raises(MismatchError, match=r"log01.*1 of the 3 committed logs"):
        commit(source, out, [ToyTeacher()])
    shutil.rmtree(out / layout.LOGS)  # as the message says, where they are as good
    commit(source, out, [ToyTeacher()])


def test_what_cannot_be_looked_at_says_nothing(source: ToySource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = commit(source, out, [ToyTeacher()], shards=1)
    shard = run.todo()[0].shard
    name = out / layout.shard_log(shard)
    (witness,) = json.loads(name.read_bytes())["read"].values()
    assert witness["size"] == os.path.getsize(witness["path"])
    for damaged in (b"{", b"[]", b"{}", b'{"read": []}', b'{"read": {"log00": 3}}'):
        name.write_bytes(damaged)
        begin(source, out, [ToyTeacher()])
