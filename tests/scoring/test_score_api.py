"""What the scorer refuses, and how scores are put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scoring import RewardContext, collate, complete, extended_comfort, score
from scoring.aggregate import epdms, human_filter, pdms, second_stage_weights, two_stage
from scoring.context import FILTERED
from shards_schema.errors import SampleError
from teachers.pdm import context_from_cache, find_caches

DATA = Path(__file__).parents[1] / "data" / "pdm"
TOKEN = "74c2e34b6c4c219b"


@pytest.fixture(scope="module")
def raw() -> RewardContext:
    return context_from_cache(find_caches(DATA / "metric_cache_v2")[TOKEN], "v2")


@pytest.fixture(scope="module")
def context(raw: RewardContext) -> RewardContext:
    return complete([raw])[0]


def ahead(count: int = 8) -> torch.Tensor:
    poses = torch.zeros((1, 1, count, 3), dtype=torch.float64)
    poses[..., 0] = torch.arange(1, count + 1) * 2.0
    return poses


@pytest.mark.parametrize("shape", [(1, 8, 3), (2, 1, 8, 3), (1, 1, 8, 2), (1, 0, 8, 3), (1, 1, 0, 3)])
def test_a_wrong_shape_is_refused(context: RewardContext, shape: tuple[int, ...]) -> None:
    with pytest.raises(SampleError, match="trajectories must be") as caught:
        score(collate([context]), torch.zeros(shape))
    assert caught.value.code == "bad_trajectory"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pose_that_is_not_finite_is_refused_by_token(context: RewardContext, value: float) -> None:
    poses = ahead().repeat(1, 3, 1, 1)
    poses[0, 2, 5, 1] = value
    with pytest.raises(SampleError, match=f"scene {TOKEN}: candidate 2") as caught:
        score(collate([context]), poses)
    assert caught.value.code == "bad_trajectory"


def test_a_trajectory_that_overflows_is_refused(context: RewardContext) -> None:
    with pytest.raises(SampleError, match=f"scene {TOKEN}: candidate 1 cannot be driven"):
        score(collate([context]), torch.cat((ahead(), ahead() * 1e300), dim=1))
    assert score(collate([context]), ahead() * 1e6).score.isfinite().all()


def test_another_version_is_refused(context: RewardContext) -> None:
    with pytest.raises(SampleError, match=TOKEN) as caught:
        score(collate([context]), ahead(), version="v1")
    assert caught.value.code == "version_mismatch"
    other = context_from_cache(find_caches(DATA / "metric_cache_v1")[TOKEN], "v1")
    with pytest.raises(SampleError, match=f"scene {TOKEN} is a v1 context in a batch of v2"):
        collate([context, other])


def test_a_context_that_is_not_complete_is_refused(raw: RewardContext) -> None:
    with pytest.raises(SampleError, match=f"scene {TOKEN} has no progress of PDM-Closed"):
        score(collate([raw]), ahead())
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    assert complete([]) == []


def test_a_context_of_another_form_is_refused(raw: RewardContext) -> None:
    with pytest.raises(SampleError, match=r"agents_size must be \[\d+, 2\]"):
        replace(raw, agents_size=raw.agents_size[:-1])
    with pytest.raises(SampleError, match="centerline has values that are not finite"):
        replace(raw, centerline=np.full_like(raw.centerline, np.nan))
    with pytest.raises(SampleError, match="needs 2 points, has 1"):
        replace(raw, centerline=raw.centerline[:1])


def test_other_samplings_of_the_same_path_score_alike(context: RewardContext) -> None:
    batch = collate([context])
    coarse = ahead()
    fine = torch.zeros((1, 1, 40, 3), dtype=torch.float64)
    fine[..., 0] = torch.arange(1, 41) * 0.4
    a, b = score(batch, coarse), score(batch, fine, interval_s=0.1)
    torch.testing.assert_close(a.states, b.states, rtol=0, atol=1e-4)
    torch.testing.assert_close(a.score, b.score, rtol=0, atol=1e-5)
    # Shorter: the last pose is held, which is not the same as driving on.
    short = score(batch, coarse[:, :, :3])
    held = torch.cat((coarse[:, :, :3], coarse[:, :, 2:3].expand(-1, -1, 5, -1)), dim=2)
    torch.testing.assert_close(short.score, score(batch, held).score, rtol=0, atol=1e-9)
    assert (short.states[..., -1, 0] < a.states[..., -1, 0] - 1.0).all()


def test_a_candidate_does_not_depend_on_its_group(context: RewardContext) -> None:
    batch = collate([context])
    slow, fast = ahead() * 0.2, ahead() * 3.0
    both = score(batch, torch.cat((slow, fast), dim=1))
    for k, one in enumerate((slow, fast)):
        assert both.score[:, k : k + 1].equal(score(batch, one).score)


def test_extended_comfort_enters_the_score_where_there_is_an_earlier_frame(context: RewardContext) -> None:
    batch = collate([context])
    candidates = torch.cat((ahead(), ahead() * 1.5, ahead() * 0.5), dim=1)
    without = score(batch, candidates)
    comfort = torch.tensor([[0.0, 1.0, float("nan")]], dtype=torch.float64)
    given = score(batch, candidates, extended_comfort=comfort)
    torch.testing.assert_close(given.pdm_score, without.pdm_score, rtol=0, atol=0)
    product = torch.stack([without.subscores[n] for n in FILTERED[:4]]).prod(dim=0)
    rest = torch.where(product > 0, without.score / product * 14, 0.0)
    expected = product * torch.stack((rest[:, 0] / 16, (rest[:, 1] + 2) / 16, rest[:, 2] / 14), dim=1)
    torch.testing.assert_close(given.score, expected, rtol=0, atol=1e-12)


def test_options_that_cannot_be_meant_are_refused(context: RewardContext) -> None:
    batch = collate([context])
    with pytest.raises(ValueError, match="interval_s must be positive"):
        score(batch, ahead(), interval_s=0.0)
    with pytest.raises(ValueError, match="extended_comfort is for v2"):
        score(batch, ahead(), extended_comfort=torch.ones(2, 1))


def test_extended_comfort_of_a_path_with_itself_half_a_second_on() -> None:
    states = torch.zeros((46, 11), dtype=torch.float64)
    states[:, 3] = 5.0
    states[:, 5] = torch.sin(torch.arange(46) * 0.1)
    now, before = states[5:], states[:41]
    assert extended_comfort(now, before).item() == 1.0
    assert extended_comfort(now, -before * 5).item() == 0.0
    with pytest.raises(ValueError, match="apart"):
        extended_comfort(now, before, 0.6)
    with pytest.raises(ValueError, match="shapes differ"):
        extended_comfort(now, before[:-1])


def test_weights() -> None:
    one = torch.ones((1, 1), dtype=torch.float64)
    v1 = dict.fromkeys(("no_at_fault_collisions", "drivable_area_compliance"), one) | {
        "ego_progress": one * 0.5,
        "time_to_collision_within_bound": one,
        "comfort": one * 0,
    }
    assert pdms(v1).item() == pytest.approx(7.5 / 12)
    v2 = dict.fromkeys(FILTERED, one) | {"ego_progress": one * 0.5, "history_comfort": one}
    assert epdms(v2).item() == pytest.approx(11.5 / 14)
    assert epdms(v2, one).item() == pytest.approx(13.5 / 16)
    assert epdms(v2 | {"driving_direction_compliance": one * 0.5}).item() == pytest.approx(11.5 / 28)


def test_the_human_filter_lifts_only_what_the_human_failed() -> None:
    zero = torch.zeros((2, 3), dtype=torch.float64)
    subscores = dict.fromkeys((*FILTERED, "ego_progress", "history_comfort"), zero)
    human = torch.zeros((2, 6), dtype=torch.bool)
    human[1, 4] = True
    out = human_filter(subscores, human)
    assert out["time_to_collision_within_bound"].tolist() == [[0.0] * 3, [1.0] * 3]
    assert all(out[n].sum() == 0 for n in subscores if n != "time_to_collision_within_bound")


def test_two_stage_weights() -> None:
    starts = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.0, 50.0]], dtype=torch.float64)
    weights = second_stage_weights(torch.zeros(2, dtype=torch.float64), starts)
    kernel = np.exp(-np.array([0.0, 0.09, 2500.0]) / 0.2)
    np.testing.assert_allclose(weights, kernel / kernel.sum(), atol=1e-15)
    far = second_stage_weights(torch.tensor([1e3, 0.0], dtype=torch.float64), starts)
    np.testing.assert_allclose(far, 1 / 3)
    second = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    expected = 0.8 * (kernel / kernel.sum() * [1.0, 0.5, 0.0]).sum()
    assert two_stage(torch.tensor(0.8), second, weights).item() == pytest.approx(expected)


@pytest.mark.gpu
def test_a_cuda_device_gives_the_same(context: RewardContext) -> None:
    candidates = torch.cat([ahead() * k for k in (0.0, 0.5, 1.0, 2.0)], dim=1)
    here, there = score(collate([context]), candidates), score(collate([context], "cuda"), candidates)
    for name, value in here.subscores.items():
        torch.testing.assert_close(value, there.subscores[name].cpu(), rtol=0, atol=1e-9)


def test_its_repr_is_a_line(context: RewardContext) -> None:
    told = repr(score(collate([context]), ahead(), version="v2"))
    assert told.startswith("ScoreResult(v2, 1 scenes x ")
    assert "mean score " in told
    assert "no_at_fault_collisions" in told
    assert "\n" not in told
