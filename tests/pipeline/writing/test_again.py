"""Samples that were left out are made again when their cause is gone; the result is as if it had never been there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.reading.verify import verify
from pipeline.stores.records import committed, read_record
from pipeline.stores.volume import Volume
from pipeline.stores.withdrawn import latest, settle, withdraw
from pipeline.writing import run as runs
from pipeline.writing.again import choose
from pipeline.writing.worker import ShardWorker
from shards_schema import layout
from shards_schema.errors import ShardsError, StoreError
from tests.chaos.world import digests
from tests.committed import begin, commit
from tests.toys import ToySource, ToyTeacher, write_images

BAD = ("log00/005.jpg", "log02/003.jpg")
"""Three scenes of `toy` want each of them, and one of `samples`."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root, 3, 9)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a dataset that had everything from the start."""
    out = tmp_path_factory.mktemp("whole") / "out"
    commit(ToySource(str(data)), out, [ToyTeacher()])
    return digests(out)


@pytest.fixture
def source(data: Path, tmp_path: Path) -> ToySource:
    """Without the bad images."""
    root = shutil.copytree(data, tmp_path / "data")
    for name in BAD:
        (root / name).unlink()
    return ToySource(str(root))


def bring(data: Path, source: ToySource, names: Sequence[str] = BAD) -> None:
    for name in names:
        shutil.copy(data / name, Path(source.root) / name)


def again(source: ToySource, out: Path, codes: Sequence[str] | None = None) -> set[tuple[int, str]]:
    """What would be made again now; nothing is changed."""
    volume = Volume(str(out))
    done = {(shard, column) for column in ("samples", "toy") for shard in committed(volume, column)}
    return set(choose(volume, source.scan(), done, codes, complete=len(done) == 6).pairs)


def test_images_that_arrive(data: Path, source: ToySource, tmp_path: Path, whole: dict[str, str]) -> None:
    out = tmp_path / "out"
    first = runs.close(commit(source, out, [ToyTeacher()]))
    assert [t.quarantined for t in first] == [{"image_missing": 2}, {"image_missing": 6}]
    before = {
        (column, shard): (out / layout.record(column, shard)).read_bytes()
        for column in ("samples", "toy")
        for shard in committed(Volume(str(out)), column)
    }
    run, worker = begin(source, out, [ToyTeacher()])
    worker.close()
    assert (len(run.todo()), run.again.known) == (0, {"image_missing": 8})
    bring(data, source, BAD[:1])  # one of two: its shard alone
    run = commit(source, out, [ToyTeacher()])
    assert len({shard for shard, _ in run.again.pairs}) == 1
    assert run.again.samples == {"image_missing": 4}
    bring(data, source)
    run = commit(source, out, [ToyTeacher()])
    assert digests(out) == whole
    assert verify(str(out)).faults == ()
    kept = sorted(out.glob("logs/withdrawn/*/*"))
    assert {(p.parent.name, int(p.name[:6])): p.read_bytes() for p in kept} == {
        key: data for key, data in before.items() if json.loads(data)["quarantined"]
    }
    assert all(p.name.endswith(".1.json") for p in kept)


def test_an_unfinished_run_looks_again_too(
    data: Path, source: ToySource, tmp_path: Path, whole: dict[str, str]
) -> None:
    """There is no quarantine.parquet yet: the records say it."""
    commit(source, tmp_path / "out", [ToyTeacher()], shards=2)
    bring(data, source)
    run = commit(source, tmp_path / "out", [ToyTeacher()])
    assert run.again.pairs
    assert digests(tmp_path / "out") == whole


