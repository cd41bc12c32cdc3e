"""EC, two-frame extended comfort: 1 or 0, v2 only.

The same driver, asked half a second apart: where the two simulated paths overlap, they must agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.metrics.savgol import savgol, smooth, unwrap_by_rounding
from scoring.rowwise import length
from scoring.vehicle import AX, AY, HEADING, INTERVAL_S

MAX_INTERVAL_S = 0.55
"""Frames farther apart than this are not a pair; the devkit asserts it."""

_ACCEL, _JERK, _YAW_RATE, _YAW_ACCEL = 0.7, 0.5, 0.1, 0.1


def extended_comfort(current: Tensor, previous: Tensor, interval_s: float = 0.5) -> Tensor:
    """Whether two paths agree: root mean squares of four differences within bounds.

    Args:
        current: float64 [..., 41, 11], simulated states (`ScoreResult.states`) now.
        previous: the same for the frame `interval_s` earlier; each in its own ego frame.
        interval_s: seconds between the frames, above 0 and below 0.55.

    Returns:
        float64 [...], 1 or 0.

    Raises:
        ValueError: the shapes differ, or the interval is out of range.
    """
    if current.shape != previous.shape:
        raise ValueError(f"extended comfort: shapes differ: {list(current.shape)} and {list(previous.shape)}")
    steps = round(interval_s / INTERVAL_S)
    if not 0.0 < interval_s < MAX_INTERVAL_S or steps < 1:
        raise ValueError(f"extended comfort: frames must be 0.05 to {MAX_INTERVAL_S} s apart, got {interval_s}")
    now, before = _features(current[..., :-steps, :]), _features(previous[..., steps:, :])
    agree = [
        (a - b).square().mean(dim=-1).sqrt() <= bound
        for a, b, bound in zip(now, before, (_ACCEL, _JERK, _YAW_RATE, _YAW_ACCEL), strict=True)
    ]
    return torch.stack(agree).all(dim=0).double()


def _features(states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Acceleration, jerk, yaw rate and yaw acceleration [..., K], smoothed."""
    count = states.shape[-2]
    accel = smooth(length(states[..., AX], states[..., AY]), savgol(count, 8, 2))
    jerk = smooth(accel, savgol(count, 15, 2, 1, INTERVAL_S))
    heading = unwrap_by_rounding(states[..., HEADING])
    yaw_rate = smooth(heading, savgol(count, 5, 2, 1, INTERVAL_S))
    # Degree 2 here, 3 in the comfort metric: the devkit's defaults differ.
    yaw_accel = smooth(heading, savgol(count, 5, 2, 2, INTERVAL_S))
    return accel, jerk, yaw_rate, yaw_accel
