"""What moved how around now: the car itself and the tracks of a log, as seen from where the car is now.

Frame: that of the car now, x forward, y left, at its rear axle; seconds count from now. Where a frame or a track in it
is missing, nothing is told: `GapError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from shards_schema.poses import EGO_FRONT, EGO_REAR, EGO_WIDTH, Float64, to_global, to_local

SLACK = 0.1
"""Seconds by which a frame may be off the time that is asked for."""
HALF = 0.5
"""Seconds to each side of now over which a speed is measured."""
STEPS = tuple(0.5 * step for step in range(1, 9))
"""Seconds ahead at which the car's path is looked at."""
FLIP = math.pi / 2
"""Radians that nothing turns while it stands."""


class GapError(LookupError):
    """A frame, or a track in a frame, is missing; the text is a word for which."""


@dataclass(frozen=True, eq=False)
class Moment:
    """One frame of a log.

    Attributes:
        timestamp: microseconds.
        pose: float64 [3], global x, y, heading of the car.
        speed: of the car [m/s].
        boxes: track -> float64 [7] in the car's frame of that moment: x, y, z, length, width, height, heading; None
            where the log has no labels.
    """

    timestamp: int
    pose: Float64
    speed: float
    boxes: Mapping[str, Float64] | None = field(repr=False)


class Motion:
    """The frames around now.

    Args:
        moments: of one log, now among them.
        now: its timestamp.
        exact: whether the tracks are the truth itself, and not somebody's estimate.
    """

    def __init__(self, moments: Sequence[Moment], now: int, *, exact: bool) -> None:
        self.exact = exact
        self._now = now
        self._moments = sorted(moments, key=lambda m: m.timestamp)
        self._pose = self.at(0.0).pose
        self._velocities: dict[str, Float64] = {}
        self._gaps: dict[str, float] = {}

    def has(self, seconds: float) -> bool:
        """Whether there is a frame at that time."""
        return self._nearest(seconds) is not None

    def at(self, seconds: float) -> Moment:
        """The frame at that time.

        Raises:
            GapError: ``no_frame``.
        """
        found = self._nearest(seconds)
        if found is None:
            raise GapError("no_frame")
        return found

    def _nearest(self, seconds: float) -> Moment | None:
        wanted = self._now + seconds * 1e6
        found = min(self._moments, key=lambda m: abs(m.timestamp - wanted), default=None)
        return found if found is not None and abs(found.timestamp - wanted) <= SLACK * 1e6 else None

    def elapsed(self, begin: float, end: float) -> float:
        """Seconds between the frames at two times."""
        return (self.at(end).timestamp - self.at(begin).timestamp) * 1e-6

    def pose(self, seconds: float) -> Float64:
        """[3] x, y, heading of the car."""
        return to_local(self.at(seconds).pose, self._pose)

    def relative(self, track: str, seconds: float) -> Float64:
        """[7] the box of a track as the car had it at that time.

        Raises:
            GapError: ``no_frame``, ``no_track``.
        """
        boxes = self.at(seconds).boxes
        if boxes is None:
            raise GapError("no_frame")
        if track not in boxes:
            raise GapError("no_track")
        return boxes[track]

    def place(self, track: str, seconds: float) -> Float64:
        """[3] x, y, heading of a track, as seen from where the car is now."""
        box = self.relative(track, seconds)
        return to_local(to_global(box[[0, 1, 6]], self.at(seconds).pose), self._pose)

    def distance(self, track: str, seconds: float) -> float:
        """Metres from the car to the middle of a track at that time."""
        return math.hypot(*self.relative(track, seconds)[:2].tolist())

    def velocity(self, track: str) -> Float64:
        """[2] m/s over the ground, over a second around now; over half of it where the frames end."""
        if track not in self._velocities:
            begin, end = (side if self.has(side) else 0.0 for side in (-HALF, HALF))
            if begin == end:
                raise GapError("no_frame")
            moved = self.place(track, end)[:2] - self.place(track, begin)[:2]
            self._velocities[track] = moved / self.elapsed(begin, end)
        return self._velocities[track]

    def speed(self, track: str) -> float:
        """m/s over the ground; see `velocity`."""
        return math.hypot(*self.velocity(track).tolist())

    def flips(self, track: str) -> bool:
        """Whether a track's heading turns around between two frames."""
        headings = [m.pose[2] + m.boxes[track][6] for m in self._moments if m.boxes is not None and track in m.boxes]
        return any(abs(math.remainder(b - a, math.tau)) > FLIP for a, b in pairwise(headings))

    def nearest(self, track: str) -> float:
        """The least distance [m] between the outlines of the car and of a track, at `STEPS` ahead."""
        if track not in self._gaps:
            own = _outline(np.zeros(3), EGO_FRONT, EGO_REAR, EGO_WIDTH)
            self._gaps[track] = min(_apart(own, _around(self.relative(track, seconds))) for seconds in STEPS)
        return self._gaps[track]


def _around(box: Float64) -> Float64:
    """[4, 2] the outline of a box [7]."""
    length, width = box[3:5].tolist()
    return _outline(box[[0, 1, 6]], length / 2, length / 2, width)


def _outline(pose: Float64, front: float, rear: float, width: float) -> Float64:
    """[4, 2] the corners of a rectangle, in order around it."""
    corners = [[front, width / 2, 0.0], [-rear, width / 2, 0.0], [-rear, -width / 2, 0.0], [front, -width / 2, 0.0]]
    return to_global(np.array(corners), pose)[:, :2]


def _apart(a: Float64, b: Float64) -> float:
    """Metres between two convex outlines that do not cross; 0 where a corner of one lies in the other."""
    return min(_from_corners(a, b), _from_corners(b, a))


def _from_corners(points: Float64, outline: Float64) -> float:
    """The least distance of points [n, 2] to an outline [m, 2] whose corners go around counter-clockwise."""
    ends = np.roll(outline, -1, axis=0)
    sides = ends - outline
    to = points[:, None] - outline
    along = np.clip((to * sides).sum(-1) / (sides**2).sum(-1), 0.0, 1.0)
    if ((sides[:, 0] * to[..., 1] - sides[:, 1] * to[..., 0]) >= 0).all(1).any():
        return 0.0
    return float(np.linalg.norm(to - along[..., None] * sides, axis=-1).min())
