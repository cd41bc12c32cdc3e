"""The painter: fills projected quads in an order in which nothing hides what is before it.

Projection is exact (near-plane clipping, ideal pinhole), so lines stay crisp at any image size. Solids are ordered by
separating planes of their upright bounding boxes, which is exact for disjoint boxes, unlike sorting by distance. The
canvas is `SUPER` times the image, so that reducing it smooths the edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from shards_schema.poses import Float64
from synthetic.geometry import rectangle
from synthetic.mesh import SUN, Mesh, placed

HAZE = np.array([198.0, 210.0, 222.0])
HAZE_RANGE = 330.0
NEAR = 0.25
SUPER = 2
DETAIL = 55.0
"""Windows are drawn one by one up to this distance."""


@dataclass(frozen=True, eq=False)
class Thing:
    """A placed solid of some class: quads [K, 4, 3], colours [K, 3], detail [K].

    Its box is (x, y, heading, half sides, z0, z1).
    """

    kind: str
    quads: Float64
    rgb: Float64
    detail: Float64
    box: tuple[float, float, float, float, float, float, float]


def thing(kind: str, mesh: Mesh, x: float, y: float, heading: float, z: float = 0.0) -> Thing:
    """A solid at a place in the town, `z` above the ground."""
    quads, rgb = placed(mesh, x, y, heading, z)
    low, high = mesh.quads.min((0, 1)), mesh.quads.max((0, 1))
    middle, half = (low + high) / 2, (high - low) / 2
    c, s = np.cos(heading), np.sin(heading)
    mx, my = x + c * middle[0] - s * middle[1], y + s * middle[0] + c * middle[1]
    box = (float(mx), float(my), heading, float(half[0]), float(half[1]), float(z + low[2]), float(z + high[2]))
    return Thing(kind, quads, rgb, mesh.detail, box)


def colours(rgb: Float64, ground: int) -> NDArray[np.int64]:
    """[K, 4] inks of colours [K, 3]; the fourth is how much of it is ground, 0 or 255."""
    return np.concatenate((np.clip(rgb, 0, 255), np.full((len(rgb), 1), ground)), axis=1).astype(np.int64)


class View:
    """A camera in the town: projects quads and fills them."""

    def __init__(self, turn: Float64, eye: Float64, k: Float64, width: int, height: int) -> None:
        self.turn, self.eye, self.k = turn, eye, k
        self.width, self.height = width, height
        self.low = (np.array([0.0, 0.0]) - 0.5 - k[:2, 2]) / (k[0, 0], k[1, 1])
        self.high = (np.array([width, height]) - 0.5 - k[:2, 2]) / (k[0, 0], k[1, 1])

    def local(self, points: Float64) -> Float64:
        """[..., 3] town -> camera."""
        return np.asarray((points - self.eye) @ self.turn)

    def plain(self) -> Float64:
        """[1, 4, 3] the ground as far as one sees, around the eye."""
        corners = np.array([[3e3, 3e3, 0.0], [-3e3, 3e3, 0.0], [-3e3, -3e3, 0.0], [3e3, -3e3, 0.0]])
        return np.asarray(corners + self.eye * (1.0, 1.0, 0.0))[None]

    def seen(self, p: Float64) -> NDArray[np.bool_]:
        """[K] of quads [K, N, 3] in the camera's frame: not wholly outside one side of the frustum."""
        x, y, z = p[..., 0], p[..., 1], p[..., 2]
        out = (z < NEAR).all(1) | (x < self.low[0] * z).all(1) | (x > self.high[0] * z).all(1)
        seen: NDArray[np.bool_] = ~(out | (y < self.low[1] * z).all(1) | (y > self.high[1] * z).all(1))
        return seen

    def fill(self, draw: ImageDraw.ImageDraw, quads: Float64, inks: NDArray[np.int64]) -> None:
        """Fill quads [K, 4, 3] in order with `inks`: [K, C] where the image has channels (see `colours`), else [K]."""
        p = self.local(quads)
        keep = np.nonzero(self.seen(p))[0]
        p = p[keep]
        z = np.maximum(p[..., 2], NEAR)
        uv = self._pixels(p[..., 0] / z, p[..., 1] / z)
        wide = uv.max(1) - uv.min(1)
        whole = np.asarray((p[..., 2] >= NEAR).all(1))
        drawn = np.asarray(~(whole & (wide.max(1) < 1)))
        points = uv.reshape(-1, 8).tolist()
        kept = inks[keep].tolist() if inks.ndim == 1 else list(map(tuple, inks[keep].tolist()))
        for i in np.nonzero(drawn)[0].tolist():
            xy = points[i] if whole[i] else self._clipped(p[i])
            draw.polygon(xy, fill=kept[i])

    def _pixels(self, x: Float64, y: Float64) -> NDArray[np.int64]:
        """[..., 2] pixels of the enlarged canvas of normalised image coordinates."""
        u = self.k[0, 0] * x + self.k[0, 2]
        v = self.k[1, 1] * y + self.k[1, 2]
        return np.floor((np.stack((u, v), axis=-1) + 0.5) * SUPER).astype(np.int64)

    def _clipped(self, p: Float64) -> list[int]:
        """A quad [4, 3] cut at the near plane (Sutherland and Hodgman 1974), projected."""
        out: list[Float64] = []
        for a, b in zip(p, np.roll(p, -1, axis=0), strict=True):
            if a[2] >= NEAR:
                out.append(a)
            if (a[2] >= NEAR) != (b[2] >= NEAR):
                out.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
        q = np.array(out)
        return [int(v) for v in self._pixels(q[:, 0] / q[:, 2], q[:, 1] / q[:, 2]).reshape(-1)]


