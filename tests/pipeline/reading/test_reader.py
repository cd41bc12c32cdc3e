"""Random access to committed shards: exact values, no copies, and an error that names the place for every fault."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import zarr
from fsspec.implementations.memory import MemoryFileSystem

import last_shards as ls
from pipeline.reading.reader import Dataset, opened
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream
from shards_schema import layout
from shards_schema.errors import AbsentError, ConfigError, DatasetError, DigestError, MissingFileError, QuarantinedError
from tests.committed import commit, flip
from tests.toys import ToySource, ToyTeacher, write_images

POISONED = f"{1:08x}{3:08x}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reader")
    write_images(root / "data", logs=3, frames=9)
    commit(ToySource(str(root / "data")), root / "out", [ToyTeacher(poison=POISONED)])
    return root / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def remote(made: Path) -> Any:
    fs = fsspec.filesystem("memory")
    fs.put(str(made), "/reader", recursive=True)
    yield "memory://reader"
    fs.rm("/reader", recursive=True)


def shard_of(url: Path, token: str) -> int:
    plan = pq.read_table(url / layout.PLAN).to_pylist()
    return next(row["shard"] for row in plan if row["token"] == token)


def test_values_equal_what_webdataset_and_zarr_read(made: Path) -> None:
    dataset = Dataset(str(made))
    group = zarr.open_group(str(made / layout.ZARR), mode="r")
    rows = {token: row for row, token in enumerate(group["samples/token"][:])}  # type: ignore[index, arg-type]
    seen = 0
    for shard in range(3):
        for column in ("samples", "toy"):
            for stored in webdataset.WebDataset(str(made / layout.tar(column, shard)), shardshuffle=False).decode():
                token = stored["__key__"]
                sample = dataset.read(token, {column: None})[column]
                seen += 1
                if column == "samples":
                    assert set(sample) == {"json", "cam_f0.jpg"}
                    assert sample["json"] == stored["json"]
                    assert sample["cam_f0.jpg"][:2] == b"\xff\xd8"
                else:
                    assert set(sample) == {"grid", "mean", "path"}
                    assert np.array_equal(sample["path"], stored["path.npy"])
                    assert np.array_equal(sample["grid"], group["toy/grid"][rows[token]])  # type: ignore[index]
    assert seen == 15 + 14


def test_tokens_come_in_plan_order_and_join(made: Path) -> None:
    dataset = Dataset(str(made))
    plan = pq.read_table(made / layout.PLAN)["token"].to_pylist()
    assert dataset.tokens("samples") == tuple(plan)
    assert dataset.tokens("samples", "toy") == dataset.tokens("toy") == tuple(t for t in plan if t != POISONED)
    assert dataset.plan.table["token"].to_pylist() == plan
    assert set(dataset.columns) == {"samples", "toy"}
    assert list(dataset.specs("toy")) == ["grid", "mean", "path"]
    assert dataset.members("samples") == ("cam_f0.jpg", "json")


def test_arrays_are_read_only_views_that_outlive_their_map(made: Path) -> None:
    dataset = Dataset(str(made), max_open=1)
    token = dataset.tokens("toy")[0]
    grid = dataset.read(token, {"toy": ["grid"]})["toy"]["grid"]
    assert not grid.flags.writeable
    assert not grid.flags.owndata
    assert grid.flags.aligned
    before = grid.copy()
    for other in dataset.tokens("samples"):
        dataset.read(other, {"samples": ["json"]})
    del dataset
    gc.collect()
    assert np.array_equal(grid, before)


def test_only_what_is_asked_for_is_touched(out: Path) -> None:
    shutil.rmtree(out / "samples")
    for name in (layout.INDEX, layout.QUARANTINE, layout.PLAN):
        (out / name).unlink()
    dataset = Dataset(str(out), columns=["toy"])
    token = dataset.tokens("toy")[0]
    assert dataset.read(token, {"toy": ["mean"]})["toy"]["mean"].shape == (3,)


def test_member_names_as_in_the_tar_work_too(made: Path) -> None:
    dataset = Dataset(str(made))
    token = dataset.tokens("toy")[0]
    both = dataset.read(token, {"toy": ["mean", "mean.npy"]})["toy"]
    assert np.array_equal(both["mean"], both["mean.npy"])


def test_unknown_names_say_what_there_is(made: Path) -> None:
    dataset = Dataset(str(made))
    token = dataset.tokens("toy")[0]
    with pytest.raises(AbsentError, match=r"no column 'toi' is open; did you mean toy\?") as caught:
        dataset.read(token, {"toi": None})
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, DatasetError)
    with pytest.raises(AbsentError, match=r"column toy has no 'gird' in its tars; did you mean grid\?"):
        dataset.read(token, {"toy": ["gird"]})
    with pytest.raises(AbsentError, match=r"no 'future' in its tars \(it stands in targets.zarr only\)"):
        dataset.read(token, {"samples": ["future"]})
    with pytest.raises(AbsentError, match=r"token feed is in no plan of this dataset; it has 14 tokens"):
        dataset.read("feed", {"toy": None})
    with pytest.raises(AbsentError, match="no column 'vggt'"):
        Dataset(str(made)).tokens("vggt")


def test_a_quarantined_token_is_an_error_with_its_reason(made: Path) -> None:
    dataset = Dataset(str(made))
    with pytest.raises(QuarantinedError, match="non_finite: target grid: 1 of 4608 values") as caught:
        dataset.read(POISONED)
    assert caught.value.code == "non_finite"
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    assert set(dataset.quarantined("toy")) == {POISONED}
    assert dataset.read(POISONED, {"samples": ["json"]})["samples"]["json"]["token"] == POISONED


def test_a_shard_without_a_record_does_not_exist(out: Path) -> None:
    token = Dataset(str(out)).tokens("toy")[0]
    shard = shard_of(out, token)
    (out / layout.record("toy", shard)).unlink()
    dataset = Dataset(str(out))
    assert token not in dataset.tokens("toy")
    assert token in dataset.tokens("samples")
    with pytest.raises(AbsentError, match=f"is planned for shard {shard}, which is not committed"):
        dataset.read(token, {"toy": ["mean"]})


def test_a_missing_tar_is_named(out: Path) -> None:
    dataset = Dataset(str(out))
    token = dataset.tokens("toy")[0]
    path = layout.tar("toy", shard_of(out, token))
    (out / path).unlink()
    with pytest.raises(MissingFileError, match=f"shard {shard_of(out, token)}, .*{path} is not there"):
        dataset.read(token)


def test_a_cut_tar_is_named(out: Path) -> None:
    dataset = Dataset(str(out))
    token = dataset.tokens("toy")[0]
    path = layout.tar("toy", shard_of(out, token))
    data = (out / path).read_bytes()
    (out / path).write_bytes(data[:-1])
    with pytest.raises(DatasetError, match=f"{path}: {len(data) - 1} bytes, its commit record says {len(data)}"):
        dataset.read(token)
    (out / path).write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{path}: 0 bytes"):
        dataset.read(token)


def test_a_flipped_bit_is_found_when_digests_are_checked(out: Path) -> None:
    """What the reader does by default is in test_checksums.py."""
    token = Dataset(str(out)).tokens("toy")[0]
    shard = shard_of(out, token)
    path = out / layout.tar("toy", shard)
    record = json.loads((out / layout.record("toy", shard)).read_text())
    offset, size, _ = record["members"]["mean.npy"][record["tokens"].index(token)]
    clean = Dataset(str(out)).read(token, {"toy": ["mean"]})["toy"]["mean"].copy()
    flip(path, offset + size - 1)
    unchecked = Dataset(str(out), check_members=False)
    assert not np.array_equal(unchecked.read(token, {"toy": ["mean"]})["toy"]["mean"], clean)
    with pytest.raises(DigestError, match=f"shard {shard}, .*toy/{shard:06d}.tar: sha256"):
        Dataset(str(out), check_digests=True).read(token, {"toy": ["mean"]})
    flip(path, offset + size - 1)
    assert np.array_equal(Dataset(str(out), check_digests=True).read(token, {"toy": ["mean"]})["toy"]["mean"], clean)
    flip(path, offset)  # in the magic of the .npy: found without any checksum
    with pytest.raises(DatasetError, match=rf"{token}.mean.npy: not a .npy array"):
        Dataset(str(out), check_members=False).read(token, {"toy": ["mean"]})


def test_records_of_another_run_are_refused(out: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "data", logs=3, frames=9)
    commit(ToySource(str(tmp_path / "data")), tmp_path / "other", [ToyTeacher(gain=2.0)])
    shutil.copy(tmp_path / "other" / layout.record("toy", 1), out / layout.record("toy", 1))
    with pytest.raises(DatasetError, match="the record belongs to another run"):
        Dataset(str(out))
    flip(out / layout.record("toy", 1), 40)
    with pytest.raises(DatasetError, match=r"000001\.json"):
        Dataset(str(out))


def test_a_path_is_a_place_too(made: Path) -> None:
    dataset = Dataset(made)
    token = dataset.tokens("toy")[0]
    assert dataset.url == str(made)
    for twin in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert twin.read(token, {"samples": ["json"]})["samples"]["json"]["token"] == token
    assert next(iter(ls.webdataset(made, ["toy"])))["__url__"] == f"{made}/{layout.tar('toy', 0)}"
    assert not ls.verify(made).faults


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"dataset\.json is not there"):
        Dataset(str(tmp_path))


def test_many_threads_read_the_same_values(made: Path) -> None:
    dataset = Dataset(str(made), max_open=1, check_digests=True)
    tokens = dataset.tokens("samples", "toy")
    expected = {t: dataset.read(t, {"toy": ["grid"]})["toy"]["grid"].copy() for t in tokens}

    def one(i: int) -> bool:
        token = tokens[i % len(tokens)]
        sample = dataset.read(token, {"toy": ["grid"], "samples": ["json"]})
        return np.array_equal(sample["toy"]["grid"], expected[token]) and sample["samples"]["json"]["token"] == token

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(400)))


def test_pickles_and_forks_open_files_of_their_own(made: Path) -> None:
    dataset = Dataset(str(made), columns=["toy"], check_digests=True)
    token = dataset.tokens("toy")[0]
    mean = dataset.read(token)["toy"]["mean"]
    for twin in (pickle.loads(pickle.dumps(dataset)), copy.copy(dataset)):
        assert set(twin.columns) == {"toy"}
        assert np.array_equal(twin.read(token)["toy"]["mean"], mean)


def test_a_fork_reads_no_document_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker of a loader would read every commit record of the dataset, before its first sample."""
    dataset = Dataset(str(made))
    plan = dataset.plan
    monkeypatch.setattr(Volume, "read", lambda self, path: pytest.fail(f"{path} was read again"))
    child = copy.copy(dataset)
    assert child.plan is plan
    assert opened(child).files is not opened(dataset).files
    assert child.read(dataset.tokens("toy")[0], {"samples": ["json"]})


