"""What a camera sees of the labelled boxes: where they are in its frame and in its image, and how much of them shows.

Frames: ego x forward, y left, z up; camera x right, y down, z forward, p_ego = R p_cam + t. Pixels are those of the
image as the dataset stores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from questions.answers import Box
from shards_schema.lens import Lens
from shards_schema.poses import Float64

NEAR = 0.1
"""Metres in front of the camera where boxes are cut."""
_GRID = 24
"""Points along a side of a box2d, at which it is looked for what stands before it."""
_CORNERS = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
_EDGES = np.array([[a, b] for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])


@dataclass(frozen=True)
class Seen:
    """A labelled box before a camera.

    Attributes:
        name: its class in the log.
        track: its track.
        p_cam: its centre in the camera's frame [m].
        box2d: around its corners, cut to the image [px].
        centre: its projected centre [px]; it need not lie in the image.
        share: how much of the uncut box2d lies in the image; 0 where a corner is behind the camera, or beyond where
            the lens is known.
        hidden: how much of box2d is behind nearer things, 0..1.
        facing: degrees from the viewing direction, positive to the right: 0 looks away from the camera.
        speed: m/s over the ground; NaN where the log does not know it.
    """

    name: str
    track: str
    p_cam: tuple[float, float, float]
    box2d: Box
    centre: tuple[float, float]
    share: float
    hidden: float
    facing: float
    speed: float

    @property
    def depth(self) -> float:
        """Metres along the viewing axis."""
        return self.p_cam[2]

    @property
    def distance(self) -> float:
        """Metres from the camera."""
        return math.hypot(*self.p_cam)

    @property
    def height(self) -> float:
        """Pixels of box2d."""
        return self.box2d[3] - self.box2d[1]

    @property
    def width(self) -> float:
        """Pixels of box2d."""
        return self.box2d[2] - self.box2d[0]

    @property
    def area(self) -> float:
        """Square pixels of box2d."""
        return self.height * self.width


def see(document: Mapping[str, Any], view: str, hidden: Mapping[str, float] | None = None) -> list[Seen]:
    """The labelled boxes of a scene that lie at least in part in a view's image, in the order of the labels.

    Args:
        document: the scene's ``<token>.json``, with annotations.
        view: a key of its ``cameras``.
        hidden: track -> share that is hidden, where that is known; for others it is told by the box2ds of nearer boxes.
    """
    lens, labels = Lens(document["cameras"][view]), document["annotations"]
    boxes = np.array(labels["boxes"], dtype=np.float64).reshape(-1, 7)
    headings = boxes[:, 6]
    c, s, zero = np.cos(headings), np.sin(headings), np.zeros(len(boxes))
    turns = np.stack((c, -s, zero, s, c, zero, zero, zero, zero + 1), axis=-1).reshape(-1, 3, 3)
    corners = (boxes[:, None, 3:6] * _CORNERS) @ turns.transpose(0, 2, 1) + boxes[:, None, :3]
    corners, centres = lens.to_camera(corners), lens.to_camera(boxes[:, :3])
    ahead = np.stack((c, s, zero), axis=-1) @ lens.rotation
    facing = np.degrees(np.arctan2(ahead[:, 0], ahead[:, 2]))
    found: list[Seen] = []
    for i, points in enumerate(corners):
        if centres[i, 2] < NEAR:
            continue
        around, share = _around(points, lens)
        if around is None:
            continue
        velocity = [math.nan if v is None else v for v in labels["velocity"][i][:2]]
        u, v = lens.project(centres[i])[0].tolist()
        found.append(
            Seen(
                name=labels["names"][i],
                track=labels["track_tokens"][i],
                p_cam=(float(centres[i, 0]), float(centres[i, 1]), float(centres[i, 2])),
                box2d=around,
                centre=(u, v),
                share=share,
                hidden=0.0,
                facing=float(facing[i]),
                speed=math.hypot(*velocity),
            )
        )
    known = hidden or {}
    return [replace(s, hidden=known[s.track] if s.track in known else _covered(s, found)) for s in found]


def _around(points: Float64, lens: Lens) -> tuple[Box | None, float]:
    """The box around a box's corners [8, 3], cut to the image, and which share of it that is; None outside of it."""
    behind = points[:, 2] < NEAR
    shown = points[~behind]
    if behind.any():
        crossing = _EDGES[behind[_EDGES[:, 0]] != behind[_EDGES[:, 1]]]
        a, b = points[crossing[:, 0]], points[crossing[:, 1]]
        shown = np.concatenate((shown, a + (b - a) * ((NEAR - a[:, 2]) / (b[:, 2] - a[:, 2]))[:, None]))
    if not len(shown):
        return None, 0.0
    pixels, known = lens.project(shown)
    low, high = pixels[known].min(0, initial=np.inf), pixels[known].max(0, initial=-np.inf)
    x1, y1 = np.maximum(low, 0.0).tolist()
    x2, y2 = np.minimum(high, lens.size).tolist()
    if x2 <= x1 or y2 <= y1:
        return None, 0.0
    whole = float(np.prod(high - low))
    return (x1, y1, x2, y2), 0.0 if behind.any() or not known.all() else (x2 - x1) * (y2 - y1) / whole


def _covered(seen: Seen, every: Sequence[Seen]) -> float:
    """The share of a box2d that lies in the box2ds of nearer things."""
    x1, y1, x2, y2 = seen.box2d
    at = (np.arange(_GRID) + 0.5) / _GRID
    x, y = x1 + at * (x2 - x1), (y1 + at * (y2 - y1))[:, None]
    covered = np.zeros((_GRID, _GRID), dtype=bool)
    for other in every:
        if other is not seen and other.distance < seen.distance:
            a, b, c, d = other.box2d
            covered |= (x >= a) & (x <= c) & (y >= b) & (y <= d)
    return float(covered.mean())
