"""Plane curves and polygons: arc-length parametrised paths, offsets, Bezier curves, oriented boxes.

Metres and radians, float64, headings counter-clockwise from +x. A `Path` is dense (about 1 m or less between points),
so linear interpolation between its points is exact to a millimetre at the curvatures of roads.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from shards_schema.poses import Float64


def rng_of(*keys: int | str) -> np.random.Generator:
    """A generator that depends on `keys` only: the one source of chance, so that order and processes do not matter."""
    return np.random.default_rng([k if isinstance(k, int) else zlib.crc32(k.encode()) for k in keys])


def unit(angle: ArrayLike) -> Float64:
    """[..., 2] unit vectors of `angle`."""
    a = np.asarray(angle, dtype=np.float64)
    return np.stack((np.cos(a), np.sin(a)), axis=-1)


def rotated(xy: ArrayLike, angle: float) -> Float64:
    """[..., 2] points turned about the origin."""
    p, c, s = np.asarray(xy, dtype=np.float64), np.cos(angle), np.sin(angle)
    return np.stack((c * p[..., 0] - s * p[..., 1], s * p[..., 0] + c * p[..., 1]), axis=-1)


def bezier(p0: Float64, d0: Float64, p1: Float64, d1: Float64, handle: float, step: float = 1.0) -> Float64:
    """[N, 2] points of the cubic from `p0` with direction `d0` to `p1` with `d1`; handles are `handle` [m] long."""
    n = max(4, int(np.ceil(np.hypot(*(p1 - p0)) / step)) + 1)
    t = np.linspace(0.0, 1.0, n)[:, None]
    a, b = p0 + d0 * handle, p1 - d1 * handle
    return (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 * p1


@dataclass(frozen=True, eq=False)
class Path:
    """A curve by points [N, 2], N >= 2, no two consecutive ones equal."""

    xy: Float64

    @cached_property
    def s(self) -> Float64:
        """[N] arc length at the points."""
        return np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(self.xy, axis=0).T))))

    @cached_property
    def heading(self) -> Float64:
        """[N] unwrapped tangent angle: central differences, one-sided at the ends."""
        d = np.gradient(self.xy, self.s, axis=0)
        return np.unwrap(np.arctan2(d[:, 1], d[:, 0]))

    @cached_property
    def curvature(self) -> Float64:
        """[N] signed curvature, positive to the left."""
        return np.gradient(self.heading, self.s)

    @property
    def length(self) -> float:
        """Arc length of the whole."""
        return float(self.s[-1])

    def point(self, s: ArrayLike, left: ArrayLike = 0.0) -> Float64:
        """[..., 2] the points at arc length `s`, `left` metres to the left; ends are extended by nothing (clamped)."""
        at = np.asarray(s, dtype=np.float64)
        p = np.stack((np.interp(at, self.s, self.xy[:, 0]), np.interp(at, self.s, self.xy[:, 1])), axis=-1)
        h = np.interp(at, self.s, self.heading)
        return p + np.stack((-np.sin(h), np.cos(h)), axis=-1) * np.asarray(left, dtype=np.float64)[..., None]

    def pose(self, s: ArrayLike, left: ArrayLike = 0.0) -> Float64:
        """[..., 3] x, y, heading at `s`."""
        h = np.interp(np.asarray(s, dtype=np.float64), self.s, self.heading)
        return np.concatenate((self.point(s, left), np.asarray(h)[..., None]), axis=-1)

    def offset(self, left: float) -> Path:
        """The parallel curve `left` metres to the left."""
        normal = np.stack((-np.sin(self.heading), np.cos(self.heading)), axis=-1)
        return Path(self.xy + normal * left)

    def reversed(self) -> Path:
        """The same curve, the other way."""
        return Path(self.xy[::-1].copy())

    def resampled(self, step: float) -> Path:
        """Points at equal distances of about `step`."""
        n = max(2, round(self.length / step) + 1)
        return Path(self.point(np.linspace(0.0, self.length, n)))

    def smoothed(self, sigma: float) -> Path:
        """Convolved with a Gaussian of `sigma` metres, ends held: curvature becomes continuous, as a driver steers."""
        path, step = self.resampled(0.5), 0.5
        reach = int(np.ceil(3 * sigma / step))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / sigma) ** 2)
        kernel /= kernel.sum()
        # Both ends are continued straight, so that the smoothed curve starts and ends where the given one does.
        head = path.xy[0] + (path.xy[0] - path.xy[1]) * np.arange(reach, 0, -1)[:, None]
        tail = path.xy[-1] + (path.xy[-1] - path.xy[-2]) * np.arange(1, reach + 1)[:, None]
        padded = np.concatenate((head, path.xy, tail))
        return Path(np.stack([np.convolve(padded[:, i], kernel, mode="valid") for i in (0, 1)], axis=-1))

    def project(self, xy: ArrayLike) -> float:
        """Arc length of the nearest point on the curve."""
        p, a = np.asarray(xy, dtype=np.float64), self.xy[:-1]
        d = np.diff(self.xy, axis=0)
        t = np.clip(((p - a) * d).sum(-1) / (d * d).sum(-1), 0.0, 1.0)
        i = int(np.argmin(((a + d * t[:, None] - p) ** 2).sum(-1)))
        return float(self.s[i] + t[i] * (self.s[i + 1] - self.s[i]))


def joined(paths: list[Path]) -> Path:
    """One path of several that meet end to end (doubled points are dropped)."""
    xy = np.concatenate([p.xy for p in paths])
    keep = np.concatenate(([True], np.hypot(*np.diff(xy, axis=0).T) > 1e-6))
    return Path(xy[keep])


def strip(path: Path, left: float, right: float) -> Float64:
    """[2N, 2] ring between two offsets of a path (`left` > `right`, both positive to the left); not closed."""
    return np.concatenate((path.offset(left).xy, path.offset(right).xy[::-1]))


def rectangle(x: float, y: float, heading: float, length: float, width: float) -> Float64:
    """[4, 2] corners of an oriented box: front left, rear left, rear right, front right."""
    local = np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2.0
    return np.asarray(rotated(local, heading) + np.array([x, y]))


def overlap(a: Float64, b: Float64) -> bool:
    """Whether two convex polygons [N, 2] share area (separating axes: Gottschalk et al., OBBTree, 1996)."""
    for ring in (a, b):
        edge = np.roll(ring, -1, axis=0) - ring
        axes = np.stack((-edge[:, 1], edge[:, 0]), axis=-1)
        pa, pb = a @ axes.T, b @ axes.T
        if np.any((pa.max(0) <= pb.min(0)) | (pb.max(0) <= pa.min(0))):
            return False
    return True