def test_a_store_is_read_by_ranges(made: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, int | None]] = []
    cat_file = MemoryFileSystem.cat_file

    def watched(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        if path.endswith(".tar"):
            asked.append((start, end))
        return cat_file(self, path, start=start, end=end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", watched)
    local, far = Dataset(str(made)), Dataset(remote)
    token = local.tokens("toy")[0]
    wanted = {"toy": ["mean"], "samples": ["json"]}
    here, there = local.read(token, wanted), far.read(token, wanted)
    assert np.array_equal(here["toy"]["mean"], there["toy"]["mean"])
    assert here["samples"] == there["samples"]
    assert len(asked) == 2
    assert all(start and end and end - start < 20_000 for start, end in asked)
    assert far.tokens("samples", "toy") == local.tokens("samples", "toy")
    Dataset(remote, check_digests=True).read(token, wanted)


def test_faults_of_a_store_name_the_file(remote: str) -> None:
    fs = fsspec.filesystem("memory")
    dataset = Dataset(remote)
    token = dataset.tokens("toy")[-1]
    name = f"/reader/{layout.tar('toy', dataset.plan.shards - 1)}"
    data = fs.cat_file(name)
    fs.pipe_file(name, data[:1024])
    with pytest.raises(DatasetError, match=f"{name}: 1024 bytes, its commit record says {len(data)}"):
        dataset.read(token, {"toy": None})
    fs.pipe_file(name, data[:-1] + b"x")
    with pytest.raises(DigestError, match=name):
        Dataset(remote, check_digests=True).read(token, {"toy": None})
    fs.rm(name)
    with pytest.raises(MissingFileError, match=f"{name} is not there"):
        dataset.read(token, {"toy": None})


def test_a_tar_that_is_cut_while_it_is_open_is_an_error(out: Path) -> None:
    """Where values are copied; a view of the mapped file would end the process."""
    dataset = Dataset(str(out))
    token = dataset.tokens("toy")[-1]
    path = out / layout.tar("toy", shard_of(out, token))
    size = path.stat().st_size
    assert dataset.read(token, {"toy": ["grid"]}, owned=True)["toy"]["grid"].shape
    below = opened(dataset)
    (kind,) = below._values._kinds.values()
    grid = np.empty(kind.shape, kind.dtype)
    unread = below.take(below.find(token, {"toy": ["grid"]}), "unread")["toy"]["grid"]
    os.truncate(path, 1024)
    with pytest.raises(DatasetError, match=f"{path}: 1024 bytes, its commit record says {size}"):
        unread.into(grid)
    samples = out / layout.tar("samples", shard_of(out, token))
    dataset.read(token, {"samples": ["json"]})
    os.truncate(samples, 1024)
    with pytest.raises(DatasetError, match=f"{samples}: 1024 bytes"):
        dataset.read(token, {"samples": ["cam_f0.jpg"]})


def test_files_are_closed_when_their_dataset_goes(made: Path) -> None:
    def opened() -> int:
        return sum(os.readlink(f"/proc/self/fd/{n}").endswith(".tar") for n in os.listdir("/proc/self/fd") if _is(n))

    before = opened()
    dataset = Dataset(str(made), max_open=2)
    for token in dataset.tokens("toy"):
        dataset.read(token, owned=True)
    assert 0 < opened() - before <= 2
    view = dataset.read(token)["toy"]["grid"]
    del dataset  # not by the garbage collector: nothing refers to it in a circle
    assert opened() == before  # a map has none
    del view
    assert opened() == before


def _is(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_what_is_asked_for_wrongly_is_told_with_what_there_is(made: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no column 'toyy': .*/column.json is not there; did you mean toy\?"):
        Dataset(str(made), columns=["toyy"])
    with pytest.raises(AbsentError, match=r"'toy' is one text; write \['toy'\]"):
        Dataset(str(made), columns="toy")
    dataset = Dataset(str(made))
    token = dataset.tokens("toy")[0]
    with pytest.raises(AbsentError, match=r"'mean' is one text; write \['mean'\]"):
        dataset.read(token, {"toy": "mean"})
    with pytest.raises(AbsentError, match=r"'mean' is one text"):
        ShardStream(dataset, {"toy": "mean"})
    for asked in (["toy"], "toy"):
        with pytest.raises(AbsentError, match="targets are asked for by column, as"):
            dataset.read(token, asked)
        with pytest.raises(AbsentError, match="targets are asked for by column, as"):
            ShardStream(dataset, asked)
    with pytest.raises(AbsentError, match=r"token 0 is in no plan of this dataset; it has \d+ tokens, e\.g\. "):
        dataset.read(0)
    with pytest.raises(ConfigError, match=r"expected a dataset that is open, as Dataset\('out'\) is, got 'out'"):
        ShardStream("out", {"toy": None})
    with pytest.raises(ConfigError, match=r"stream: batchsize: unknown key; did you mean batch_size\?"):
        ShardStream(dataset, {"toy": None}, {"batchsize": 8})
    assert ShardStream(dataset, {"toy": None}, {"batch_size": 2}).config.batch_size == 2


def test_its_repr_is_short(made: Path) -> None:
    told = repr(Dataset(str(made)))
    assert told.startswith(f"Dataset('{made}': begun with ")
    assert "samples " in told
    assert len(told) < 200 + len(str(made))