def test_a_log_that_went_away_and_came_back(
    source: ToySource, data: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    bring(data, source)
    os.rename(Path(source.root) / "log01", tmp_path / "away")
    totals = runs.close(commit(source, tmp_path / "out", [ToyTeacher()]))
    assert totals[1].quarantined == {"log_unreadable": 5}
    os.rename(tmp_path / "away", Path(source.root) / "log01")
    commit(source, tmp_path / "out", [ToyTeacher()])
    assert digests(tmp_path / "out") == whole


@pytest.mark.parametrize("steps", range(1, 15, 2))
def test_interrupted_anywhere(
    data: Path, source: ToySource, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """At a step of the disk: at each moment every record vouches for its files, and the same command finishes."""
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    bring(data, source)
    real, left = os.replace, [steps]

    def replace(*names: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*names)

    run, worker = begin(source, out, [ToyTeacher()])
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            _do(worker, run)
    worker.close()
    assert verify(str(out)).faults == ()
    commit(source, out, [ToyTeacher()])
    assert digests(out) == whole
    histories = [p.name for p in out.glob("logs/withdrawn/*/*")]
    assert len(histories) == 4
    assert all(name.endswith(".1.json") for name in histories)


def _do(worker: ShardWorker, run: runs.Run) -> None:
    for task in run.todo():
        worker.process(task)
    runs.close(run)


def test_a_try_that_fails_takes_nothing_back(data: Path, source: ToySource, tmp_path: Path) -> None:
    """The record is withdrawn when its successor is ready, not before."""
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    before = digests(out)
    bring(data, source)

    class Broken(ToyTeacher):
        def compute(self, batch: Any) -> Any:
            raise ShardsError("out of memory")

    run, worker = begin(source, out, [Broken()])
    with pytest.raises(ShardsError, match="out of memory"):
        worker.process(run.todo()[0])
    worker.close()
    kept = {path: digest for path, digest in digests(out).items() if path.startswith("toy/")}
    assert kept.items() <= before.items()


def test_the_same_outcome_is_not_tried_twice(source: ToySource, tmp_path: Path) -> None:
    """A folder in the place of a link's target: listed, and still not there."""
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    for name in BAD:
        (Path(source.root) / name).symlink_to("nowhere")
    assert again(source, out)
    commit(source, out, [ToyTeacher()])
    assert not again(source, out)
    assert again(source, out, ["image_missing"])


def test_codes_by_name(data: Path, source: ToySource, tmp_path: Path, whole: dict[str, str]) -> None:
    bring(data, source)
    out, path = tmp_path / "out", Path(source.root) / BAD[0]
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    commit(source, out, [ToyTeacher()])
    path.write_bytes(good)
    assert not again(source, out)  # nobody reads every damaged image again at each start
    assert not again(source, out, [])
    assert not again(source, out, ["image_empty"])
    found = again(source, out, ["image_empty", "image_damaged"])
    assert {column for _, column in found} == {"samples", "toy"}
    (shard,) = {shard for shard, _ in found}
    run, worker = _asked(source, out, ["image_damaged"])
    worker.process(run.todo()[0])
    worker.close()
    runs.close(run)
    assert digests(out) == whole
    assert read_record(Volume(str(out)), "toy", shard).quarantined == ()


def _asked(source: ToySource, out: Path, codes: Sequence[str]) -> tuple[runs.Run, ShardWorker]:
    real = runs.begin
    made: Callable[..., runs.Run] = lambda *a, **k: real(*a, **k, retry=codes)  # noqa: E731
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runs, "begin", made)
        return begin(source, out, [ToyTeacher()])


def test_a_code_by_name_is_tried_once_a_run_that_ends(source: ToySource, tmp_path: Path) -> None:
    """Given again after an interruption, the command goes on; given again after its end, it begins anew."""
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    every = again(source, out, ["image_missing"])
    run, worker = _asked(source, out, ["image_missing"])
    assert len(run.todo()) == 2
    worker.process(run.todo()[0])  # and here it is interrupted
    worker.close()
    run, worker = _asked(source, out, ["image_missing"])
    assert len(run.todo()) == 1
    worker.process(run.todo()[0])
    worker.close()
    runs.close(run)
    assert again(source, out, ["image_missing"]) == every
    assert sorted(p.name[-7:] for p in out.glob("logs/withdrawn/*/*")) == [".1.json"] * len(every)


def test_withdrawing(tmp_path: Path) -> None:
    """Once a run; what has no record has nothing to take back; a root that is gone is not made anew."""
    (tmp_path / "out").mkdir()
    volume = Volume(str(tmp_path / "out"))
    withdraw(volume, "toy", 3)
    assert latest(volume, "toy", 3) is None
    for text in (b"1", b"2"):
        volume.put(layout.record("toy", 3), text)
        withdraw(volume, "toy", 3)
        volume.put(layout.record("toy", 3), b"again")
        withdraw(volume, "toy", 3)  # by another attempt at the same shard
        assert volume.read(layout.record("toy", 3)) == b"again"
        assert volume.read(str(latest(volume, "toy", 3))) == text
        settle(volume)
    assert [volume.read(layout.withdrawn("toy", 3, n)) for n in (1, 2)] == [b"1", b"2"]
    os.rename(tmp_path / "out", tmp_path / "away")
    with pytest.raises(StoreError):
        withdraw(volume, "toy", 3)
    assert not (tmp_path / "out").exists()


def test_on_a_store(data: Path, source: ToySource) -> None:
    """A move is a copy and a removal there."""
    fs, out = fsspec.filesystem("memory"), "memory://again"
    try:
        commit(source, out, [])  # type: ignore[arg-type]
        bring(data, source)
        run = commit(source, out, [])  # type: ignore[arg-type]
        assert run.again.samples == {"image_missing": 2}
        assert [t.quarantined for t in runs.close(run)] == [{}]
        assert verify(out).faults == ()
        kept = sorted(fs.find("/again/logs/withdrawn"))
        assert [name.rsplit(".", 2)[1:] for name in kept] == [["1", "json"]] * len(run.again.pairs)
    finally:
        fs.rm("/again", recursive=True)
