"""LK, lane keeping: 1 or 0, v2 only."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.areas import Areas
from scoring.context import ContextBatch
from scoring.geometry import blocks_of, bounds, distances, grown, pairs, slices
from scoring.vehicle import STEPS, Path

_DEVIATION_M = 0.5
_STEPS_IN_A_ROW = 20


def lane_keeping(batch: ContextBatch, path: Path, areas: Areas, max_bytes: int) -> Tensor:
    """[B]: 0 after 2 s without a break more than 0.5 m from the centerline; steps in an intersection are skipped."""
    near = _near_centerline(batch, path, max_bytes)
    in_a_row = torch.zeros(len(path.scene), dtype=torch.int64, device=near.device)
    longest = in_a_row
    for i in range(STEPS):
        counted = torch.where(near[:, i], 0, in_a_row + 1)
        in_a_row = torch.where(areas.centre_in_intersection[:, i], in_a_row, counted)
        longest = torch.maximum(longest, in_a_row)
    return (longest < _STEPS_IN_A_ROW).double()


def _near_centerline(batch: ContextBatch, path: Path, max_bytes: int) -> Tensor:
    """bool [B, 41]: the centre is at most 0.5 m from the centerline."""
    near = torch.zeros(path.centre.shape[:2], dtype=torch.bool, device=path.centre.device)
    box = grown(bounds(path.centre), _DEVIATION_M)
    row, item = pairs(batch.line, path.scene, box)
    pair, block = blocks_of(batch.line, path.scene, row, item)
    x, y = path.centre.unbind(dim=-1)
    for part in slices(len(pair), STEPS * 500, max_bytes):
        r, b = row[pair[part]], block[part]
        to = grown(batch.line.block_box[b], _DEVIATION_M)[:, None]
        candidate = (x[r] >= to[..., 0]) & (y[r] >= to[..., 1]) & (x[r] <= to[..., 2]) & (y[r] <= to[..., 3])
        k, i = candidate.nonzero(as_tuple=True)
        distance, _ = distances(batch.line.edges[b[k]], path.centre[r[k], i])
        hit = (distance <= _DEVIATION_M).any(dim=1)
        near[r[k[hit]], i[hit]] = True
    return near
