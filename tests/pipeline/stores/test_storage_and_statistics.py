"""Columns that are stored smaller than computed, and the statistics of every column, from the worker to the reader."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.stores.fidelity import Int8Gate
from pipeline.stores.records import committed
from pipeline.stream import ShardStream, StreamConfig
from shards_schema import layout
from shards_schema.codecs import seal, unseal
from shards_schema.errors import AbsentError, ConfigError, DatasetError, MismatchError, SpecError
from shards_schema.specs import TargetSpec
from teachers.base import Targets, TeacherInput, column_manifest, fingerprint
from tests.committed import begin, commit
from tests.toys import ToySource, ToyTeacher, write_images

CHANNELS = 200
OVERFLOWING, POISONED = f"{1:08x}{3:08x}", f"{2:08x}{4:08x}"


@dataclass
class Tokens(ToyTeacher):
    """Random tokens [30, 200] in float32, fixed by the scene; one channel `massive` times the others."""

    name: str = "tokens"
    massive: float = 1.0
    dtype: str = "float32"
    overflowing: str | None = None
    extra: tuple[TargetSpec, ...] = field(default=())

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        dims, shape = ("token", "channel"), (30, CHANNELS)
        named = {"unit": "1", "meaning": "random", "dims": dims, "shape": shape, "dtype": self.dtype}
        return (
            TargetSpec(name="grid", **named),  # type: ignore[arg-type]
            TargetSpec(name="flat", **named),  # type: ignore[arg-type]
            TargetSpec(name="pose", dims=("pose",), shape=(9,), dtype="float32", unit="1", meaning="no channels"),
        )

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [self.truth(item.scene.token) for item in batch]

    def truth(self, token: str) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng(int(token, 16))
        x = (rng.standard_normal((30, CHANNELS)) + np.arange(CHANNELS) / CHANNELS).astype(self.dtype)
        x[:, 7] *= self.massive  # of a mean near 0
        flat = x * 2
        if token == self.overflowing:
            flat[3, 3] = 1e5
        if token == self.poison:
            flat[3, 3] = np.inf
        return {"grid": x, "flat": flat, "pose": np.arange(9, dtype=np.float32)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ToySource:
    root = tmp_path_factory.mktemp("storage")
    write_images(root / "data", logs=3, frames=9)
    return ToySource(str(root / "data"))


def make(source: ToySource, out: Path, teacher: ToyTeacher, storage: Mapping[str, str] | None = None) -> Path:
    commit(source, out, [teacher], storage={teacher.name: storage or {}})
    return out


def digest(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture(scope="module")
def small(source: ToySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher = Tokens(overflowing=OVERFLOWING, poison=POISONED)
    return make(source, tmp_path_factory.mktemp("small") / "out", teacher, {"grid": "int8", "flat": "float16"})


def test_a_reader_sees_values_and_no_codes(small: Path) -> None:
    dataset = Dataset(str(small))
    assert list(dataset.specs("tokens")) == ["grid", "flat", "pose"]
    assert [s.dtype for s in dataset.specs("tokens").values()] == ["float32", "float16", "float32"]
    assert [s.dtype for s in dataset.columns["tokens"].targets] == ["int8", "float16", "float16", "float32"]
    for token in dataset.tokens("tokens"):
        truth = Tokens().truth(token)
        sample = dataset.read(token)["tokens"]
        assert list(sample) == sorted(sample)
        assert set(sample) == {"grid", "flat", "pose"}
        assert np.abs(sample["grid"] - truth["grid"]).max() < 0.51 * 6 / 127
        assert not sample["grid"].flags.writeable
        assert np.array_equal(sample["flat"], truth["flat"].astype(np.float16))
        assert np.array_equal(dataset.read(token, {"tokens": ["grid.npy"]})["tokens"]["grid.npy"], sample["grid"])
        raw = dataset.read(token, {"tokens": None}, raw=True)["tokens"]
        assert raw["grid"].dtype == np.int8
        assert raw["grid_scale"].shape == (30, 2)
        plain = raw["grid"] * np.repeat(raw["grid_scale"], 128, -1)[:, :CHANNELS].astype(np.float32)
        assert np.array_equal(plain, sample["grid"])


def test_zarr_says_how_to_read_it(small: Path) -> None:
    group: Any = zarr.open_group(str(small / layout.ZARR), mode="r")
    dataset = Dataset(str(small))
    row = int(np.flatnonzero(group["samples/token"][:] == dataset.tokens("tokens")[0])[0])
    assert group["tokens/grid"].attrs["encoding"].startswith("value = this * grid_scale")
    assert group["tokens/grid_scale"].metadata.dimension_names == ("sample", "token", "channel_group")
    values = group["tokens/grid"][row] * np.repeat(group["tokens/grid_scale"][row], 128, -1)[:, :CHANNELS].astype("f4")
    assert np.array_equal(values, dataset.read(dataset.tokens("tokens")[0])["tokens"]["grid"])
    assert "encoding" not in group["tokens/flat"].attrs
    bad = int(np.flatnonzero(group["samples/token"][:] == POISONED)[0])
    assert np.isnan(group["tokens/grid"][bad] * group["tokens/grid_scale"][bad].mean()).all()


def test_bfloat16_is_read_as_float32_and_absent_rows_as_nan(source: ToySource, tmp_path: Path) -> None:
    out = make(source, tmp_path / "out", Tokens(poison=POISONED), {"grid": "bfloat16"})
    dataset = Dataset(str(out))
    token = dataset.tokens("tokens")[1]
    values = dataset.read(token)["tokens"]["grid"]
    assert np.array_equal(values, torch.from_numpy(Tokens().truth(token)["grid"]).bfloat16().float().numpy())
    group: Any = zarr.open_group(str(out / layout.ZARR), mode="r")
    row = int(np.flatnonzero(group["samples/token"][:] == POISONED)[0])
    assert np.isnan((group["tokens/grid"][row].astype(np.uint32) << 16).view(np.float32)).all()
    assert verify(str(out)).faults == ()


def test_overflow_and_infinity_are_told_apart(small: Path) -> None:
    found = Dataset(str(small)).quarantined("tokens")
    assert {token: q.code for token, q in found.items()} == {OVERFLOWING: "overflow", POISONED: "non_finite"}
    assert "largest 1e+05" in found[OVERFLOWING].reason
    assert verify(str(small)).faults == ()


def test_a_stream_gets_values(small: Path) -> None:
    dataset = Dataset(str(small))
    with pytest.raises(DatasetError):
        ShardStream(dataset, {"tokens": ["grod"]})
    stream = ShardStream(dataset, {"tokens": ["grid"]}, StreamConfig(batch_size=4, shuffle="none", threads=1))
    batch = next(iter(stream.batches()))
    assert batch["tokens"]["grid"].dtype == torch.float32
    for token, grid in zip(batch["token"], batch["tokens"]["grid"], strict=True):
        assert np.array_equal(grid.numpy(), dataset.read(token)["tokens"]["grid"])


def test_statistics_are_those_of_what_is_read(small: Path) -> None:
    dataset = Dataset(str(small))
    for name in ("grid", "flat"):
        every = np.concatenate([dataset.read(t)["tokens"][name] for t in dataset.tokens("tokens")]).astype(np.float64)
        found = dataset.statistics("tokens", name)
        assert found.count == len(every) == 13 * 30
        assert np.allclose(found.mean, every.mean(0), rtol=1e-12)
        assert np.allclose(found.std, every.std(0), rtol=1e-9)
        assert np.array_equal(found.min, every.min(0))
        assert np.array_equal(found.max, every.max(0))
        table = pd.read_parquet(small / layout.statistics("tokens"))  # what a stranger reads
        rows = table[table.target == name].set_index("channel")
        assert np.array_equal(rows["mean"], found.mean)
        assert np.allclose(rows["std"], found.std, rtol=1e-15)
    for column, target in (("tokens", "pose"), ("tokens", "grif"), ("samples", "future")):
        with pytest.raises(AbsentError, match="statistics"):
            dataset.statistics(column, target)


def test_shards_in_any_order_and_resumed_runs_give_the_same_bytes(
    source: ToySource, small: Path, tmp_path: Path
) -> None:
    teacher, storage = Tokens(overflowing=OVERFLOWING, poison=POISONED), {"grid": "int8", "flat": "float16"}
    run, worker = begin(source, tmp_path / "out", [teacher], storage={"tokens": storage})
    for task in [*run.todo()][::-1][:2]:
        worker.process(task)
    worker.close()
    with pytest.raises(AbsentError, match="when a run ends"):
        Dataset(str(tmp_path / "out")).statistics("tokens", "grid")
    assert layout.statistics("tokens") not in {f.path for f in verify(str(tmp_path / "out")).faults}
    out = make(source, tmp_path / "out", teacher, storage)
    for path in sorted(p.relative_to(small) for p in small.rglob("*") if p.is_file()):
        assert digest(small / path) == digest(out / path), path


def test_a_shard_without_a_sample_has_empty_sums(source: ToySource, tmp_path: Path) -> None:
    class Blind(Tokens):
        def truth(self, token: str) -> dict[str, NDArray[Any]]:
            return {
                name: x * np.float32(np.nan if token.startswith("00000001") else 1)
                for name, x in super().truth(token).items()
            }

    out = make(source, tmp_path / "out", Blind(), {"grid": "int8"})
    dataset = Dataset(str(out))
    assert len(dataset.tokens("tokens")) == 10
    assert dataset.statistics("tokens", "grid").count == 300
    assert pd.read_parquet(out / layout.shard_statistics("tokens", 1)).empty
    assert verify(str(out)).faults == ()


def test_verify_finds_wrong_statistics(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "out"))
    path = out / layout.statistics("tokens")
    table = pd.read_parquet(path)
    table.loc[3, "mean"] += 1e-3
    table.to_parquet(path)
    assert [f.path for f in verify(str(out)).faults] == [layout.statistics("tokens")]
    path.unlink()
    assert [f.path for f in verify(str(out)).faults] == [layout.statistics("tokens")]


def test_a_damaged_tar_is_the_only_fault(small: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(small, tmp_path / "out"))
    tar = out / layout.tar("tokens", 1)
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    assert [f.path for f in verify(str(out)).faults] == [layout.tar("tokens", 1)]


def test_verify_recomputes_the_sums_of_a_shard(small: Path, tmp_path: Path) -> None:
    """A shard whose record vouches for sums that are not those of its values."""
    out = Path(shutil.copytree(small, tmp_path / "out"))
    mine, other = (layout.shard_statistics("tokens", shard) for shard in (0, 1))
    (out / mine).write_bytes((out / other).read_bytes())
    record = unseal((out / layout.record("tokens", 0)).read_bytes(), "")
    record["files"][mine] = unseal((out / layout.record("tokens", 1)).read_bytes(), "")["files"][other]
    (out / layout.record("tokens", 0)).write_bytes(seal(record, compact=True))
    faults = {f.path: f.what for f in verify(str(out)).faults}
    assert faults[mine] == "not those of the tar's values"
    assert set(faults) == {mine, layout.statistics("tokens")}


def test_another_storage_is_another_column(source: ToySource, small: Path) -> None:
    with pytest.raises(MismatchError, match=r"targets"):
        begin(source, small, [Tokens()], storage={"tokens": {"grid": "int8"}})
    plain = fingerprint(Tokens())
    assert fingerprint(Tokens(), {"grid": "float32"}) == plain
    assert len({plain, *(fingerprint(Tokens(), {"grid": c}) for c in ("float16", "bfloat16", "int8"))}) == 4
    with pytest.raises(ConfigError, match="storage only narrows"):
        column_manifest(Tokens(dtype="float16"), storage={"grid": "float32"})


@pytest.mark.parametrize("massive", [3e3, 5e5])
def test_int8_is_refused_where_it_loses_too_much(source: ToySource, tmp_path: Path, massive: float) -> None:
    """One channel that dwarfs its group: the raw cosine is above 0.999, and 127 channels are gone all the same."""
    run, worker = begin(source, tmp_path / "out", [Tokens(massive=massive)], storage={"tokens": {"grid": "int8"}})
    refusal = r"tokens, shard 0: target grid is not offered as int8: .* cosine 0\.999\d+, standardised cosine 0\.[1-8]"
    with pytest.raises(SpecError, match=refusal):
        worker.process(next(task for task in run.todo() if task.shard == 0))
    worker.close()
    assert committed(run.volume, "tokens") == []
    assert not [p for p in run.volume.walk() if p.startswith(("tokens/0", layout.TEMP))]


def test_int8_is_refused_in_the_first_batches_of_a_shard(source: ToySource, tmp_path: Path) -> None:
    """Not at its end, hours later: as soon as what is to come could not mend it."""
    told: list[int] = []

    @dataclass
    class Counting(Tokens):
        def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
            told.append(len(batch))
            return super().compute(batch)

    teacher = Counting(massive=3e3, batch_size=1)
    run, worker = begin(source, tmp_path / "out", [teacher], storage={"tokens": {"grid": "int8"}}, shard_size=15)
    with pytest.raises(SpecError, match=r"tokens, shard 0: target grid is not offered as int8"):
        worker.process(next(iter(run.todo())))
    worker.close()
    assert sum(told) < 12  # of 15, one after the other
    assert committed(run.volume, "tokens") == []


@pytest.mark.parametrize("lost", [1, 2, 64])
def test_the_gate_refuses_early_only_what_it_would_refuse_in_the_end(lost: int) -> None:
    """32 vectors of each of 64 samples are looked at: those of one are 1.6 % of them."""
    draw = np.random.default_rng(0)
    gate, refused = Int8Gate("grid", 1), 0
    for i in range(64):
        x = draw.standard_normal((32, 8)).astype(np.float32)
        gate.add(x, -x if i < lost else x)
        try:
            gate.check_begun("here", 64)
        except SpecError:
            refused = refused or i + 1
    assert refused == 1
    with pytest.raises(SpecError, match=r"here: target grid is not offered"):
        gate.check("here")


def test_the_gate_waits_where_the_rest_may_still_mend_it() -> None:
    draw = np.random.default_rng(0)
    gate = Int8Gate("grid", 1)
    for i in range(256):
        x = draw.standard_normal((32, 8)).astype(np.float32)
        gate.add(x, -x if i < 2 else x)  # 0.8 % of the vectors
        gate.check_begun("here", 256)
    gate.check("here")
