"""Exact planar predicates, batched: boxes, polygons with holes, polylines.

Polygons differ in size by orders of magnitude, so nothing is padded to the largest. Every polygon (or polyline) is a
run of blocks of 4 edges, each block with its bounding box, and a query narrows down in three exact steps: rows against
the boxes of polygons, rows against the boxes of blocks, single points against the boxes of blocks. Only what is left
meets edges. The steps are tensor operations over flat lists of pairs; pairs are handled in slices of bounded size.

Legend: B rows, Q points a row, S scenes, M polygons a scene, G blocks of all scenes, L pairs (row, polygon).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoring.rowwise import length

BLOCK = 4
"""Edges a block. Short ones cull better, long ones cost fewer tests of boxes; of 2, 3, 4, 6, 8 only 3 was as fast."""


@dataclass(frozen=True, slots=True, eq=False)
class EdgeSet:
    """The edges of the polygons or polylines of S scenes.

    Attributes:
        box: [S, M, 4], x min, y min, x max, y max; an absent polygon has an empty box (+inf, +inf, -inf, -inf).
        first, count: int64 [S, M], the run of blocks of each polygon.
        edges: [G, 4, BLOCK], x0, y0, x1, y1; unused places are NaN, for which every comparison is false. The edges of a
            block are a chain: each begins where the one before ends.
        ends: [G, 2], y where the chain begins and where it ends.
        block_box: [G, 4].
    """

    box: Tensor
    first: Tensor
    count: Tensor
    edges: Tensor
    ends: Tensor
    block_box: Tensor

    @classmethod
    def build(
        cls, edges: NDArray[np.float64], chain: NDArray[np.int64], owner: NDArray[np.int64], sizes: Sequence[int]
    ) -> EdgeSet:
        """Blocks of edges.

        Args:
            edges: float64 [E, 4], of each chain (a ring, a polyline) in its order.
            chain: int64 [E], ascending, which chain each edge is of.
            owner: int64 [chains], ascending, which polygon each chain is of, counted through all scenes.
            sizes: the number of polygons of each scene.
        """
        total, width = sum(sizes), max(sizes, default=0)
        in_chain = np.bincount(chain, minlength=len(owner))
        chain_blocks = -(-in_chain // BLOCK)
        place = np.arange(len(chain)) - _starts(in_chain)[chain]
        block = _starts(chain_blocks)[chain] + place // BLOCK
        packed = np.full((int(chain_blocks.sum()), 4, BLOCK), np.nan)
        packed[block, :, place % BLOCK] = edges
        last = np.flatnonzero(np.diff(block, append=-1))
        first_edge = np.flatnonzero(np.diff(block, prepend=-1))
        ends = np.stack((edges[first_edge, 1], edges[last, 3]), axis=1)
        low = np.fmin.reduce(np.fmin(packed[:, :2], packed[:, 2:]), axis=2)
        high = np.fmax.reduce(np.fmax(packed[:, :2], packed[:, 2:]), axis=2)

        blocks = np.bincount(owner, weights=chain_blocks, minlength=total).astype(np.int64)
        of_block = np.repeat(np.arange(total), blocks)
        box = np.tile(_NOWHERE, (total, 1))
        np.minimum.at(box[:, :2], of_block, low)
        np.maximum.at(box[:, 2:], of_block, high)
        scene = np.repeat(np.arange(len(sizes)), sizes)
        column = np.arange(total) - _starts(np.asarray(sizes, dtype=np.int64))[scene]
        boxes = np.tile(_NOWHERE, (len(sizes), width, 1))
        first, count = np.zeros((2, len(sizes), width), dtype=np.int64)
        boxes[scene, column], first[scene, column], count[scene, column] = box, _starts(blocks), blocks
        arrays = (boxes, first, count, packed, ends, np.concatenate((low, high), axis=1))
        return cls(*(torch.from_numpy(a) for a in arrays))

    def to(self, device: torch.device) -> EdgeSet:
        """The same on another device."""
        return EdgeSet(*(getattr(self, f.name).to(device) for f in fields(self)))


_NOWHERE = np.array([np.inf, np.inf, -np.inf, -np.inf])


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of consecutive runs begins."""
    return np.cumsum(counts, dtype=np.int64) - counts


