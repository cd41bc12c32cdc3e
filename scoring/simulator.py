"""The LQR tracker and the kinematic bicycle that turn a reference into what the vehicle would do.

Batched over rows in float64: 40 sequential steps, each a few dozen small tensor operations. Two least-squares fits
come first, and neither needs a pseudo-inverse per row:

- velocity: the columns of the devkit's system are unit vectors scaled by constants, so its normal matrix does not
  depend on the trajectory. The fit is one constant 40 x 40 operator on the displacements along the headings.
- curvature: written in the curvatures rather than their rates, the normal matrix is tridiagonal, a chain of springs
  (the rate penalty) and weights to ground (the velocities). Two sweeps solve it, with no subtraction and so no loss of
  accuracy when the vehicle hardly moves, where the devkit's own matrix has a condition number of 1e10 and more.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from scoring.reference import wrap
from scoring.rowwise import half_turn, transform
from scoring.vehicle import STATE_SIZE, STEPS, WHEEL_BASE

_DT = 100_000 * 1e-6
"""Seconds of a step, as the devkit gets it from whole microseconds."""

_MOVES = STEPS - 1
_HORIZON = 10
_ACCELERATION_PENALTY = 1e-4
_CURVATURE_RATE_PENALTY = 1e-2
_INITIAL_CURVATURE_PENALTY = 1e-10
_STOPPING_SPEED = 0.2
_STOPPING_GAIN = 0.5
_SPEED_GAIN = 10.0 / 11.0
_LATERAL_WEIGHT, _HEADING_WEIGHT, _STEERING_RATE_WEIGHT = 1.0, 10.0, 1.0
_ACCELERATION_LAG_S = 0.2
_STEERING_LAG_S = 0.05
_MAX_STEERING = math.pi / 3.0


@functools.cache
def _velocity_operator() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """float64 [40, 40]: displacement along the heading of each step -> fitted speed at its start."""
    moves = np.arange(_MOVES)
    integrate = np.where(moves[None, :] <= moves[:, None], _DT, 0.0)
    integrate[:, 0] = 1.0
    # What the devkit penalises is not the difference of accelerations that its documentation speaks of: its helper
    # overwrites the +1 band, which leaves the accelerations themselves, and one difference in the last row.
    penalty = np.zeros((_MOVES - 2, _MOVES))
    rows = np.arange(_MOVES - 2)
    penalty[rows, rows + 1] = -1.0
    penalty[-1, -1] = 1.0
    design = integrate * _DT
    normal = design.T @ design + _ACCELERATION_PENALTY * penalty.T @ penalty
    return np.asarray(integrate @ np.linalg.solve(normal, design.T), dtype=np.float64)


def velocity_profile(poses: Tensor) -> Tensor:
    """Fitted speeds [B, 40] [m/s] at the start of each step of the reference `poses` [B, 41, 3]."""
    heading = poses[:, :-1, 2]
    move = poses[:, 1:, :2] - poses[:, :-1, :2]
    along = move[..., 0] * heading.cos() + move[..., 1] * heading.sin()
    return transform(along, torch.from_numpy(_velocity_operator()).to(poses.device))


def curvature_profile(poses: Tensor, velocity: Tensor) -> Tensor:
    """Fitted curvatures [B, 40] [1/m] for the reference `poses` [B, 41, 3] driven at `velocity` [B, 40].

    Minimises sum (v_k dt kappa_k - turn_k)^2 + 0.01 sum ((kappa_{k+1} - kappa_k) / dt)^2 + 1e-10 kappa_0^2.
    """
    turn = half_turn(poses[:, 1:, 2] - poses[:, :-1, 2])
    travel = velocity * _DT
    spring = _CURVATURE_RATE_PENALTY / _DT**2
    weight = (travel * travel).unbind(dim=1)
    pull = (travel * turn).unbind(dim=1)
    ground, force = [weight[0] + _INITIAL_CURVATURE_PENALTY], [pull[0]]
    for k in range(1, _MOVES):
        through = spring / (spring + ground[-1])
        force.append(pull[k] + force[-1] * through)
        ground.append(weight[k] + ground[-1] * through)
    kappa = [force[-1] / ground[-1]]
    for k in range(_MOVES - 2, -1, -1):
        kappa.append((force[k] + spring * kappa[-1]) / (spring + ground[k]))
    return torch.stack(kappa[::-1], dim=1)


def simulate(poses: Tensor, initial: Tensor) -> Tensor:
    """Drive along reference poses.

    Args:
        poses: float64 [B, 41, 3], from `reference.reference_poses`.
        initial: float64 [B, 11], the state now.

    Returns:
        float64 [B, 41, 11]; the first state is `initial`.
    """
    velocity = velocity_profile(poses)
    curvature = curvature_profile(poses, velocity)
    cos_ref, sin_ref = poses[..., 2].cos(), poses[..., 2].sin()
    ahead = torch.arange(_HORIZON, dtype=torch.float64, device=poses.device)
    out = torch.empty((poses.shape[0], STEPS, STATE_SIZE), dtype=torch.float64, device=poses.device)
    out[:, 0] = initial
    x, y, theta, vx, _, ax, _, steer, _, yaw_rate, _ = initial.unbind(dim=1)
    zero = torch.zeros_like(x)
    for i in range(_MOVES):
        last = min(i + _HORIZON, _MOVES - 1)
        window = curvature[:, i:last]
        if last - i < _HORIZON:
            window = torch.cat((window, curvature[:, last, None].expand(-1, _HORIZON - (last - i))), dim=1)
        v_ref = velocity[:, last]
        dx, dy = x - poses[:, i, 0], y - poses[:, i, 1]
        e_lat = dy * cos_ref[:, i] - dx * sin_ref[:, i]
        e_head = wrap(theta - poses[:, i, 2])
        stopping = (v_ref <= _STOPPING_SPEED) & (vx <= _STOPPING_SPEED)
        accel = torch.where(stopping, -_STOPPING_GAIN * (vx - v_ref), -_SPEED_GAIN * (vx - v_ref))
        travel = (vx[:, None] + ahead * (accel * _DT)[:, None]) * _DT
        steering_rate = torch.where(stopping, zero, _steering_rate(e_lat, e_head, steer, travel, window, ahead))

        new_ax = ax + _DT / (_DT + _ACCELERATION_LAG_S) * (accel - ax)
        # The devkit's filter adds the command to the angle, takes the difference again, and divides by the step.
        ideal = _DT * steering_rate + steer
        rate = ((_DT / (_DT + _STEERING_LAG_S) * (ideal - steer) + steer) - steer) / _DT
        x, y, theta, vx = (
            x + vx * theta.cos() * _DT,
            y + vx * theta.sin() * _DT,
            wrap(theta + vx * steer.tan() / WHEEL_BASE * _DT),
            vx + new_ax * _DT,
        )
        steer = (steer + rate * _DT).clamp(-_MAX_STEERING, _MAX_STEERING)
        new_yaw_rate = vx * steer.tan() / WHEEL_BASE
        yaw_accel = (new_yaw_rate - yaw_rate) / _DT
        ax, yaw_rate = new_ax, new_yaw_rate
        out[:, i + 1] = torch.stack((x, y, theta, vx, zero, ax, zero, steer, rate, yaw_rate, yaw_accel), dim=1)
    return out


def _steering_rate(
    e_lat: Tensor, e_head: Tensor, steer: Tensor, travel: Tensor, curvature: Tensor, ahead: Tensor
) -> Tensor:
    """One-step LQR of the lateral error [B] over the look-ahead: metres `travel` [B, 10], 1/m `curvature` [B, 10].

    The ten transition matrices are unit upper triangular, so their product is two cumulative sums.
    """
    turn = travel * (steer[:, None] / WHEEL_BASE - curvature)
    heading = e_head[:, None] + _before(turn)
    lat_end = e_lat + (travel * heading).sum(dim=1)
    head_end = wrap(heading[:, -1] + turn[:, -1])
    gain = travel / WHEEL_BASE * (ahead * _DT)
    heading_gain = _before(gain)
    lat_gain = (travel * heading_gain).sum(dim=1)
    head_gain = heading_gain[:, -1] + gain[:, -1]
    numerator = _LATERAL_WEIGHT * lat_gain * lat_end + _HEADING_WEIGHT * head_gain * head_end
    return -numerator / (
        _LATERAL_WEIGHT * lat_gain * lat_gain + _HEADING_WEIGHT * head_gain * head_gain + _STEERING_RATE_WEIGHT
    )


def _before(values: Tensor) -> Tensor:
    """Exclusive cumulative sum along the last axis."""
    return torch.cat((torch.zeros_like(values[:, :1]), values[:, :-1].cumsum(dim=1)), dim=1)
