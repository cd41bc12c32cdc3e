"""From the ego frame to pixels: the driven path on the ground, seen by a camera.

Trajectories are planar; the ground under them is not z = 0. The ego frame's origin is the rear axle, a wheel radius
above the road in nuPlan's logs and on it in others, and the frame pitches with the car. So the ground is a plane
z = h + a x + b y, fitted to what stands on it: the undersides of the annotated road users near the car, with a prior
on the axle height and the slopes, and little trust in outliers. The lens is that of the records, with its distortion,
since the stored images have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from shards_schema.lens import Lens
from shards_schema.poses import Float64

AXLE_HEIGHT, AXLE_SIGMA = 0.18, 0.25
"""Prior of the rear axle's height over the ground [m]: between a frame that lies on the road and a tyre's radius."""
SLOPE_SIGMA = 0.02
"""Prior of the ground's slopes in the ego frame (pitch, roll and the road's own)."""
UNDERSIDE_SIGMA = 0.15
"""Scatter of annotated undersides around the ground [m]; more than two of it off counts as an outlier."""
REACH = 50.0
"""Boxes farther than this [m] say nothing about the ground under the path."""
STANDING = frozenset({"vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier"})

NEAR = 0.5
"""Points less than this [m] before the camera are clipped."""
STEP = 0.25
"""Spacing [m] of the points of a dense path."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The plane z = h + a x + b y in the ego frame."""

    h: float
    a: float
    b: float

    def lift(self, xy: Float64) -> Float64:
        """Points [N, 2] on the ground as [N, 3]."""
        return np.column_stack([xy, self.h + xy @ np.array([self.a, self.b])])


def fit_ground(annotations: Mapping[str, Any] | None) -> Ground:
    """The ground of a frame, by iterated reweighted least squares (Huber) with a Gaussian prior.

    Args:
        annotations: of ``<token>.json``; None or empty gives the prior.
    """
    precision = np.diag([AXLE_SIGMA**-2, SLOPE_SIGMA**-2, SLOPE_SIGMA**-2])
    prior = np.array([-AXLE_HEIGHT, 0.0, 0.0])
    names = np.array(annotations["names"] if annotations else [], dtype=str)
    boxes = np.array(annotations["boxes"] if annotations else [], dtype=np.float64).reshape(-1, 7)
    near = (np.hypot(boxes[:, 0], boxes[:, 1]) < REACH) & np.isin(names, list(STANDING))
    x, y, bottom = boxes[near, 0], boxes[near, 1], boxes[near, 2] - boxes[near, 5] / 2
    design = np.column_stack([np.ones_like(x), x, y])
    plane = prior
    for _ in range(10):
        off = np.abs(bottom - design @ plane) / (2 * UNDERSIDE_SIGMA)
        weight = 1 / np.maximum(off, 1) / UNDERSIDE_SIGMA**2
        plane = np.linalg.solve(
            precision + design.T @ (weight[:, None] * design), precision @ prior + design.T @ (weight * bottom)
        )
    return Ground(*(float(v) for v in plane))


def polyline(eye: Lens, points: Float64) -> list[Float64]:
    """An ego polyline [N, 3] as the pieces of it that lie before the camera, pixels [M, 2], cut at `NEAR`."""
    camera = eye.to_camera(points)
    depth = camera[:, 2] - NEAR
    pieces: list[list[Float64]] = [[]]
    for i, here in enumerate(camera):
        if i and (depth[i - 1] > 0) != (depth[i] > 0):
            share = depth[i - 1] / (depth[i - 1] - depth[i])
            pieces[-1].append(camera[i - 1] + share * (here - camera[i - 1]))
            if depth[i] <= 0:
                pieces.append([])
        if depth[i] > 0:
            pieces[-1].append(here)
    seen = (eye.project(np.stack(piece)) for piece in pieces if piece)
    return [line for pixels, known in seen if len(line := pixels[known]) > 1]


def dense_path(poses: Float64) -> Float64:
    """A smooth path [M, 3] through poses [N, 3] (x, y, heading), points at most `STEP` metres apart.

    Cubic Hermite pieces whose tangents follow the headings (reversed where the car drives backwards); the poses
    themselves are among the points.
    """
    out = [poses[0]]
    for one, two in pairwise(poses):
        chord = two[:2] - one[:2]
        length = float(np.hypot(*chord))
        t = np.linspace(0, 1, max(1, int(np.ceil(length / STEP))) + 1)[1:, None]
        ends = [np.array([np.cos(p[2]), np.sin(p[2])]) for p in (one, two)]
        tangents = [length * e * (1.0 if e @ chord >= 0 else -1.0) for e in ends]
        xy = (
            (2 * t**3 - 3 * t**2 + 1) * one[:2]
            + (t**3 - 2 * t**2 + t) * tangents[0]
            + (3 * t**2 - 2 * t**3) * two[:2]
            + (t**3 - t**2) * tangents[1]
        )
        turn = np.arctan2(np.sin(two[2] - one[2]), np.cos(two[2] - one[2]))
        out += list(np.column_stack([xy, one[2] + t[:, 0] * turn]))
    return np.stack(out)


def beside(path: Float64, offset: float) -> Float64:
    """Points [N, 2] that lie `offset` metres to the left of each pose of a path [N, 3]."""
    normal = np.column_stack([-np.sin(path[:, 2]), np.cos(path[:, 2])])
    return np.asarray(path[:, :2] + offset * normal)