class Scene:
    """All solids of one moment."""

    def __init__(self, things: list[Thing], position: Float64) -> None:
        box = np.array([t.box for t in things])
        self.box = box
        distance = np.hypot(box[:, 0] - position[0], box[:, 1] - position[1]) - np.hypot(box[:, 3], box[:, 4])
        near = distance < DETAIL
        self.kinds = [t.kind for t in things]
        self.owner = np.concatenate([np.full(len(t.quads), i) for i, t in enumerate(things)])
        self.quads = np.concatenate([t.quads for t in things])
        self.rgb = np.concatenate([t.rgb for t in things])
        detail = np.concatenate([t.detail for t in things])
        shown = (detail == 0) | ((detail == 1) == near[self.owner])
        self.owner, self.quads, self.rgb = self.owner[shown], self.quads[shown], self.rgb[shown]
        self.normal = np.cross(self.quads[:, 2] - self.quads[:, 0], self.quads[:, 3] - self.quads[:, 1])
        rings = np.stack([rectangle(b[0], b[1], b[2], 2 * b[3], 2 * b[4]) for b in box])
        heights = [np.broadcast_to(box[:, k, None, None], (len(box), 4, 1)) for k in (5, 6)]
        self.corners = np.concatenate([np.concatenate((rings, z), axis=2) for z in heights], axis=1)
        self.shadows = _shadows(rings, box)

    def painted(self, view: View) -> NDArray[np.int64]:
        """Which quads face the camera, far to near."""
        p = view.local(self.corners)
        visible = np.nonzero(view.seen(p))[0]
        order = visible[_far_to_near(self.box[visible], self.corners[visible], p[visible], view.eye)]
        rank = np.full(len(self.box), -1)
        rank[order] = np.arange(len(order))
        facing = ((self.quads[:, 0] - view.eye) * self.normal).sum(1) < 0.0
        use = np.nonzero(facing & (rank[self.owner] >= 0))[0]
        return use[np.argsort(rank[self.owner[use]], kind="stable")]

    def hazed(self, use: NDArray[np.int64], eye: Float64) -> Float64:
        """Colours [len(use), 3] of some quads, as the eye sees them through the air."""
        far = np.linalg.norm(self.quads[use].mean(1) - eye, axis=1)
        haze = (1.0 - np.exp(-far / HAZE_RANGE))[:, None]
        return np.asarray(self.rgb[use] * (1.0 - haze) + HAZE * haze)


