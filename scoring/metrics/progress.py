"""EP, ego progress, in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.context import ContextBatch, Version
from scoring.geometry import distances, slices
from scoring.rowwise import length
from scoring.vehicle import Path

_MINIMUM_M = 5.0
"""Where neither the candidate nor PDM-Closed gets farther, no one is asked to."""


def raw_progress(batch: ContextBatch, path: Path, max_bytes: int) -> Tensor:
    """Metres [B] along the centerline from the centre's nearest point at the start to that at the end, at least 0."""
    ends = path.centre[:, (0, -1)]
    along = torch.empty(ends.shape[:2], dtype=torch.float64, device=ends.device)
    for part in slices(len(ends), batch.centerline_edges.shape[2] * 250, max_bytes):
        edges = batch.centerline_edges[path.scene[part]]
        size = length(edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1])
        for end in (0, 1):
            distance, where = distances(edges, ends[part, end])
            # Of segments equally near the first counts, as GEOS has it.
            nearest = distance.nan_to_num(torch.inf).argmin(dim=1, keepdim=True)
            start = batch.centerline_start[path.scene[part]].gather(1, nearest)
            along[part, end] = (start + where.gather(1, nearest) * size.gather(1, nearest))[:, 0]
    return (along[:, 1] - along[:, 0]).clamp(min=0.0)


def ego_progress(raw: Tensor, multiplier: Tensor, pdm_progress: Tensor, version: Version) -> Tensor:
    """[B]: progress relative to the better of the candidate itself and PDM-Closed.

    Args:
        raw: [B], `raw_progress`.
        multiplier: [B], the product of the multiplicative sub-scores (v1: NC, DAC; v2: also DDC, TLC).
        pdm_progress: [B], raw times multiplier of PDM-Closed.
        version: v1 multiplies the candidate's progress too, and gives 0 to a candidate whose multiplier is 0.
    """
    best = torch.maximum(pdm_progress, raw * multiplier)
    if version == "v2":
        return torch.where(best > _MINIMUM_M, (raw / best).clamp(0.0, 1.0), 1.0)
    return torch.where(best > _MINIMUM_M, raw * multiplier / best, (multiplier != 0).double())
