"""A polyline with headings that one can walk along: where a proposal of PDM-Closed gets after so many metres."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.ops import substring

Float64 = NDArray[np.float64]

_FIRST_M = 1e-5


class DiscretePath:
    """Global poses [P, 3] in driving order; points may repeat.

    Attributes:
        line: the same as a LineString.
        length: metres.
    """

    def __init__(self, poses: Float64) -> None:
        self._poses = poses.copy()
        self._poses[:, 2] = np.unwrap(poses[:, 2])
        step = np.diff(poses[:, :2], axis=0)
        self._along = np.append(0.0, np.sqrt((step**2).sum(axis=1))).cumsum()
        self.line = shapely.linestrings(poses[:, :2])
        self.length = float(self._along[-1])

    def project(self, points: NDArray[np.object_] | shapely.Geometry) -> Float64:
        """Metres along the line to the place nearest to each point."""
        return np.asarray(shapely.line_locate_point(self.line, points))

    def at(self, metres: Float64) -> Float64:
        """Poses [K, 3] after `metres` [K], held at both ends; headings in (-pi, pi]. NaN metres give 0, as upstream."""
        metres = np.clip(metres, _FIRST_M, self.length)
        high = np.searchsorted(self._along, metres).clip(1, len(self._along) - 1)
        low = high - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (self._poses[high] - self._poses[low]) / (self._along[high] - self._along[low])[:, None]
            out = slope * (metres - self._along[low])[:, None] + self._poses[low]
        out[:, 2] = np.arctan2(np.sin(out[:, 2]), np.cos(out[:, 2]))
        return np.where(np.isnan(out), 0.0, out)

    def part(self, start: float, end: float) -> shapely.Geometry:
        """The line from `start` to `end` metres: the given points within, if there are two; else cut exactly."""
        start, end = np.clip((start, end), 0.0, self.length)
        within = (start <= self._along) & (self._along <= end)
        if within.sum() > 1:
            return shapely.linestrings(self._poses[within, :2])
        return substring(self.line, start, end)


def shifted(poses: Float64, offset: float) -> Float64:
    """`poses` [P, 3] moved `offset` metres to the left of their headings."""
    left = poses[:, 2] + np.pi / 2
    return np.column_stack((poses[:, 0] + np.cos(left) * offset, poses[:, 1] + np.sin(left) * offset, poses[:, 2]))