def _far_to_near(box: Float64, corners: Float64, p: Float64, eye: Float64) -> NDArray[np.int64]:
    """An order of N upright boxes in which none is painted before one that it may hide."""
    n = len(box)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    c, s = np.cos(box[:, 2]), np.sin(box[:, 2])
    along, across = np.abs(c[:, None] * c + s[:, None] * s), np.abs(s[:, None] * c - c[:, None] * s)
    ahead = box[:, 3, None] * along + box[:, 4, None] * across  # half extent of n along the axis of m
    aside = box[:, 3, None] * across + box[:, 4, None] * along
    tall = np.broadcast_to((box[:, 6] - box[:, 5])[:, None] / 2, (n, n))
    middle = np.concatenate((box[:, :2], (box[:, 5:6] + box[:, 6:7]) / 2), axis=1)
    axes = (np.stack((c, s, 0 * c)), np.stack((-s, c, 0 * c)), np.stack((0 * c, 0 * c, 1 + 0 * c)))
    # front[i, j]: a plane parts i, on the eye's side of it, from j: j cannot hide i. Planes are faces of boxes.
    front = np.zeros((n, n), dtype=bool)
    for axis, half in zip(axes, (ahead, aside, tall), strict=True):
        place, eye_at = middle @ axis, (eye @ axis)[None]
        low, high = place - half + 1e-6, place + half - 1e-6
        own_low, own_high = np.diag(low)[None], np.diag(high)[None]
        # Box n lies wholly beyond box m's upper face (or below its lower one) along m's axis.
        above, below = low >= own_high, high <= own_low
        front |= (above & (eye_at >= own_high)) | (below & (eye_at <= own_low))
        front |= ((above & (eye_at <= low)) | (below & (eye_at >= high))).T
    np.fill_diagonal(front, False)
    near = np.linalg.norm(corners.mean(1) - eye, axis=1)
    undecided = front == front.T  # both or neither: by distance
    later = np.where(undecided, near[:, None] < near[None], front)
    z = np.maximum(p[..., 2], NEAR)
    u, v = p[..., 0] / z, p[..., 1] / z
    cut = np.asarray((p[..., 2] < NEAR).any(1))
    apart: NDArray[np.bool_] = (u.max(1)[:, None] < u.min(1)[None]) | (v.max(1)[:, None] < v.min(1)[None])
    meets = ~(apart | apart.T) | cut[:, None] | cut[None]
    later &= meets
    np.fill_diagonal(later, False)
    waits = later.sum(1)
    order: list[int] = []
    left = np.ones(n, dtype=bool)
    for _ in range(n):
        score = np.where(left, near - 1e4 * waits, -np.inf)  # ready ones first, the farthest of them
        pick = int(np.argmax(score))
        order.append(pick)
        left[pick] = False
        waits -= later[:, pick]
    return np.array(order)


def _shadows(rings: Float64, box: Float64) -> Float64:
    """[M, 4, 3] quads on the ground whose union is what the boxes keep the sun from."""
    slide = -SUN[:2] / SUN[2]
    low, high = rings + slide * box[:, 5, None, None], rings + slide * np.minimum(box[:, 6], 16.0)[:, None, None]
    parts = [low, high]
    for i in range(4):
        j = (i + 1) % 4
        parts.append(np.stack((low[:, i], low[:, j], high[:, j], high[:, i]), axis=1))
    flat = np.concatenate(parts)
    return np.concatenate((flat, np.zeros((*flat.shape[:2], 1))), axis=2)
