"""`verify` of a dataset that is being made, was interrupted, or cannot be read: what is said, and what is no fault."""

from __future__ import annotations

import builtins
import errno
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import verify as verify_job
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.stores.volume import Volume
from pipeline.writing import run as runs
from shards_schema import layout
from shards_schema.errors import MissingFileError, StoreError
from tests.committed import begin, commit
from tests.toys import ToySource, ToyTeacher, write_images


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ToySource:
    root = tmp_path_factory.mktemp("toy")
    write_images(root, 2, 9)
    return ToySource(str(root), logs=2)


@pytest.fixture(scope="module")
def clean(source: ToySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "out"
    commit(source, out, [ToyTeacher()])
    return out


class Killed(BaseException):
    """What no handler of ours catches: as good as a SIGKILL, but for files under way."""


def _interrupted(source: ToySource, out: Path, before: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends before it puts the first file that `before` says."""
    put = Volume.put

    def killed(self: Volume, name: str, data: bytes) -> object:
        if before(name):
            raise Killed
        return put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Volume, "put", killed)
        with pytest.raises(Killed):
            commit(source, out, [ToyTeacher()])


def test_every_place_where_a_run_can_stop(
    source: ToySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[str] = []
    put = Volume.put
    with monkeypatch.context() as patch:
        patch.setattr(Volume, "put", lambda self, name, data: (names.append(name), put(self, name, data))[1])
        commit(source, tmp_path / "whole", [ToyTeacher()])
    names = names[names.index(layout.DATASET) + 1 :]  # before that there is no dataset
    assert {layout.record("samples", 0), layout.record("toy", 1), layout.QUARANTINE} <= set(names)
    kinds = {re.sub(r"\d+", "N", name.replace("samples", "toy")): name for name in names}  # one of each
    for number, stop in enumerate(kinds.values()):
        out = tmp_path / str(number)
        _interrupted(source, out, lambda name, stop=stop: name == stop, monkeypatch)  # type: ignore[misc]
        (out / layout.LOCK).touch()  # a killed run leaves it
        report = verify(str(out))
        assert report.faults == (), stop
        assert report.unfinished, stop
        shutil.rmtree(out)

    out = tmp_path / "one"
    _interrupted(source, out, lambda name: name == layout.record("toy", 0), monkeypatch)
    (out / layout.LOCK).touch()
    (out / layout.TEMP).mkdir(exist_ok=True)
    (out / layout.TEMP / "toy%000001.tar.abc").touch()
    assert verify_job.main([f"out={out}"]) == verify_job.UNFINISHED
    told = capsys.readouterr().out
    assert "shards of column toy have no commit record" in told
    assert "nothing is wrong in what is there" in told
    (out / "toy/notes.txt").touch()  # nobody writes that, in any state
    assert verify_job.main([f"out={out}"]) == 1
    commit(source, out, [ToyTeacher()])
    assert [f.path for f in verify(str(out)).faults] == ["toy/notes.txt"]


def test_an_orphan_of_a_finished_dataset_is_a_fault(clean: Path, tmp_path: Path) -> None:
    for orphan in ("toy/000009.tar", "targets.zarr/toy/mean/c/9/0", "targets.zarr/other/zarr.json", "notes.txt"):
        out = tmp_path / "out"
        shutil.copytree(clean, out)
        (out / orphan).parent.mkdir(exist_ok=True)
        (out / orphan).write_bytes(b"{}")
        assert [f.path for f in verify(str(out)).faults] == [orphan]
        shutil.rmtree(out)


def test_a_record_that_was_withdrawn_leaves_the_shard_unfinished(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "out")
    (tmp_path / "out" / layout.LOGS).mkdir(exist_ok=True)
    (tmp_path / "out" / layout.record("toy", 0)).rename(tmp_path / "out" / layout.LOGS / "toy.000000.json")
    report = verify(str(tmp_path / "out"))
    assert report.faults == ()
    assert report.unfinished == ("1 shards of column toy have no commit record",)


def test_a_column_that_came_later_and_was_not_closed(source: ToySource, clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "out")
    run, worker = begin(source, tmp_path / "out", [ToyTeacher(name="more")])
    for task in run.todo():
        worker.process(task)
    worker.close()
    report = verify(str(tmp_path / "out"))
    assert report.faults == ()
    assert report.unfinished == (
        f"{run.plan.shards} shards were committed after the tables of the dataset were written",
    )
    (tmp_path / "out" / layout.INDEX).write_bytes((clean / layout.QUARANTINE).read_bytes())
    assert [f.path for f in verify(str(tmp_path / "out")).faults][:1] == [layout.INDEX]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """From now on a path cannot be opened, as the system says of a bad disk, a right that lacks, a stale handle."""
    real, hit = builtins.open, dict[str, int]()

    def opened(path: object, *arguments: object, **more: object) -> object:
        if (number := hit.get(str(path))) is not None:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", opened)
    return lambda path, number: hit.update({str(path): number})


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_verify_goes_on_where_it_cannot_read(
    clean: Path, tmp_path: Path, failing: Callable[[Path, int], None], number: int
) -> None:
    out = tmp_path / "out"
    shutil.copytree(clean, out)
    unread = ["samples/000000.json", "samples/000001.tar", "toy/column.json", "targets.zarr/zarr.json", "index.parquet"]
    (out / "samples/000002.tar").write_bytes(b"damaged")
    for name in unread[:2]:
        failing(out / name, number)
    faults = {fault.path: fault.what for fault in verify(str(out)).faults}
    assert set(faults) == {*unread[:2], "samples/000002.tar"}
    assert f"could not be read: {os.strerror(number)}" in faults[unread[0]]
    assert ("ulimit -n" in faults[unread[0]]) == (number == errno.EMFILE)
    for name in unread:
        failing(out / name, number)
    assert {*unread[:4], "samples/000002.tar"} <= {fault.path for fault in verify(str(out)).faults}


@pytest.mark.parametrize("name", ["dataset.json", "samples/column.json", "samples/000000.json", "plan.parquet"])
def test_job_and_reader_say_that_they_could_not_read(
    source: ToySource, clean: Path, tmp_path: Path, failing: Callable[[Path, int], None], name: str
) -> None:
    shutil.copytree(clean, tmp_path / "out")
    failing(tmp_path / "out" / name, errno.EIO)
    told = f"{name}: could not be read: Input/output error"
    if name != "plan.parquet":  # a run has made its own
        with pytest.raises(StoreError, match=told):
            runs.close(begin(source, tmp_path / "out", [ToyTeacher()])[0])
    with pytest.raises(StoreError, match=told):
        Dataset(str(tmp_path / "out")).plan  # noqa: B018


def test_what_cannot_be_looked_at_is_not_absent(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that takes a failed look for "there is no dataset.json" writes another one."""
    shutil.copytree(clean, tmp_path / "out")
    volume = Volume(str(tmp_path / "out"))

    def fails(*_: object, **__: object) -> object:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fails)
        patch.setattr(os, "scandir", fails)
        patch.setattr(os, "open", fails)
        for look in (
            lambda: volume.exists(layout.DATASET),
            lambda: volume.size(layout.DATASET),
            lambda: volume.names("toy"),
            lambda: volume.folders(""),
            volume.walk,
        ):
            with pytest.raises(StoreError, match="could not be read"):
                look()
    assert not volume.exists("nothing/at/all")
    assert volume.names("nothing") == []
    with pytest.raises(MissingFileError):
        volume.size("nothing")


def test_a_tar_that_cannot_be_read_is_not_called_gone(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(str(clean))
    token = dataset.tokens("toy")[0]
    real = os.open

    def fails(path: object, *arguments: object, **more: object) -> object:
        if str(path).endswith(".tar"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(StoreError, match="could not be read: Too many open files"):
        dataset.read(token, {"toy": ["mean"]})


def test_a_large_shard_size_costs_no_memory(source: ToySource, tmp_path: Path) -> None:
    """Neither to plan, nor to write, nor to read everything back: memory goes by the scenes that there are."""
    tracemalloc.start()
    commit(source, tmp_path / "out", [ToyTeacher()], shard_size=100_000)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert verify(str(tmp_path / "out")).faults == ()
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written < 60 << 20
    assert read < 60 << 20
