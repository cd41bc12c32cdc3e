"""The index: the same rows however it is written, in bounded parts, from records in order and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stores import index
from pipeline.stores.records import read_records
from pipeline.stores.volume import Volume
from pipeline.writing.plan import make_plan
from shards_schema import layout, tables
from shards_schema.commit import CommitRecord, Member, Quarantined
from shards_schema.errors import DatasetError, MissingFileError
from shards_schema.plan import Plan, PlanConfig, SceneRef

SIZE = 4


def plan_of(shards: int) -> Plan:
    refs = [SceneRef(f"log{i}", 10 * j, f"{i:04x}{j:04x}", j) for i in range(shards) for j in range(SIZE)]
    return make_plan(refs, PlanConfig(shard_size=SIZE))


def record(plan: Plan, column: str, shard: int, members: tuple[str, ...], bad: int = 0) -> CommitRecord:
    scenes = plan.shard(shard).scenes
    good = scenes[bad:]
    return CommitRecord(
        column=column,
        shard=shard,
        dataset="d",
        fingerprint="f",
        planned=len(scenes),
        quarantined=tuple(Quarantined(p.ref.token, p.row, "bad", "for the test") for p in scenes[:bad]),
        files={},
        tokens=tuple(p.ref.token for p in good),
        rows=tuple(p.row for p in good),
        members={
            m: tuple(Member(1000 * i + 512 * k, 100 + k, (1 << 32) - 1 - i) for i in range(len(good)))
            for k, m in enumerate(members)
        },
    )


def records(plan: Plan) -> list[CommitRecord]:
    """Two columns; shard 1 of one of them has a bad sample, shard 2 none that is good."""
    bad = {("vggt", 1): 1, ("vggt", 2): SIZE}
    members = {"samples": ("json", "cam_f0.jpg"), "vggt": ("grid.npy", "pose.npy", "mean.npy")}
    return [record(plan, c, s, members[c], bad.get((c, s), 0)) for c in ("vggt", "samples") for s in range(plan.shards)]


def test_a_row_a_member_in_order(tmp_path: Path) -> None:
    plan = plan_of(5)
    index.write(Volume(str(tmp_path)), records(plan), plan)
    found = tables.from_parquet((tmp_path / layout.INDEX).read_bytes())
    assert found.schema.equals(index.INDEX_SCHEMA)
    rows = found.to_pylist()
    assert len(rows) == 5 * SIZE * 2 + (5 * SIZE - 1 - SIZE) * 3
    assert rows == sorted(rows, key=lambda r: (r["column"], r["shard"], r["member"], r["row"]))
    first = next(r for r in rows if r["column"] == "vggt" and r["member"] == "pose.npy" and r["shard"] == 1)
    assert first["token"] == plan.shard(1).scenes[1].ref.token
    assert (first["offset"], first["size"], first["crc32c"]) == (512, 101, 4294967295)
    quarantined = tables.from_parquet((tmp_path / layout.QUARANTINE).read_bytes()).to_pylist()
    assert [(q["shard"], q["row"]) for q in quarantined] == [(1, 4), (2, 8), (2, 9), (2, 10), (2, 11)]
    logs = dict(zip(plan.table["token"].to_pylist(), plan.table["log"].to_pylist(), strict=True))
    assert all(q["log"] == logs[q["token"]] for q in quarantined)


@given(st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_parts_of_any_size_hold_the_same_rows(group: int) -> None:
    plan = plan_of(4)
    volume = Volume("memory://index-parts")
    whole = index.index_table(records(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROW_GROUP", group)
        index.write(volume, iter(sorted(records(plan), key=lambda r: (r.column, r.shard))), plan)
    data = volume.read(layout.INDEX)
    assert tables.from_parquet(data).equals(whole)
    metadata = tables.pq.ParquetFile(tables.pa.BufferReader(data)).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups - 1)] == (
        [group] * (metadata.num_row_groups - 1)
    )


def test_written_at_once_or_in_order_it_is_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_of(6)
    own = records(plan)
    index.write(Volume(str(tmp_path / "a")), own, plan)
    index.write(Volume(str(tmp_path / "b")), iter(sorted(own, key=lambda r: (r.column, r.shard))), plan)
    for name in (layout.INDEX, layout.QUARANTINE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / layout.INDEX).read_bytes() == tables.to_parquet(index.index_table(own))


def test_records_out_of_order_or_lost_on_the_way_leave_no_index(tmp_path: Path) -> None:
    plan = plan_of(3)
    volume = Volume(str(tmp_path))
    with pytest.raises(ValueError, match="give them in order"):
        index.write(volume, iter(records(plan)), plan)

    def broken() -> Iterator[CommitRecord]:
        yield from sorted(records(plan), key=lambda r: (r.column, r.shard))[:2]
        raise DatasetError("the third is damaged")

    with pytest.raises(DatasetError, match="third"):
        index.write(volume, broken(), plan)
    assert volume.walk() == []


def test_no_rows_at_all(tmp_path: Path) -> None:
    plan = plan_of(1)
    index.write(Volume(str(tmp_path)), [record(plan, "vggt", 0, ("grid.npy",), bad=SIZE)], plan)
    assert tables.from_parquet((tmp_path / layout.INDEX).read_bytes()).num_rows == 0
    assert tables.from_parquet((tmp_path / layout.QUARANTINE).read_bytes()).num_rows == SIZE


def test_a_quarantined_row_that_nobody_planned() -> None:
    plan = plan_of(1)
    stray = record(plan, "vggt", 0, ("grid.npy",), bad=1)
    other = Quarantined(stray.quarantined[0].token, 999, "bad", "")
    with pytest.raises(DatasetError, match="row 999"):
        index.quarantine_table([CommitRecord(**{**_fields(stray), "quarantined": (other,)})], plan)


def _fields(of: CommitRecord) -> dict[str, object]:
    return {name: getattr(of, name) for name in CommitRecord.__slots__}


def test_records_come_in_the_order_asked_for(tmp_path: Path) -> None:
    plan = plan_of(40)
    volume = Volume(str(tmp_path))
    for shard in range(40):
        own = record(plan, "vggt", shard, ("grid.npy",))
        volume.put(layout.record("vggt", shard), own.to_bytes())
    assert [r.shard for r in read_records(volume, "vggt", range(39, -1, -1), threads=3)] == list(range(39, -1, -1))
    with pytest.raises(MissingFileError, match="000040"):
        list(read_records(volume, "vggt", range(42), threads=2))


def test_dictionaries_of_parts_are_one() -> None:
    plan = plan_of(2)
    table = tables.from_parquet(tables.to_parquet(index.index_table(records(plan))))
    assert pc.count_distinct(table["member"].cast("string")).as_py() == 5
