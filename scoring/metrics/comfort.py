"""C, comfort (v1), and HC, history comfort (v2): 1 or 0."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.context import ContextBatch
from scoring.metrics.savgol import savgol, smooth, unwrap_by_rounding
from scoring.rowwise import length
from scoring.vehicle import AX, AY, HEADING, INTERVAL_S, REAR_AXLE_TO_CENTRE, STEPS, YAW_ACCEL, YAW_RATE, Path

_LON_ACCEL = (-4.05, 2.40)
_LAT_ACCEL = 4.89
_JERK = 8.37
_LON_JERK = 4.13
_YAW_ACCEL = 1.93
_YAW_RATE = 0.95


def comfort(path: Path) -> Tensor:
    """v1 [B]: all six signals of the simulated states strictly within bounds at all 41 steps."""
    return _within(
        path.states,
        lon=path.states[..., AX],
        lat=path.states[..., AY],
        accel_window=STEPS,
        jerk_window=STEPS,
    ).double()


def history_comfort(batch: ContextBatch, path: Path) -> Tensor:
    """v2 [B]: the same over the human's last 1.5 s and the simulated states, glued together.

    The gap of 0.2 s where they meet counts as 0.1 s, as in the devkit. Acceleration is that of the outline's centre,
    where the devkit adds the yaw acceleration's part to the longitudinal one.
    """
    score = torch.empty(len(path.scene), dtype=torch.float64, device=path.states.device)
    # Scenes have 14 past states, few have 15: one pass for each count that occurs, not one for each scene.
    counts = batch.past_count[path.scene]
    for count in sorted(set(batch.past_count.tolist())):
        rows = (counts == count).nonzero()[:, 0]
        past = batch.past_states[path.scene[rows], :count]
        states = torch.cat((past, path.states[rows]), dim=1)
        yaw_rate, yaw_accel = states[..., YAW_RATE], states[..., YAW_ACCEL]
        within = _within(
            states,
            lon=states[..., AX] + REAR_AXLE_TO_CENTRE * yaw_rate**2 + REAR_AXLE_TO_CENTRE * yaw_accel,
            lat=states[..., AY],
            accel_window=8,
            jerk_window=15,
        )
        score[rows] = within.double()
    return score


def _within(states: Tensor, lon: Tensor, lat: Tensor, accel_window: int, jerk_window: int) -> Tensor:
    """bool [B] for states [B, K, 11] and the accelerations to judge, [B, K]."""
    count = states.shape[1]
    accel = savgol(count, accel_window, 2)
    short = savgol(count, 8, 2)
    jerk = savgol(count, jerk_window, 2, 1, INTERVAL_S)
    lon_accel, lat_accel = smooth(lon, accel), smooth(lat, accel)
    magnitude_jerk = smooth(length(states[..., AX], states[..., AY]), short, jerk)
    lon_jerk = smooth(lon, short, jerk)
    heading = unwrap_by_rounding(states[..., HEADING])
    yaw_rate = smooth(heading, savgol(count, 5, 2, 1, INTERVAL_S))
    yaw_accel = smooth(heading, savgol(count, 5, 3, 2, INTERVAL_S))
    within = (
        (lon_accel > _LON_ACCEL[0])
        & (lon_accel < _LON_ACCEL[1])
        & (lat_accel.abs() < _LAT_ACCEL)
        & (magnitude_jerk.abs() < _JERK)
        & (lon_jerk.abs() < _LON_JERK)
        & (yaw_accel.abs() < _YAW_ACCEL)
        & (yaw_rate.abs() < _YAW_RATE)
    )
    return within.all(dim=1)
