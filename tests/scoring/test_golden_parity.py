"""The scorer against what the NAVSIM devkit itself scored.

The scenes in tests/data/pdm are chosen so that every sub-score takes all its values. For others give a directory with
`pdms_golden/`, `metric_cache_v1/` and `metric_cache_v2/`: ``LAST_SHARDS_PDM=DIR pytest -s -m slow tests/scoring``.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring import RewardContext, ScoreResult, collate, complete, score
from teachers.pdm import context_from_cache, find_caches

DATA = Path(__file__).parents[1] / "data" / "pdm"
DISCRETE = {
    "no_at_fault_collisions": {0.0, 0.5, 1.0},
    "drivable_area_compliance": {0.0, 1.0},
    "driving_direction_compliance": {0.0, 0.5, 1.0},
    "time_to_collision_within_bound": {0.0, 1.0},
}
OF_VERSION = {
    "v1": DISCRETE | {"comfort": {0.0, 1.0}},
    "v2": DISCRETE
    | {"traffic_light_compliance": {0.0, 1.0}, "lane_keeping": {0.0, 1.0}, "history_comfort": {0.0, 1.0}},
}
TOLERANCE = 1e-5


@functools.cache
def contexts_of(caches: Path, version: str, dtype: type, tokens: tuple[str, ...]) -> list[RewardContext]:
    files = find_caches(caches)
    return complete([context_from_cache(files[t], version).astype(dtype) for t in tokens])


def score_golden(
    golden: Path, caches: Path, version: str, dtype: type, **options: Any
) -> tuple[dict[str, Any], list[str], list[str], ScoreResult]:
    rows = json.loads(golden.read_text())
    tokens = sorted(rows)
    names = list(rows[tokens[0]]["rows"])
    contexts = contexts_of(caches, version, dtype, tuple(tokens))
    poses = [[rows[t]["rows"][n]["poses"] for n in names] for t in tokens]
    result = score(collate(contexts), torch.tensor(poses, dtype=torch.float64), version=version, **options)
    return rows, tokens, names, result


def differences(
    version: str, rows: dict[str, Any], tokens: list[str], names: list[str], got: ScoreResult
) -> Counter[str]:
    """How many rows differ, by column; continuous ones by more than `TOLERANCE`."""
    out: Counter[str] = Counter()
    for s, token in enumerate(tokens):
        for c, name in enumerate(names):
            row = rows[token]["rows"][name]
            if version == "v1":
                groups = [("", row, got.unfiltered)]
                out["score"] += abs(float(got.score[s, c]) - row["score"]) > TOLERANCE
            else:
                groups = [("nofilter.", row["nofilter"], got.unfiltered), ("filtered.", row["filtered"], got.subscores)]
                filtered = row["filtered"]
                ep, ttc, lk, hc, _ = filtered["_weighted"]
                recomputed = filtered["multiplicative_metrics_prod"] * (5 * ep + 5 * ttc + 2 * lk + 2 * hc) / 14
                out["score"] += abs(float(got.score[s, c]) - recomputed) > TOLERANCE
                out["pdm_score"] += abs(float(got.pdm_score[s, c]) - row["nofilter"]["pdm_score"]) > TOLERANCE
                # The devkit does not compute the column again after the filter: default equals that.
                out["pdm_score"] += abs(float(got.pdm_score[s, c]) - filtered["pdm_score"]) > TOLERANCE
            for prefix, expected, values in groups:
                for column in OF_VERSION[version]:
                    out[prefix + column] += float(values[column][s, c]) != expected[column]
                out[prefix + "ego_progress"] += (
                    abs(float(values["ego_progress"][s, c]) - expected["ego_progress"]) > TOLERANCE
                )
    return out


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_equals_the_devkit(version: str, dtype: type) -> None:
    rows, tokens, names, result = score_golden(
        DATA / f"golden_{version}.json", DATA / f"metric_cache_{version}", version, dtype
    )
    assert not +differences(version, rows, tokens, names, result)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_golden_rows_hold_every_value_and_a_difference_is_seen(version: str) -> None:
    rows, tokens, names, result = score_golden(
        DATA / f"golden_{version}.json", DATA / f"metric_cache_{version}", version, np.float64
    )
    for column, values in OF_VERSION[version].items():
        assert set(result.unfiltered[column].flatten().tolist()) == values, column
    if version == "v2":
        changed = {c for c in OF_VERSION["v2"] if not result.unfiltered[c].equal(result.subscores[c])}
        assert {"no_at_fault_collisions", "time_to_collision_within_bound"} <= changed
    swapped = ScoreResult(
        version=result.version,
        subscores={k: v.flip(0) for k, v in result.subscores.items()},
        unfiltered={k: v.flip(0) for k, v in result.unfiltered.items()},
        score=result.score.flip(0),
        pdm_score=result.pdm_score.flip(0),
        states=result.states,
    )
    assert all(differences(version, rows, tokens, names, swapped)[c] for c in ("score",))


def test_consistent_recomputes_the_column_that_the_devkit_forgets() -> None:
    args = (DATA / "golden_v2.json", DATA / "metric_cache_v2", "v2", np.float64)
    _, _, _, devkit = score_golden(*args)
    _, _, _, consistent = score_golden(*args, consistent=True)
    torch.testing.assert_close(consistent.pdm_score, consistent.score, rtol=0, atol=0)
    torch.testing.assert_close(devkit.score, consistent.score, rtol=0, atol=0)
    forgotten = (devkit.pdm_score == 0) & (consistent.pdm_score > 0)
    assert forgotten.any()


def test_one_by_one_in_small_chunks_or_all_at_once_is_the_same() -> None:
    args = (DATA / "golden_v2.json", DATA / "metric_cache_v2", "v2", np.float64)
    rows, tokens, names, together = score_golden(*args)
    _, _, _, chunked = score_golden(*args, max_bytes=1)
    files = find_caches(DATA / "metric_cache_v2")
    alone = score(
        collate(complete([context_from_cache(files[tokens[1]], "v2")])),
        torch.tensor([[rows[tokens[1]]["rows"][names[3]]["poses"]]], dtype=torch.float64),
    )
    for name, value in together.subscores.items():
        assert value.equal(chunked.subscores[name]), name
        assert value[1, 3].equal(alone.subscores[name][0, 0]), name
    assert together.states.equal(chunked.states)
    assert together.states[1, 3].equal(alone.states[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_equals_the_devkit_on_a_whole_set(version: str, dtype: type) -> None:
    root = os.environ.get("LAST_SHARDS_PDM")
    if root is None:
        pytest.skip("LAST_SHARDS_PDM names no reference set")
    golden = Path(root, "pdms_golden", f"{version}.json")
    rows, tokens, names, result = score_golden(golden, Path(root, f"metric_cache_{version}"), version, dtype)
    counted = differences(version, rows, tokens, names, result)
    print(f"{version} {dtype.__name__}: {len(tokens)} scenes x {len(names)}; rows that differ: {dict(counted)}")
    assert not +counted
