"""A trajectory as the 41 reference poses that the simulator tracks.

The devkit interpolates between the current pose and the given ones, at times that it truncates to whole microseconds
after a round trip through float seconds. A microsecond is up to 3e-5 m, which a threshold can notice, so the same
float64 arithmetic is done here, from the scene's time stamp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoring.vehicle import INTERVAL_S, STEPS

_US = 1e-6


def wrap(angle: Tensor) -> Tensor:
    """`angle` [rad] in [-pi, pi), by modulo."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi


def unwrap(angle: Tensor) -> Tensor:
    """`angle` [..., T] without jumps of more than pi between neighbours (numpy's rule: a jump of pi keeps its sign)."""
    step = angle.diff(dim=-1)
    wrapped = wrap(step)
    wrapped = torch.where((wrapped == -math.pi) & (step > 0), math.pi, wrapped)
    correction = torch.where(step.abs() < math.pi, 0.0, wrapped - step)
    return torch.cat((angle[..., :1], angle[..., 1:] + correction.cumsum(dim=-1)), dim=-1)


def sample_times(timestamp_us: Tensor) -> Tensor:
    """int64 [..., 41] microseconds after `timestamp_us` int64 [...] at which the devkit samples a trajectory."""
    start = timestamp_us.double() * _US
    step = torch.arange(STEPS, dtype=torch.float64, device=timestamp_us.device) * INTERVAL_S
    return ((step + start[..., None]) * 1e6).long() - timestamp_us[..., None]


def knot_times(timestamp_us: Tensor, count: int, interval_s: float) -> Tensor:
    """int64 [..., 1 + count] microseconds after `timestamp_us` of the current pose and the `count` given ones."""
    start = timestamp_us.double() * _US
    step = torch.arange(count, dtype=torch.float64, device=timestamp_us.device) * interval_s + interval_s
    given = ((step + start[..., None]) * 1e6).long() - timestamp_us[..., None]
    return torch.cat((torch.zeros_like(given[..., :1]), given), dim=-1)


def interpolate(times: Tensor, poses: Tensor, at: Tensor) -> Tensor:
    """Poses at the times `at`, linear between knots, the last (first) one held after (before) them.

    Args:
        times: int64 [B, K] microseconds, increasing.
        poses: float64 [B, K, 3].
        at: int64 [B, T].

    Returns:
        float64 [B, T, 3], headings in [-pi, pi).
    """
    poses = torch.cat((poses[..., :2], unwrap(poses[..., 2])[..., None]), dim=-1)
    at = at.clamp(min=times[:, :1], max=times[:, -1:])
    high = torch.searchsorted(times, at.contiguous()).clamp(1, times.shape[1] - 1)
    low = high - 1
    t_low, t_high = times.gather(1, low), times.gather(1, high)
    p_low = poses.gather(1, low[..., None].expand(-1, -1, 3))
    p_high = poses.gather(1, high[..., None].expand(-1, -1, 3))
    slope = (p_high - p_low) / (t_high - t_low).double()[..., None]
    value = slope * (at - t_low).double()[..., None] + p_low
    return torch.cat((value[..., :2], wrap(value[..., 2:])), dim=-1)


def reference_poses(trajectories: Tensor, timestamp_us: Tensor, interval_s: float) -> Tensor:
    """The reference of each trajectory.

    Args:
        trajectories: float64 [B, T, 3], x, y, heading relative to the rear axle now, at interval_s, 2 interval_s, ...
            Shorter than 4 s: the last pose is held.
        timestamp_us: int64 [B], microseconds of now.
        interval_s: seconds between poses.

    Returns:
        float64 [B, 41, 3], at 0.0, 0.1, ..., 4.0 s; the first is zero.
    """
    poses = torch.cat((torch.zeros_like(trajectories[:, :1]), trajectories), dim=1)
    times = knot_times(timestamp_us, trajectories.shape[1], interval_s)
    return interpolate(times, poses, sample_times(timestamp_us))
