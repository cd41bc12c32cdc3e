"""From sub-scores to scores: PDMS (v1), EPDMS (v2), the human filter, two-stage weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from scoring.context import FILTERED, Version

MULTIPLICATIVE_V1 = ("no_at_fault_collisions", "drivable_area_compliance")
MULTIPLICATIVE_V2 = (*MULTIPLICATIVE_V1, "driving_direction_compliance", "traffic_light_compliance")
MULTIPLICATIVE: Mapping[Version, tuple[str, ...]] = {"v1": MULTIPLICATIVE_V1, "v2": MULTIPLICATIVE_V2}
"""Sub-scores that multiply the whole score."""

WEIGHTS_V1 = {"ego_progress": 5.0, "time_to_collision_within_bound": 5.0, "comfort": 2.0}
WEIGHTS_V2 = {
    "ego_progress": 5.0,
    "time_to_collision_within_bound": 5.0,
    "lane_keeping": 2.0,
    "history_comfort": 2.0,
}
EXTENDED_COMFORT_WEIGHT = 2.0

SIGMA_SQUARED = 0.1
"""Of the kernel that weighs second-stage scenes, square metres."""


def product(subscores: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """The product of the named sub-scores."""
    return reduce(torch.mul, (subscores[name] for name in names))


def pdms(subscores: Mapping[str, Tensor]) -> Tensor:
    """v1: NC DAC (5 EP + 5 TTC + 2 C) / 12. Driving direction is reported and has no weight."""
    return product(subscores, MULTIPLICATIVE_V1) * _mean(subscores, WEIGHTS_V1)


def epdms(subscores: Mapping[str, Tensor], extended_comfort: Tensor | None = None) -> Tensor:
    """v2: NC DAC DDC TLC (5 EP + 5 TTC + 2 LK + 2 HC [+ 2 EC]) / 14 [16].

    Args:
        subscores: each of one shape.
        extended_comfort: of that shape; NaN where there is no earlier frame, and so no such term (the divisor is 14).
    """
    base = _mean(subscores, WEIGHTS_V2)
    if extended_comfort is not None:
        weight = sum(WEIGHTS_V2.values())
        both = (base * weight + EXTENDED_COMFORT_WEIGHT * extended_comfort) / (weight + EXTENDED_COMFORT_WEIGHT)
        base = torch.where(extended_comfort.isnan(), base, both)
    return product(subscores, MULTIPLICATIVE_V2) * base


def human_filter(subscores: Mapping[str, Tensor], human_zero: Tensor) -> dict[str, Tensor]:
    """v2: a sub-score in which the human has 0 is 1 for everyone. Progress is not normalised again.

    Args:
        subscores: [S, C] each.
        human_zero: bool [S, 6], in the order of `FILTERED`.
    """
    out = dict(subscores)
    for i, name in enumerate(FILTERED):
        out[name] = torch.where(human_zero[:, i, None], 1.0, out[name])
    return out


def second_stage_weights(endpoint: Tensor, starts: Tensor) -> Tensor:
    """Weights of the follow-up scenes of one first-stage scene (navhard).

    Args:
        endpoint: float64 [..., 2], the last pose of the *predicted* first-stage trajectory, not simulated, global.
        starts: float64 [..., K, 2], where each follow-up begins (rear axle), same frame.

    Returns:
        float64 [..., K], summing to 1; uniform where all are too far for the kernel (as numpy's isclose has it).
    """
    square = (starts - endpoint[..., None, :]).square().sum(dim=-1)
    weight = torch.exp(-square / (2.0 * SIGMA_SQUARED))
    total = weight.sum(dim=-1, keepdim=True)
    lost = (total <= 1e-8) | total.isnan()
    return torch.where(lost, 1.0 / starts.shape[-2], weight / torch.where(lost, 1.0, total))


def two_stage(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """The score of one group of a mapping: score(stage 1) times the weighted mean of stage 2.

    A mapping has two groups, "now" and the frame 0.5 s before; its score is the mean of the two, and the split's score
    the mean over mappings.

    Args:
        first: [...], scores of the first stage.
        second: [..., K], scores of the follow-ups.
        weights: [..., K], `second_stage_weights`.
    """
    return first * (weights * second).sum(dim=-1)


def _mean(subscores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    total = reduce(torch.add, (weight * subscores[name] for name, weight in weights.items()))
    return total / sum(weights.values())
