"""`zarr: view`: the arrays of `targets.zarr` by references into the tars, for zarr and xarray alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from jobs.export import main as export
from pipeline.reading.verify import verify
from pipeline.stores.view import opened, refuse
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.specs import TargetSpec
from shards_schema.tables import from_parquet, to_parquet
from teachers.base import Targets, TeacherInput
from tests.blocks import block
from tests.committed import commit
from tests.toys import ToySource, ToyTeacher, write_images

POISON = "0000000100000003"
STORAGES = ({}, {"toy": {"grid": "int8"}}, {"toy": {"grid": "bfloat16"}})


class Precise(ToyTeacher):
    """`grid` as float32, which bfloat16 can narrow."""

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        return tuple(replace(spec, dtype="float32") if spec.name == "grid" else spec for spec in super().specs)

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [{**targets, "grid": targets["grid"].astype(np.float32)} for targets in super().compute(batch)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of four logs."""
    root = tmp_path_factory.mktemp("view")
    write_images(root / "data", logs=4, frames=9)
    return root


def made(
    root: Path,
    out: Path,
    mode: Any,
    storage: Mapping[str, Mapping[str, str]] | None = None,
    *,
    logs: int = 3,
    **more: Any,
) -> Path:
    """A dataset with one sample of `toy` in quarantine, and some rows that no sample uses."""
    source = ToySource(str(root / "data"), logs=logs)
    commit(source, out, [Precise(poison=POISON, random_weights=True)], zarr=mode, storage=storage, **more)
    return out


def arrays(group: zarr.Group) -> dict[str, np.ndarray[Any, Any]]:
    return {path: np.asarray(array[:]) for path, array in group.members(max_depth=2) if isinstance(array, zarr.Array)}


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Bit for bit; texts by value."""
    texts = a.dtype.kind in "OT"
    return a.dtype == b.dtype and (a.tolist() == b.tolist() if texts else a.tobytes() == b.tobytes())


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("storage", STORAGES)
def test_a_view_is_the_same_arrays_and_half_the_bytes(root: Path, tmp_path: Path, storage: Any) -> None:
    whole, view = made(root, tmp_path / "zarr", True, storage), made(root, tmp_path / "view", "view", storage)
    there, seen = files(whole), files(view)
    assert {k: v for k, v in there.items() if k.endswith(".tar")} == {
        k: v for k, v in seen.items() if k.endswith(".tar")
    }
    assert any("/toy/grid/c/" in name for name in there)
    assert not any("/toy/grid/c/" in name for name in seen)
    expected = arrays(zarr.open_group(whole / layout.ZARR, mode="r"))
    found = arrays(opened(str(view)))
    assert found.keys() == expected.keys() > {"toy/grid", "toy/valid", "samples/token", "samples/future"}
    for name, array in expected.items():
        assert same(found[name], array), name
    assert 0 < found["toy/valid"].sum() < len(found["toy/valid"])
    report = verify(str(view))
    assert not report.faults
    assert not report.unfinished


def test_references_of_many_shards_stand_in_several_tables(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stores.view._TABLE", 4)
    whole, view = (made(root, tmp_path / name, mode, shard_size=1) for name, mode in (("zarr", True), ("view", "view")))
    for target in ("grid", "mean"):
        assert len(list((view / layout.VIEW / "toy" / target).glob("refs.*.parq"))) == 4
    expected, found = arrays(zarr.open_group(whole / layout.ZARR, mode="r")), arrays(opened(str(view)))
    for name, array in expected.items():
        assert same(found[name], array), name
    assert verify(str(view)).faults == ()


def test_it_is_written_out_as_the_bytes_that_it_spared(root: Path, tmp_path: Path) -> None:
    whole, view = made(root, tmp_path / "zarr", True), made(root, tmp_path / "view", "view")
    assert export([f"out={view}", f"to={tmp_path / 'out'}", "format=zarr"]) == 0
    assert files(tmp_path / "out" / layout.ZARR) == files(whole / layout.ZARR)
    with pytest.raises(ConfigError, match="zarr: true, so it has no view"):
        export([f"out={whole}", f"to={tmp_path / 'again'}", "format=zarr"])


def test_verify_sees_a_reference_and_a_fill_that_are_not_right(root: Path, tmp_path: Path) -> None:
    view = made(root, tmp_path / "view", "view")
    path = view / layout.view_table("toy", "grid", 0)
    sound = path.read_bytes()
    table = from_parquet(sound)
    path.write_bytes(to_parquet(table.set_column(1, "offset", pa.array(np.asarray(table["offset"]) + 2))))
    (fault,) = verify(str(view)).faults
    assert (fault.path, "run the job again" in fault.what) == (layout.view_table("toy", "grid", 0), True)
    path.write_bytes(sound)
    (view / layout.view_fill("toy", "grid")).write_bytes(b"0")
    (fault,) = verify(str(view)).faults
    assert fault.path == layout.view_fill("toy", "grid")


def test_a_run_that_is_not_finished_has_no_view_yet_and_no_fault(root: Path, tmp_path: Path) -> None:
    view = made(root, tmp_path / "view", "view", shards=1)
    report = verify(str(view))
    assert (report.faults, bool(report.unfinished)) == ((), True)
    assert not (view / layout.VIEW).exists()
    made(root, view, "view")
    assert verify(str(view)).unfinished == ()
    assert len(arrays(opened(str(view)))["toy/valid"]) == 18
    made(root, view, "view", logs=4)
    assert verify(str(view)).faults == ()
    assert len(arrays(opened(str(view)))["toy/valid"]) == 24


def test_a_column_that_no_tar_has_is_refused(root: Path) -> None:
    samples = SamplesColumn(SamplesConfig(), num_history=4, num_future=200).manifest({})
    with pytest.raises(ConfigError, match=r"samples/future has more than 4 KiB a sample and is in no tar"):
        refuse(samples)
    refuse(SamplesColumn(SamplesConfig(), num_history=4, num_future=8).manifest({}))


def test_the_page_opens_it_with_zarr_and_xarray(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(root, tmp_path / "out" / "demo", "view")
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    exec(block("format", "view").replace("vggt", "samples"), told)
    assert told["group"]["toy/grid"].shape == (18, 3, 8, 12, 16)
    assert dict(told["arrays"]["future"].sizes) == {"sample": 18, "step": 3, "xyh": 3}
    assert told["arrays"]["token"].values.tolist() == arrays(told["group"])["samples/token"].tolist()
