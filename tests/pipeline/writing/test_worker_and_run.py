"""From scenes to a verified dataset with a plain worker: accounting, resume, quarantine, equal bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import zarr

from pipeline.reading.verify import verify
from pipeline.stores.decode import decode_jpeg
from pipeline.stores.records import committed
from pipeline.writing import run as runs
from pipeline.writing.run import Run
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from pipeline.writing.task import ShardReceipt
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema import layout
from shards_schema.errors import ConfigError, DatasetError, IncompleteError, MismatchError, SampleError, SpecError
from shards_schema.plan import PlanConfig
from teachers.base import column_manifest
from tests.chaos.world import digests
from tests.toys import F, H, ToySource, ToyTeacher, write_images


@pytest.fixture
def source(tmp_path: Path) -> ToySource:
    write_images(tmp_path / "data", logs=3, frames=9)
    return ToySource(str(tmp_path / "data"))


def begin(source: ToySource, out: Path | str, *teachers: ToyTeacher, size: tuple[int, int] | None = None) -> Run:
    samples = SamplesColumn(SamplesConfig(size=size), num_history=H, num_future=F)
    manifests = [samples.manifest({}), *(column_manifest(t) for t in teachers)]
    return runs.begin(source, str(out), manifests, plan_config=PlanConfig(shard_size=6))


def worker(run: Run, source: ToySource, *teachers: ToyTeacher, size: tuple[int, int] | None = None) -> ShardWorker:
    made = ShardWorker(
        source=source,
        volume=run.volume,
        teachers=teachers,
        samples=SamplesColumn(SamplesConfig(size=size), num_history=H, num_future=F),
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=run.plan.config.shard_size,
        zarr=run.manifest.zarr,
        config=WorkerConfig(device="cpu", decode_threads=2),
    )
    made.load()
    return made


def make(
    source: ToySource, out: Path | str, *teachers: ToyTeacher, threads: int = 2, size: tuple[int, int] | None = None
) -> tuple[Run, list[ShardReceipt], list[runs.ColumnTotal]]:
    run = begin(source, out, *teachers, size=size)
    one = worker(run, source, *teachers, size=size)
    with ThreadPoolExecutor(threads) as pool:
        receipts = list(pool.map(one.process, run.todo()))
    one.close()
    return run, receipts, runs.close(run)


def test_a_dataset_from_end_to_end(source: ToySource, tmp_path: Path) -> None:
    run, receipts, totals = make(source, tmp_path / "out", ToyTeacher())
    assert [(t.column, t.planned, t.written, t.quarantined) for t in totals] == [
        ("samples", 15, 15, {}),
        ("toy", 15, 15, {}),
    ]
    # 3 logs x 5 scenes want frames -0..+2 of 9: 7 distinct images a log, each decoded once
    assert sum(r.images for r in receipts) == sum(r.decodes for r in receipts) == 3 * 7
    report = verify(str(tmp_path / "out"))
    assert report.faults == ()
    assert not report.incomplete

    # what a stranger sees with webdataset and zarr alone
    group = zarr.open_group(str(tmp_path / "out" / layout.ZARR), mode="r")
    tokens = group["samples/token"][:]  # type: ignore[index]
    seen = 0
    for shard in range(run.plan.shards):
        for column in ("samples", "toy"):
            path = str(tmp_path / "out" / layout.tar(column, shard))
            for sample in webdataset.WebDataset(path, shardshuffle=False).decode("rgb8"):
                row = int(np.flatnonzero(tokens == sample["__key__"])[0])  # type: ignore[operator]
                seen += 1
                if column == "samples":
                    assert np.allclose(group["samples/future"][row], sample["json"]["future"]["trajectory"])  # type: ignore[index]
                    assert sample["cam_f0.jpg"].shape == (32, 48, 3)
                else:
                    assert np.array_equal(group["toy/grid"][row], sample["grid.npy"])  # type: ignore[index]
                    assert sample["path.npy"].shape == (int(sample["__key__"], 16) % 5,)
    assert seen == 30
    index = pq.read_table(tmp_path / "out" / layout.INDEX).to_pandas()
    assert len(index) == 15 * (2 + 3)
    entry = index[(index.member == "mean.npy") & (index.token == tokens[0])].iloc[0]  # type: ignore[index]
    data = (tmp_path / "out" / f"toy/{entry['shard']:06d}.tar").read_bytes()[
        entry.offset : entry.offset + entry["size"]
    ]
    assert data[:6] == b"\x93NUMPY"


def test_threads_and_interruptions_do_not_change_a_byte(source: ToySource, tmp_path: Path) -> None:
    make(source, tmp_path / "a", ToyTeacher(), threads=1)
    make(source, tmp_path / "b", ToyTeacher(), threads=3)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    # an interrupted run: one column of one shard, one whole shard, and leftover of a killed writer
    run = begin(source, tmp_path / "c", ToyTeacher())
    one = worker(run, source, ToyTeacher())
    task = run.todo()[0]
    one.process(type(task)(task.shard, task.scenes, ("toy",)))
    one.process(run.todo()[1])
    (tmp_path / "c" / layout.TEMP).mkdir(exist_ok=True)
    (tmp_path / "c" / layout.TEMP / "toy%000002.tar.abc").write_bytes(b"half")
    (tmp_path / "c" / "samples" / "000000.tar").write_bytes(b"a file whose record was never written")
    todo = begin(source, tmp_path / "c", ToyTeacher()).todo()
    assert {(t.shard, t.columns) for t in todo if t.shard == task.shard} == {(task.shard, ("samples",))}
    assert len(todo) == run.plan.shards - 1
    make(source, tmp_path / "c", ToyTeacher())
    assert digests(tmp_path / "a") == digests(tmp_path / "c")
    assert begin(source, tmp_path / "c", ToyTeacher()).todo() == []


def test_a_new_teacher_is_a_new_column_and_nothing_else(source: ToySource, tmp_path: Path) -> None:
    make(source, tmp_path / "out", ToyTeacher())
    before = digests(tmp_path / "out")
    _, receipts, _ = make(source, tmp_path / "out", ToyTeacher(name="second", gain=2.0))
    assert {c.column for r in receipts for c in r.columns} == {"second"}
    after = digests(tmp_path / "out")
    changed = {k for k in before if after[k] != before[k]}
    assert changed == {layout.INDEX}
    assert {k.split("/")[0] for k in after.keys() - before.keys()} == {"second", layout.ZARR}
    assert set(pq.read_table(tmp_path / "out" / layout.INDEX)["column"].unique().to_pylist()) == {
        "samples", "toy", "second",
    }  # fmt: skip
    assert verify(str(tmp_path / "out")).faults == ()


def test_other_plans_configs_and_weights_are_refused(source: ToySource, tmp_path: Path) -> None:
    make(source, tmp_path / "out", ToyTeacher())
    before = digests(tmp_path / "out")
    with pytest.raises(MismatchError, match=r"provenance\.gain: 1\.0 -> 2\.0"):
        begin(source, tmp_path / "out", ToyTeacher(gain=2.0))
    with pytest.raises(MismatchError, match=r"of log log02 \(source\.logs: 3 on disk, 2 here\)"):
        begin(ToySource(source.root, logs=2), tmp_path / "out", ToyTeacher())
    with pytest.raises(MismatchError, match=r"size: None -> \[24, 16\]"):
        begin(source, tmp_path / "out", ToyTeacher(), size=(24, 16))
    run = begin(source, tmp_path / "out", ToyTeacher())
    with pytest.raises(MismatchError, match="do the machines see the same weights"):
        worker(run, source, ToyTeacher(gain=3.0))
    assert digests(tmp_path / "out") == before


def test_bad_images_quarantine_their_scenes_and_no_others(source: ToySource, tmp_path: Path) -> None:
    data = Path(source.root)
    whole = (data / "log00/004.jpg").read_bytes()
    (data / "log00/004.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "log01/003.jpg").write_bytes(b"")
    (data / "log01/008.jpg").unlink()  # a frame that no column asks for
    (data / "log02/001.jpg").unlink()
    (data / "log02/007.jpg").unlink()
    (data / "log02/007.jpg").mkdir()
    _, _, totals = make(source, tmp_path / "out", ToyTeacher())
    by_column = {t.column: t for t in totals}
    assert by_column["samples"].quarantined == {"image_damaged": 1, "image_empty": 1, "image_missing": 1}
    assert by_column["toy"].quarantined == {
        "image_damaged": 3, "image_empty": 3, "image_missing": 1, "image_unreadable": 1,
    }  # fmt: skip
    assert all(t.planned == t.written + sum(t.quarantined.values()) for t in totals)
    report = verify(str(tmp_path / "out"))
    assert report.faults == ()
    table = pq.read_table(tmp_path / "out" / layout.QUARANTINE).to_pandas()
    assert len(table) == 3 + 8
    assert table.reason.str.contains("log02/001.jpg: no such file").any()
    assert table[table.column == "toy"].groupby("log").size().to_dict() == {"log00": 3, "log01": 3, "log02": 2}
    group = zarr.open_group(str(tmp_path / "out" / layout.ZARR), mode="r")
    bad = table[table.column == "toy"]["row"].to_numpy()
    assert np.isnan(np.asarray(group["toy/grid"])[bad]).all()
    assert np.asarray(group["toy/valid"])[bad].sum() == 0
    assert np.asarray(group["toy/valid"])[:].sum() == 15 - 8


def test_a_non_finite_target_and_a_lost_log(source: ToySource, tmp_path: Path) -> None:
    shutil.rmtree(Path(source.root) / "log01")
    poison = f"{0:08x}{2:08x}"
    _, _, totals = make(source, tmp_path / "out", ToyTeacher(poison=poison))
    assert totals[0].quarantined == {"log_unreadable": 5}
    assert totals[1].quarantined == {"log_unreadable": 5, "non_finite": 1}
    assert verify(str(tmp_path / "out")).faults == ()


def test_a_column_is_finished_under_the_manifest_that_it_was_begun_with(source: ToySource, tmp_path: Path) -> None:
    """The words of a target's meaning may change between two runs; records go on naming the first's fingerprint."""
    teacher = ToyTeacher()
    first = column_manifest(teacher)
    begun = replace(first, targets=tuple(replace(spec, meaning="in older words") for spec in first.targets))
    runs.begin(source, str(tmp_path / "out"), [begun], plan_config=PlanConfig(shard_size=4))
    run = runs.begin(source, str(tmp_path / "out"), [first], plan_config=PlanConfig(shard_size=4))
    assert run.columns[teacher.name] == begun
    assert run.columns[teacher.name].fingerprint != first.fingerprint


def test_an_image_that_one_teacher_refuses_is_good_for_the_others(source: ToySource, tmp_path: Path) -> None:
    class Picky(ToyTeacher):
        def preprocess(self, image):  # type: ignore[no-untyped-def]
            if image[0, 0, 0] == bad[0, 0, 0] and np.array_equal(image, bad):
                raise SampleError("image_shape", "not for me")
            return super().preprocess(image)

    bad = decode_jpeg((Path(source.root) / "log00/005.jpg").read_bytes(), "")
    _, _, totals = make(source, tmp_path / "out", ToyTeacher(), Picky(name="picky"))
    assert [t.quarantined for t in totals] == [{}, {}, {"image_shape": 3}]
    assert verify(str(tmp_path / "out")).faults == ()


def test_a_wrong_teacher_stops_the_shard_and_leaves_nothing(source: ToySource, tmp_path: Path) -> None:
    class Liar(ToyTeacher):
        def compute(self, batch):  # type: ignore[no-untyped-def]
            return [{**t, "mean": t["mean"].astype(np.float64)} for t in super().compute(batch)]

    run = begin(source, tmp_path / "out", Liar())
    one = worker(run, source, Liar())
    with pytest.raises(SpecError, match="expected float32"):
        one.process(run.todo()[0])
    assert committed(run.volume, "toy") == []
    assert not list((tmp_path / "out" / "toy").glob("*.tar"))
    assert not [p for p in run.volume.walk() if p.startswith(layout.TEMP)]
    with pytest.raises(IncompleteError, match="no commit record"):
        runs.close(run)


def test_resized_student_images_carry_scaled_intrinsics(source: ToySource, tmp_path: Path) -> None:
    make(source, tmp_path / "out", size=(24, 16))
    path = str(tmp_path / "out" / layout.tar("samples", 0))
    sample = next(iter(webdataset.WebDataset(path, shardshuffle=False).decode("rgb8")))
    assert sample["cam_f0.jpg"].shape == (16, 24, 3)
    camera = sample["json"]["cameras"]["cam_f0"]
    assert (camera["size"], camera["original_size"]) == ([24, 16], [48, 32])
    assert camera["intrinsics"][0][0] == 20.0
    assert sample["json"]["history"]["trajectory"][-1] == [0, 0, 0]
    assert sample["json"]["ego"]["command"] == "straight"


def test_memory_volume(source: ToySource, tmp_path: Path) -> None:
    url = f"memory://{tmp_path}/out"
    make(source, url, ToyTeacher())
    make(source, tmp_path / "out", ToyTeacher())
    run = begin(source, url, ToyTeacher())
    local = digests(tmp_path / "out")
    assert {p: hashlib.sha256(run.volume.read(p)).hexdigest() for p in run.volume.walk()} == local
    assert verify(url).faults == ()


def test_verify_names_each_fault(source: ToySource, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    make(source, clean, ToyTeacher())
    flip = functools.partial(_flip, at=0.5)
    harms = {
        "toy/000001.tar": flip,
        "samples/000000.tar": lambda p: p.write_bytes(p.read_bytes()[:-1024]),
        "toy/000000.json": flip,
        "toy/column.json": flip,
        "targets.zarr/toy/grid/c/1/0/0/0/0": flip,
        "targets.zarr/toy/mean/c/0/0": Path.unlink,
        "targets.zarr/toy/grid/zarr.json": lambda p: p.write_bytes(p.read_bytes().replace(b"float16", b"float32")),
        "index.parquet": Path.unlink,
        "samples/000001.json": lambda p: shutil.copy(p.parent / "000000.json", p),
        "toy/notes.txt": lambda p: p.write_text("a stranger"),
    }
    for name, harm in harms.items():
        out = tmp_path / "corrupted"
        shutil.copytree(clean, out)
        harm(out / name)
        report = verify(str(out))
        assert name in {f.path for f in report.faults}, (name, report.faults)
        shutil.rmtree(out)
    for name in (layout.DATASET, layout.PLAN):
        out = tmp_path / "corrupted"
        shutil.copytree(clean, out)
        flip(out / name)
        with pytest.raises(DatasetError, match=name):
            verify(str(out))
        shutil.rmtree(out)


def test_verify_finds_a_shard_that_was_never_made(source: ToySource, tmp_path: Path) -> None:
    run = begin(source, tmp_path / "out", ToyTeacher())
    worker(run, source, ToyTeacher()).process(run.todo()[0])
    report = verify(str(tmp_path / "out"))
    assert report.incomplete == {"samples": run.plan.shards - 1, "toy": run.plan.shards - 1}
    assert report.faults == ()


def _flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(bytes(data))


def test_the_teacher_works_alone(source: ToySource, tmp_path: Path) -> None:
    """However many shards are in flight, `compute` is never entered twice at a time."""
    inside, most = 0, 0
    lock = threading.Lock()

    class Watched(ToyTeacher):
        def compute(self, batch):  # type: ignore[no-untyped-def]
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            out = super().compute(batch)
            with lock:
                inside -= 1
            return out

    make(source, tmp_path / "out", Watched(sleep=0.01), threads=3)
    assert most == 1


def test_dataset_json_is_plain(source: ToySource, tmp_path: Path) -> None:
    make(source, tmp_path / "out", ToyTeacher(random_weights=True))
    document = json.loads((tmp_path / "out" / layout.DATASET).read_text())
    assert document["synthetic"] is True
    assert any("generated" in n for n in document["notices"])
    assert any("RANDOM WEIGHTS: toy" in n for n in document["notices"])
    with pytest.raises(ConfigError):
        runs.begin(ToySource(source.root, logs=0), str(tmp_path / "x"), [], plan_config=PlanConfig())
