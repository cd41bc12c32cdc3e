"""The simulator against the same text written out plainly: one trajectory, numpy, pseudo-inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoring.metrics.savgol import savgol, unwrap_by_rounding
from scoring.reference import reference_poses, unwrap
from scoring.simulator import curvature_profile, simulate, velocity_profile

DT = 0.1


def wrapped(a: float) -> float:
    return math.atan2(math.sin(a), math.cos(a))


def plain_velocity(poses: np.ndarray) -> np.ndarray:
    y = np.diff(poses[:, :2], axis=0).reshape(-1)
    a = np.zeros((80, 40))
    for k in range(40):
        for axis, unit in enumerate((math.cos(poses[k, 2]), math.sin(poses[k, 2]))):
            a[2 * k + axis, 0] = unit * DT
            a[2 * k + axis, 1 : k + 1] = unit * DT**2
    r = np.zeros((38, 40))
    for row in range(38):
        r[row, row + 1] = -1
    r[37, 39] = 1
    z = np.linalg.pinv(a.T @ a + 1e-4 * r.T @ r) @ a.T @ y
    return np.array([z[0] + DT * z[1 : k + 1].sum() for k in range(40)])


def plain_curvature(poses: np.ndarray, v: np.ndarray) -> np.ndarray:
    y = np.array([wrapped(d) for d in np.diff(poses[:, 2])])
    a = np.zeros((40, 40))
    for k in range(40):
        a[k, 0] = v[k] * DT
        a[k, 1 : k + 1] = v[k] * DT**2
    q = 0.01 * np.eye(40)
    q[0, 0] = 1e-10
    z = np.linalg.pinv(a.T @ a + q, rcond=1e-15) @ a.T @ y
    return np.array([z[0] + DT * z[1 : k + 1].sum() for k in range(40)])


def plain_simulation(poses: np.ndarray, initial: np.ndarray) -> np.ndarray:
    v_fit = plain_velocity(poses)
    kappa = plain_curvature(poses, v_fit)
    out = np.zeros((41, 11))
    out[0] = s = initial
    for i in range(40):
        x, y, th, vx, _, ax, _, delta, _, omega, _ = s
        last = min(i + 10, 39)
        window = [kappa[min(i + n, last)] if i + n < last else kappa[last] for n in range(10)]
        e = np.array(
            [
                -(x - poses[i, 0]) * math.sin(poses[i, 2]) + (y - poses[i, 1]) * math.cos(poses[i, 2]),
                wrapped(th - poses[i, 2]),
                delta,
            ]
        )
        if v_fit[last] <= 0.2 and vx <= 0.2:
            accel, rate = -0.5 * (vx - v_fit[last]), 0.0
        else:
            accel = -10 / 11 * (vx - v_fit[last])
            a_all, b, g = np.eye(3), np.zeros(3), np.zeros(3)
            for n in range(10):
                u = vx + n * accel * DT
                step = np.eye(3)
                step[0, 1], step[1, 2] = u * DT, u * DT / 3.089
                a_all, b = step @ a_all, step @ b + np.array([0, 0, DT])
                g = step @ g + np.array([0, -u * window[n] * DT, 0])
            err = a_all @ e + g
            err[1:] = [wrapped(v) for v in err[1:]]
            q = np.diag([1.0, 10.0, 0.0])
            rate = -(b @ q @ err) / (b @ q @ b + 1)
        ax_new = ax + DT / (DT + 0.2) * (accel - ax)
        filtered = delta + DT / (DT + 0.05) * (DT * rate)
        d_dot = (filtered - delta) / DT
        v_new = vx + ax_new * DT
        d_new = min(max(delta + d_dot * DT, -math.pi / 3), math.pi / 3)
        omega_new = v_new * math.tan(d_new) / 3.089
        th_new = (th + vx * math.tan(delta) / 3.089 * DT + math.pi) % (2 * math.pi) - math.pi
        s = np.array(
            [
                x + vx * math.cos(th) * DT,
                y + vx * math.sin(th) * DT,
                th_new,
                v_new,
                0,
                ax_new,
                0,
                d_new,
                d_dot,
                omega_new,
                (omega_new - omega) / DT,
            ]
        )
        out[i + 1] = s
    return out


def trajectory(rng: np.random.Generator, kind: str) -> np.ndarray:
    """[8, 3] poses."""
    if kind == "stop":
        return np.zeros((8, 3))
    if kind == "noise":
        return np.column_stack((np.cumsum(rng.normal(3, 2, 8)), rng.normal(0, 2, 8), rng.normal(0, 3, 8)))
    speed, turn = rng.uniform(0, 14), rng.uniform(-0.5, 0.5)
    if kind == "reverse":
        speed = -rng.uniform(0.1, 2)
    heading = turn * 0.5 * np.arange(1, 9)
    mean = heading - turn * 0.25
    return np.column_stack((np.cumsum(speed * 0.5 * np.cos(mean)), np.cumsum(speed * 0.5 * np.sin(mean)), heading))


@pytest.mark.parametrize("kind", ["arc", "stop", "noise", "reverse"])
def test_batched_equals_plain(kind: str) -> None:
    rng = np.random.default_rng(4)
    poses = np.stack([trajectory(rng, kind) for _ in range(6)])
    initial = np.zeros((6, 11))
    initial[:, 3] = [0.0, 0.1, 0.3, 4.0, 9.0, 13.0]
    initial[:, 5] = rng.normal(0, 1, 6)
    initial[:, 6] = rng.normal(0, 1, 6)
    start = torch.full((6,), 1_630_000_011_500_000)
    reference = reference_poses(torch.from_numpy(poses), start, 0.5)
    states = simulate(reference, torch.from_numpy(initial))
    for k in range(6):
        ref = reference[k].numpy()
        np.testing.assert_allclose(velocity_profile(reference)[k], plain_velocity(ref), atol=1e-9)
        moving = np.abs(plain_velocity(ref)).max() > 0.05
        if moving:
            fit = curvature_profile(reference, velocity_profile(reference))[k]
            np.testing.assert_allclose(fit, plain_curvature(ref, plain_velocity(ref)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(states[k], plain_simulation(ref, initial[k]), atol=1e-6)


def test_reference_interpolates_and_holds_the_last_pose() -> None:
    poses = torch.tensor([[[1.0, 0.0, 3.0], [2.0, 2.0, -3.0]]], dtype=torch.float64)
    out = reference_poses(poses, torch.tensor([1_000_000]), 0.5)[0]
    assert out.shape == (41, 3)
    np.testing.assert_allclose(out[0], 0.0)
    # Sample times are cut to whole microseconds: up to 2e-6 of a metre here.
    np.testing.assert_allclose(out[5], [1.0, 0.0, 3.0], atol=1e-5)
    np.testing.assert_allclose(out[7, :2], [1.4, 0.8], atol=1e-5)
    # Heading from 3 to -3 goes the short way, through pi.
    assert abs(float(out[7, 2])) > 3.0
    np.testing.assert_allclose(out[10:], poses[0, 1].expand(31, 3), atol=1e-5)


def test_poses_every_tenth_of_a_second_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(5)
    poses = torch.from_numpy(np.cumsum(rng.normal(0.3, 0.1, (1, 40, 3)), axis=1))
    poses[..., 2] = torch.atan2(poses[..., 2].sin(), poses[..., 2].cos())
    out = reference_poses(poses, torch.tensor([1_630_000_011_500_000]), 0.1)
    np.testing.assert_allclose(out[0, 1:, :2], poses[0, :, :2], atol=1e-5)


def test_unwrap_equals_numpy() -> None:
    angles = np.random.default_rng(6).uniform(-3.2, 3.2, (50, 20))
    angles[0, :4] = [0.0, math.pi, 0.0, -math.pi]
    np.testing.assert_allclose(unwrap(torch.from_numpy(angles)), np.unwrap(angles, axis=-1), atol=1e-12)
    np.testing.assert_allclose(unwrap_by_rounding(torch.tensor([[3.0, -3.0]])), [[3.0, -3.0 + 2 * math.pi]], atol=1e-6)


@pytest.mark.parametrize("count", [36, 41, 55, 56])
@pytest.mark.parametrize(("window", "degree", "derivative"), [(8, 2, 0), (15, 2, 1), (5, 2, 1), (5, 3, 2), (5, 2, 2)])
def test_filters_equal_scipy(count: int, window: int, degree: int, derivative: int) -> None:
    scipy = pytest.importorskip("scipy.signal")
    delta = 0.1 if derivative else 1.0
    expected = scipy.savgol_filter(np.eye(count), window, degree, deriv=derivative, delta=delta, axis=0)
    np.testing.assert_allclose(savgol(count, window, degree, derivative, delta), expected, atol=1e-11)


@pytest.mark.parametrize("derivative", [0, 1])
def test_the_filter_as_long_as_the_signal_equals_scipy(derivative: int) -> None:
    scipy = pytest.importorskip("scipy.signal")
    expected = scipy.savgol_filter(np.eye(41), 41, 2, deriv=derivative, delta=0.1, axis=0)
    np.testing.assert_allclose(savgol(41, 41, 2, derivative, 0.1), expected, atol=1e-11)
