"""The plan is a pure function, keeps logs together, and wastes little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.writing.plan import make_plan
from shards_schema.errors import ConfigError, DatasetError
from shards_schema.plan import Plan, PlanConfig, SceneRef


def refs(lengths: list[int]) -> list[SceneRef]:
    return [SceneRef(f"log{i:03d}", 1000 * j, f"{i:08x}{j:08x}", j) for i, n in enumerate(lengths) for j in range(n)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 25), st.integers(0, 3), st.randoms())
@settings(max_examples=80, deadline=None)
def test_every_scene_once_in_time_order(lengths: list[int], size: int, seed: int, random: object) -> None:
    scenes = refs(lengths)
    config = PlanConfig(shard_size=size, seed=seed)
    plan = make_plan(scenes, config)
    random.shuffle(scenes)  # type: ignore[attr-defined]
    assert make_plan(scenes, config).digest == plan.digest
    planned = [p for shard in range(plan.shards) for p in plan.shard(shard).scenes]
    assert sorted(p.ref for p in planned) == sorted(scenes)
    assert plan.table["token"].to_pylist() == [p.ref.token for p in planned]
    for shard in range(plan.shards):
        rows = [p.row for p in plan.shard(shard).scenes]
        assert rows == list(range(shard * size, shard * size + len(rows)))
        assert 1 <= len(rows) <= size
    # a log that fits into a shard is whole and in time order in one shard
    where: dict[str, list[tuple[int, int]]] = {}
    for p in planned:
        where.setdefault(p.ref.log, []).append((p.row, p.ref.timestamp))
    for log, places in where.items():
        if len(places) <= size:
            assert len({row // size for row, _ in places}) == 1
            assert np.all(np.diff([t for _, t in places]) > 0), log
            assert np.all(np.diff([row for row, _ in places]) == 1)
        else:
            assert len({row // size for row, _ in places}) == -(-len(places) // size)


def test_seed_and_size_change_the_digest() -> None:
    scenes = refs([5] * 6)
    digests = {make_plan(scenes, PlanConfig(shard_size=n, seed=s)).digest for n in (5, 10) for s in (0, 1)}
    assert len(digests) == 4
    assert make_plan(scenes[1:], PlanConfig(shard_size=5)).digest not in digests


def test_rows_are_well_used() -> None:
    lengths = list(np.random.default_rng(0).integers(40, 140, 300))
    plan = make_plan(refs([int(n) for n in lengths]), PlanConfig(shard_size=256))
    assert plan.samples / (plan.shards * 256) > 0.9


def test_parquet_round_trip_and_damage() -> None:
    plan = make_plan(refs([3, 4]), PlanConfig(shard_size=4))
    assert Plan.from_parquet(plan.to_parquet(), plan.config, "p").digest == plan.digest
    assert plan.to_parquet() == plan.to_parquet()
    with pytest.raises(DatasetError, match="p: not a plan"):
        Plan.from_parquet(plan.to_parquet()[:-9], plan.config, "p")


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="no scenes"):
        make_plan([], PlanConfig())
    with pytest.raises(ConfigError, match=r"token .* two scenes"):
        make_plan([*refs([2]), SceneRef("other", 5, refs([2])[0].token, 0)], PlanConfig())