def slices(count: int, item_bytes: int, max_bytes: int) -> Iterator[slice]:
    """Slices of range(count) whose items of `item_bytes` stay below `max_bytes` (one item at least)."""
    step = max(1, max_bytes // max(1, item_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def bounds(points: Tensor) -> Tensor:
    """Bounding boxes [B, 4] of `points` [B, Q, 2]."""
    return torch.cat((points.amin(dim=1), points.amax(dim=1)), dim=1)


def grown(box: Tensor, by: float) -> Tensor:
    """Boxes [..., 4] larger by `by` on every side."""
    return box + torch.tensor([-by, -by, by, by], dtype=box.dtype, device=box.device)


def boxes_meet(a: Tensor, b: Tensor) -> Tensor:
    """Whether bounding boxes [..., 4] touch or overlap."""
    low, high = a[..., :2] <= b[..., 2:], b[..., :2] <= a[..., 2:]
    return low[..., 0] & low[..., 1] & high[..., 0] & high[..., 1]


def pairs(edges: EdgeSet, scene: Tensor, row_box: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and the polygons of their scene whose boxes meet: int64 ([L], [L])."""
    row, item = boxes_meet(row_box[:, None], edges.box[scene]).nonzero(as_tuple=True)
    return row, item


def blocks_of(edges: EdgeSet, scene: Tensor, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """Every block of each pair: int64 (pair [K], block [K])."""
    of = scene[row]
    count, first = edges.count[of, item], edges.first[of, item]
    pair = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
    place = torch.arange(len(pair), device=row.device) - (count.cumsum(0) - count)[pair]
    return pair, first[pair] + place


def contains(edges: EdgeSet, scene: Tensor, points: Tensor, row: Tensor, item: Tensor, max_bytes: int) -> Tensor:
    """Whether points lie strictly inside polygons: even-odd over all rings, a point on an edge is outside.

    A ray to the right crosses a block that lies wholly to the right of its point an odd number of times if and only
    if the chain's ends are on different sides of it. Only a point within a block's box has to meet its edges.

    Args:
        edges: closed rings.
        scene: int64 [B].
        points: [B, Q, 2].
        row, item: int64 [L], the pairs to test (`pairs`).
        max_bytes: bound on a slice's intermediates.

    Returns:
        bool [L, Q].
    """
    size = points.shape[1]
    odd = torch.zeros((len(row), size), dtype=torch.int32, device=points.device)
    on_edge = torch.zeros((len(row), size), dtype=torch.bool, device=points.device)
    box = bounds(points)
    pair, block = blocks_of(edges, scene, row, item)
    of, to = box[row[pair]], edges.block_box[block]
    keep = ((to[:, 1] <= of[:, 3]) & (to[:, 3] >= of[:, 1]) & (to[:, 2] >= of[:, 0])).nonzero()[:, 0]
    pair, block = pair[keep], block[keep]
    x, y = points[..., 0].contiguous(), points[..., 1].contiguous()
    for part in slices(len(pair), size * 8 * (6 + 2 * BLOCK), max_bytes):
        p, b = pair[part], block[part]
        x_min, y_min, x_max, y_max = edges.block_box[b][..., None].unbind(dim=1)
        begin, end = edges.ends[b][..., None].unbind(dim=1)
        px, py = x[row[p]], y[row[p]]
        beyond = (px < x_min) & ((begin > py) != (end > py))
        odd.index_add_(0, p, beyond.to(torch.int32))
        k, q = ((px >= x_min) & (px <= x_max) & (py >= y_min) & (py <= y_max)).nonzero(as_tuple=True)
        crossings, touches = _ray(edges.edges[b[k]], px[k, q], py[k, q])
        at = p[k] * size + q
        odd.view(-1).index_add_(0, at, crossings)
        on_edge.view(-1)[at[touches]] = True
    return (odd % 2 == 1) & ~on_edge


def _ray(edge: Tensor, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Crossings int32 [N] of edges [N, 4, K] with the ray from each point to the right; whether one holds the point."""
    x0, y0, x1, y1 = edge.unbind(dim=1)
    px, py = px[:, None], py[:, None]
    above = y1 > py
    side = (x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)
    crosses = ((y0 > py) != above) & ((side > 0) == above)
    on_line = (side == 0).any(dim=1).nonzero()[:, 0]
    x0, y0, x1, y1, side = x0[on_line], y0[on_line], x1[on_line], y1[on_line], side[on_line]
    px, py = px[on_line], py[on_line]
    holds = (
        (side == 0)
        & (torch.minimum(x0, x1) <= px)
        & (px <= torch.maximum(x0, x1))
        & (torch.minimum(y0, y1) <= py)
        & (py <= torch.maximum(y0, y1))
    )
    touches = torch.zeros(len(edge), dtype=torch.bool, device=edge.device)
    touches[on_line] = holds.any(dim=1)
    return crosses.sum(dim=1, dtype=torch.int32), touches


def oriented_boxes_meet(
    centre_a: Tensor, axis_a: Tensor, half_a: Tensor, centre_b: Tensor, axis_b: Tensor, half_b: Tensor
) -> Tensor:
    """Whether two rectangles touch or overlap, by separating axes.

    Args:
        centre_a, centre_b: [N, 2].
        axis_a, axis_b: [N, 2], unit vectors along the length.
        half_a, half_b: [N, 2] or [2], half length and half width; a half of zero makes a segment.

    Returns:
        bool [N].
    """
    d = centre_b - centre_a
    cos = (axis_a * axis_b).sum(dim=-1)
    sin = axis_a[:, 0] * axis_b[:, 1] - axis_a[:, 1] * axis_b[:, 0]
    cos, sin = cos.abs(), sin.abs()
    (la, wa), (lb, wb) = half_a.unbind(dim=-1), half_b.unbind(dim=-1)
    along_a, across_a = _coordinates(d, axis_a)
    along_b, across_b = _coordinates(d, axis_b)
    return (
        (along_a.abs() <= la + lb * cos + wb * sin)
        & (across_a.abs() <= wa + lb * sin + wb * cos)
        & (along_b.abs() <= lb + la * cos + wa * sin)
        & (across_b.abs() <= wb + la * sin + wa * cos)
    )


def _coordinates(vector: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Components of `vector` [..., 2] along and to the left of the unit vector `axis` [..., 2]."""
    return (
        vector[..., 0] * axis[..., 0] + vector[..., 1] * axis[..., 1],
        vector[..., 1] * axis[..., 0] - vector[..., 0] * axis[..., 1],
    )


def edges_meet_box(edge: Tensor, centre: Tensor, axis: Tensor, half_length: float, half_width: float) -> Tensor:
    """Whether segments `edge` [N, 4, K] touch a rectangle (centre [N, 2], unit axis [N, 2]): bool [N, K]."""
    x0, y0 = _coordinates((edge[:, :2] - centre[..., None]).mT, axis[:, None])
    x1, y1 = _coordinates((edge[:, 2:] - centre[..., None]).mT, axis[:, None])
    dx, dy = x1 - x0, y1 - y0
    return (
        (torch.minimum(x0, x1) <= half_length)
        & (torch.maximum(x0, x1) >= -half_length)
        & (torch.minimum(y0, y1) <= half_width)
        & (torch.maximum(y0, y1) >= -half_width)
        & ((dx * y0 - dy * x0).abs() <= half_length * dy.abs() + half_width * dx.abs())
    )


def distances(edge: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [..., K] of `point` [..., 2] to segments `edge` [..., 4, K], and where on each, 0 (start) to 1 (end)."""
    x0, y0, x1, y1 = edge.unbind(dim=-2)
    px, py = point[..., 0, None], point[..., 1, None]
    dx, dy = x1 - x0, y1 - y0
    square = dx * dx + dy * dy
    # A segment of no length (a point given twice) is its first end.
    where = torch.where(square > 0, ((px - x0) * dx + (py - y0) * dy) / square, 0.0).clamp(0.0, 1.0)
    return length(x0 + where * dx - px, y0 + where * dy - py), where
