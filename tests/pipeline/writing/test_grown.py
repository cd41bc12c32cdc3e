"""Datasets that grow: what was committed stays, what came since has shards of its own, and every reader sees both."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from jobs import export, inspect
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream, StreamConfig
from pipeline.writing import run as runs
from shards_schema import layout
from shards_schema.errors import DatasetError, MismatchError
from tests.chaos.world import digests
from tests.committed import begin, commit
from tests.toys import ToySource, ToyTeacher, write_images

INDICES = {layout.INDEX, layout.QUARANTINE}
SMALL = {"toy": ["mean"]}


@dataclass(frozen=True)
class Source(ToySource):
    """Some scenes of some logs, under a filter that is told."""

    told: Mapping[str, Any] = field(default_factory=dict)
    kept: Callable[[str], bool] = lambda token: True

    def describe(self) -> dict[str, Any]:
        return {"kind": "toy", "root": self.root, **self.told}

    def scan(self, *, processes: int = 1) -> Any:
        scan = super().scan(processes=processes)
        refs = tuple(ref for ref in scan.refs if self.kept(ref.token))
        return type(scan)(refs, unreadable=scan.unreadable)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data")
    write_images(root, 6, 12)
    return str(root)


@pytest.fixture(scope="module")
def grown(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 3 logs, then of 5, without an interruption."""
    out = tmp_path_factory.mktemp("grown") / "out"
    commit(ToySource(data, logs=3), out, [ToyTeacher()])
    commit(ToySource(data, logs=5), out, [ToyTeacher()])
    return out


