"""Planar poses, as NAVSIM computes them.

A pose is ``[x, y, heading]`` in metres and radians, float64, at the ego's rear axle. Global poses are in the map
frame (UTM); local ones are relative to a global origin pose: x forward, y left, heading counter-clockwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

EGO_FRONT, EGO_REAR, EGO_WIDTH = 4.049, 1.127, 2.297
"""The ego's outline [m] (nuPlan's Pacifica): its bumpers from the rear axle, its width."""


def heading_from_quaternion(q_wxyz: ArrayLike) -> float:
    """NAVSIM's heading [rad] of a Hamilton quaternion ``[w, x, y, z]``.

    This is pyquaternion's ``yaw_pitch_roll[0]``: atan2(2(wz - xy), 1 - 2(y^2 + z^2)). The usual ZYX yaw has a plus
    sign before ``xy``; the devkit's poses, and so its scores, have this one.
    """
    w, x, y, z = (float(v) for v in np.asarray(q_wxyz, dtype=np.float64).reshape(4))
    norm = float(np.sqrt(w * w + x * x + y * y + z * z))
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    return float(np.arctan2(2.0 * (w * z - x * y), 1.0 - 2.0 * (y * y + z * z)))


def to_local(poses: ArrayLike, origin: ArrayLike) -> Float64:
    """Global poses [..., 3] in the frame of the global pose `origin` [3]; headings wrapped to (-pi, pi]."""
    p = np.asarray(poses, dtype=np.float64)
    x0, y0, h0 = np.asarray(origin, dtype=np.float64)
    cos, sin = np.cos(-h0), np.sin(-h0)
    dx, dy, dh = p[..., 0] - x0, p[..., 1] - y0, p[..., 2] - h0
    return np.stack((cos * dx - sin * dy, sin * dx + cos * dy, np.arctan2(np.sin(dh), np.cos(dh))), axis=-1)


def to_global(poses: ArrayLike, origin: ArrayLike) -> Float64:
    """The inverse of `to_local`: local poses [..., 3] in the map frame."""
    p = np.asarray(poses, dtype=np.float64)
    x0, y0, h0 = np.asarray(origin, dtype=np.float64)
    cos, sin = np.cos(h0), np.sin(h0)
    heading = p[..., 2] + h0
    return np.stack(
        (
            x0 + cos * p[..., 0] - sin * p[..., 1],
            y0 + sin * p[..., 0] + cos * p[..., 1],
            np.arctan2(np.sin(heading), np.cos(heading)),
        ),
        axis=-1,
    )


def as_float64(values: Any, shape: tuple[int, ...], what: str) -> Float64:
    """`values` as a finite float64 array of `shape`.

    Raises:
        ValueError: another shape, not numbers, or not finite; the message begins with `what`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{what}: expected shape {list(shape)}, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: not finite: {array.tolist()}")
    return array
