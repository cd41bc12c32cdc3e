"""`pipeline.stream.webdataset`: every sample once, over nodes and workers, and a fault is an error."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from pipeline.reading.reader import Dataset
from pipeline.stream.webdataset import webdataset
from shards_schema import layout
from shards_schema.errors import AbsentError, DatasetError, IncompleteError
from tests.committed import commit
from tests.pipeline.stream.stream_toys import make
from tests.toys import ToySource, ToyTeacher, write_images

COLUMNS, TARGETS = ["samples", "toy"], {"toy": ["mean", "grid"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("webdataset"))


def test_samples_are_those_of_the_reader(out: str) -> None:
    dataset = Dataset(out)
    found = list(webdataset(out, COLUMNS, TARGETS))
    assert [sample["__key__"] for sample in found] == list(dataset.tokens("samples", "toy"))
    for sample in found:
        right = dataset.read(sample["__key__"])
        np.testing.assert_array_equal(sample["toy.grid"], right["toy"]["grid"])
        assert sample["toy.grid"].dtype == right["toy"]["grid"].dtype
        assert sample["samples.json"] == right["samples"]["json"]
        assert sample["samples.cam_f0.jpg"].dtype == np.uint8
        assert sample["samples.cam_f0.jpg"].ndim == 3
        assert Path(sample["__url__"]).is_file()
        assert "toy.path" not in sample


def test_encoded_targets_are_decoded(tmp_path: Path) -> None:
    out = make(tmp_path, storage={"toy": {"grid": "int8"}})
    assert next(iter(webdataset(out, ["toy"])))["toy.grid"].dtype == np.float32


def test_a_sample_that_a_column_lacks_is_not_joined(tmp_path: Path) -> None:
    bad = "0000000100000003"
    out = make(tmp_path, poison=bad)
    assert bad not in {sample["__key__"] for sample in webdataset(out, COLUMNS, TARGETS)}
    assert bad in {sample["__key__"] for sample in webdataset(out, ["samples"])}


def test_workers_share_the_samples(out: str) -> None:
    loader = wds.WebLoader(webdataset(out, COLUMNS, TARGETS, shardshuffle=10), batch_size=None, num_workers=2)
    counts = Counter(sample["__key__"] for sample in loader)
    assert counts == Counter(Dataset(out).tokens("toy"))


def test_nodes_share_the_samples(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        mine = [sample["__key__"] for sample in webdataset(out, COLUMNS, TARGETS, shardshuffle=10)]
        assert mine
        counts.update(mine)
    assert counts == Counter(Dataset(out).tokens("toy"))


def test_it_pickles_for_workers_that_are_spawned(out: str) -> None:
    again = pickle.loads(pickle.dumps(webdataset(out, ["toy"], TARGETS)))
    assert len(list(again)) == len(Dataset(out).tokens("toy"))


def test_a_damaged_shard_is_an_error_and_not_a_shorter_epoch(tmp_path: Path) -> None:
    out = make(tmp_path)
    tar = Path(out) / layout.tar("toy", 1)
    tar.write_bytes(tar.read_bytes()[:-4096])
    with pytest.raises(DatasetError, match=r"shard 1"):
        list(webdataset(out, COLUMNS, TARGETS))


def test_an_unfinished_dataset_is_an_error_unless_allowed(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 3, 9)
    commit(ToySource(str(tmp_path / "data")), tmp_path / "out", [ToyTeacher()], shards=1, zarr=False)
    out = str(tmp_path / "out")
    with pytest.raises(IncompleteError, match="allow_incomplete=True"):
        webdataset(out, COLUMNS)
    assert list(webdataset(out, COLUMNS, allow_incomplete=True))


def test_an_unknown_target_is_told_at_once(out: str) -> None:
    with pytest.raises(AbsentError, match="has no 'gird'"):
        webdataset(out, COLUMNS, {"toy": ["gird"]})