def members(out: Path) -> dict[str, bytes]:
    """Column/name -> bytes of every member of every tar, by Python's own reader."""
    found: dict[str, bytes] = {}
    for path in sorted(out.rglob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found[f"{path.parent.name}/{member.name}"] = file.read()
    return found


def test_nothing_of_what_was_committed_is_touched(data: str, grown: Path, tmp_path: Path) -> None:
    commit(ToySource(data, logs=3), tmp_path / "small", [ToyTeacher()])
    small, large = digests(tmp_path / "small"), digests(grown)
    changed = {path for path in small if large[path] != small[path]}
    arrays = {path for path in changed if path.endswith("/zarr.json")}
    assert changed - arrays == {layout.INDEX, "toy/statistics.parquet"}  # nothing was quarantined
    assert len(arrays) == len([p for p in small if p.endswith("/zarr.json")]) - 3  # all but root and groups
    new = {p.split("/")[0] for p in large.keys() - small.keys()}
    assert new == {"plan.1.json", "plan.1.parquet", "samples", "toy", layout.ZARR}


def test_every_reader_sees_both(data: str, grown: Path, tmp_path: Path) -> None:
    """A dataset of all five logs from the start has other shards, and the same samples, byte by byte."""
    report = verify(str(grown))
    assert (report.faults, dict(report.incomplete), report.planned) == ((), {}, 25)
    commit(ToySource(data, logs=3), tmp_path / "small", [ToyTeacher()])
    commit(ToySource(data, logs=5), tmp_path / "whole", [ToyTeacher()])
    assert members(grown) == members(tmp_path / "whole")
    dataset, small = Dataset(str(grown)), Dataset(str(tmp_path / "small"))
    assert dataset.tokens("samples", "toy")[:15] == small.tokens("samples", "toy")
    assert dataset.plan.table.slice(0, 15).equals(small.plan.table)
    assert dataset.plan.counts()[: small.plan.shards] == small.plan.counts()
    group = zarr.open_group(str(grown / layout.ZARR), mode="r")
    tokens = np.asarray(group["samples/token"])
    assert len(tokens) == dataset.plan.shards * 6
    for token, row in zip(*(dataset.plan.table[c].to_pylist() for c in ("token", "row")), strict=True):
        assert tokens[row] == token
        assert np.array_equal(np.asarray(group["toy/grid"])[row], dataset.read(token, {"toy": ["grid"]})["toy"]["grid"])
    index = pq.read_table(grown / layout.INDEX).to_pandas()
    assert set(index[index["column"] == "toy"].token) == set(tokens) - {""}
    whole = Dataset(str(tmp_path / "whole")).statistics("toy", "mean")
    assert np.allclose(dataset.statistics("toy", "mean").mean, whole.mean)


def test_the_order_of_what_there_was_is_as_it_was(data: str, grown: Path, tmp_path: Path) -> None:
    commit(ToySource(data, logs=3), tmp_path / "small", [ToyTeacher()])
    small = ShardStream(Dataset(str(tmp_path / "small")), SMALL, StreamConfig(seed=4))
    dataset = Dataset(str(grown))
    kept = ShardStream(dataset, SMALL, StreamConfig(seed=4), tokens=small.tokens)
    every = ShardStream(dataset, SMALL, StreamConfig(seed=4))
    assert kept.digest == small.digest != every.digest
    for epoch in (0, 1):
        assert kept.order_of(epoch).tolist() == small.order_of(epoch).tolist()
        assert sorted(every.order_of(epoch).tolist()) == list(range(25))


@pytest.mark.parametrize("writes", range(6))
def test_a_growth_that_is_interrupted(
    data: str, grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """After each of its first writes (table, document, array after array), and in its work: then the same command."""
    out = tmp_path / "out"
    commit(ToySource(data, logs=3), out, [ToyTeacher()])
    real, left = Volume.put, [writes]

    def put(self: Volume, name: str, content: bytes) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(Volume, "put", put)
        with pytest.raises(KeyboardInterrupt):
            begin(ToySource(data, logs=5), out, [ToyTeacher()])
    commit(ToySource(data, logs=5), out, [ToyTeacher()], shards=1)
    report = verify(str(out))
    assert report.incomplete == {"samples": 1, "toy": 1}
    run = commit(ToySource(data, logs=5), out, [ToyTeacher()])
    assert run.grown == 0
    assert digests(out) == digests(grown)


def test_a_growth_while_the_first_plan_is_not_done(data: str, grown: Path, tmp_path: Path) -> None:
    commit(ToySource(data, logs=3), tmp_path / "out", [ToyTeacher()], shards=1)
    run = commit(ToySource(data, logs=5), tmp_path / "out", [ToyTeacher()])
    assert run.grown == 10
    assert digests(tmp_path / "out") == digests(grown)


def test_it_grows_again_and_a_column_may_come_later(data: str, grown: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(grown, tmp_path / "out"))
    before = digests(out)
    run = commit(ToySource(data, logs=6), out, [])  # the samples alone; the arrays of `toy` grow all the same
    assert (run.grown, run.plan.samples) == (5, 30)
    kept = {p: d for p, d in digests(out).items() if p in before and not p.endswith("zarr.json") and p not in INDICES}
    assert kept == {p: d for p, d in before.items() if p in kept}
    report = verify(str(out))
    assert (report.faults, dict(report.incomplete)) == ((), {"toy": 1})
    commit(ToySource(data, logs=6), out, [ToyTeacher(), ToyTeacher(name="second", gain=2.0)])
    report = verify(str(out))
    assert (report.faults, dict(report.incomplete), report.written["second"]) == ((), {}, 30)


def test_inspect_tells_all_of_it(grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.main([f"out={grown}", f"page={tmp_path}/page.html"])
    told = capsys.readouterr().out
    assert "25 samples in 5 shards" in told
    assert "in 2 generations" in told
    assert "finished: every shard" in told


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({}, {"logs": 2}, r"5 of the 15 planned scenes are not in the source .* of log log02; a dataset only grows"),
        (
            {"told": {"filter": {"frame_interval": None}}, "kept": lambda token: token[-1] in "15"},
            {"told": {"filter": {"frame_interval": 1}}},
            r"would add \d+ scenes, and is another one .*\(source\.filter\.frame_interval: null on disk, 1 here\)",
        ),
        ({"told": {"rate": 2}}, {"told": {"rate": 10}}, r"is another one than .*\(source\.rate: 2 on disk, 10 here\)"),
        (
            {"told": {"filter": {"has_route": True, "log_names": ["a"]}}},
            {"told": {"filter": {"has_route": False, "log_names": ["b"]}}, "logs": 5},
            r"would add 10 scenes.*\(source\.filter\.has_route: true on disk, false here\)",
        ),
        ({}, {"unreadable": {"log02": "cut short"}, "logs": 2}, r"of log log02 \(cut short\)"),
    ],
)
def test_what_is_no_growth_is_refused_and_named(
    data: str, tmp_path: Path, first: dict[str, Any], then: dict[str, Any], words: str
) -> None:
    commit(Source(data, **first), tmp_path / "out", [])
    before = digests(tmp_path / "out")
    with pytest.raises(MismatchError, match=words):
        begin(Source(data, **then), tmp_path / "out", [])
    assert digests(tmp_path / "out") == before


def test_what_is_one(data: str, tmp_path: Path) -> None:
    """Another place of the same files, more tokens of the same logs, more logs."""
    out = tmp_path / "out"
    told: list[dict[str, Any]] = [
        {"filter": {"tokens": {"count": 6, "sha256": "a"}}, "camera_frame": "ego", "context_frames": 1},
        {"filter": {"tokens": {"count": 15, "sha256": "b"}}, "camera_frame": "ego"},
        {"filter": {"tokens": None}, "camera_frame": "ego", "context_frames": 2},
    ]
    commit(Source(data, told=told[0], kept=lambda token: token[-1] in "12"), out, [])
    more_around = {**told[0], "context_frames": 4, "filter": {"tokens": ["of the same scenes"]}}
    assert commit(Source(data, told=more_around, kept=lambda token: token[-1] in "12"), out, []).grown == 0
    moved = shutil.copytree(data, tmp_path / "moved")
    for number, (source, more) in enumerate(
        [(Source(str(moved), told=told[1]), 9), (Source(str(moved), told=told[2], logs=4), 5)], 1
    ):
        run = commit(source, out, [])
        assert run.grown == more
        assert (out / layout.generation(number)).is_file()
    assert verify(str(out)).faults == ()


def test_an_export_has_all_of_it(grown: Path, tmp_path: Path) -> None:
    assert export.main([f"out={grown}", f"to={tmp_path / 'a.jsonl'}", "columns=[toy]"]) == 0
    tokens = [json.loads(line)["token"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert tokens == list(Dataset(str(grown)).tokens("samples", "toy"))


def test_a_damaged_generation_is_named(grown: Path, tmp_path: Path) -> None:
    for name, words in {"plan.1.json": "plan.1.json", "plan.1.parquet": r"plan\.1\.(parquet|json)"}.items():
        out = Path(shutil.copytree(grown, tmp_path / name))
        (out / name).write_bytes((out / name).read_bytes()[:-9])
        with pytest.raises(DatasetError, match=words):
            verify(str(out))
        with pytest.raises(DatasetError, match=words):
            Dataset(str(out)).plan  # noqa: B018
    other = tmp_path / "other"
    shutil.copytree(grown, other)
    commit(Source(str(tmp_path / "none"), logs=1), tmp_path / "foreign", [], shards=0)
    shutil.copy(tmp_path / "foreign" / layout.DATASET, other / layout.DATASET)
    with pytest.raises(DatasetError, match="generation of another dataset"):
        Dataset(str(other), columns=()).plan  # noqa: B018


def test_a_remote_one(grown: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(grown), "/grown", recursive=True)
    try:
        far, near = Dataset("memory://grown"), Dataset(str(grown))
        assert far.tokens("samples", "toy") == near.tokens("samples", "toy")
        assert verify("memory://grown").faults == ()
    finally:
        memory.rm("/grown", recursive=True)


def test_a_run_tells_what_it_found_more(data: str, tmp_path: Path) -> None:
    commit(ToySource(data, logs=3), tmp_path / "out", [])
    run, worker = begin(ToySource(data, logs=4), tmp_path / "out", [])
    worker.close()
    assert (run.grown, len(run.todo())) == (5, 1)
    assert [task.shard for task in run.todo()] == [run.plan.shards - 1]
    with pytest.raises(Exception, match="no commit record"):
        runs.close(run)
