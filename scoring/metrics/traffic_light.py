"""TLC, traffic light compliance: 1 or 0, v2 only."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.context import ContextBatch
from scoring.geometry import blocks_of, bounds, boxes_meet, contains, edges_meet_box, pairs, slices
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, Path


def traffic_light_compliance(batch: ContextBatch, path: Path, max_bytes: int) -> Tensor:
    """[B]: 0 if the outline meets, at any step, the area of a lane connector of the route that is red then.

    They meet if an edge of the area touches the outline, or if a corner of the outline lies in the area.
    """
    score = torch.ones(len(path.scene), dtype=torch.float64, device=path.states.device)
    row, item = pairs(batch.light_edges, path.scene, bounds(path.corners.flatten(1, 2)))
    active = batch.light_active[path.scene[row], item]
    inside = contains(batch.light_edges, path.scene, path.corners[:, :, 0], row, item, max_bytes)
    score[row[(inside & active).any(dim=1)]] = 0.0

    axis = torch.stack((path.cos, path.sin), dim=-1)
    step_box = torch.cat((path.corners.amin(dim=2), path.corners.amax(dim=2)), dim=-1)
    pair, block = blocks_of(batch.light_edges, path.scene, row, item)
    for part in slices(len(pair), path.states.shape[1] * 400, max_bytes):
        p, b = pair[part], block[part]
        near = boxes_meet(step_box[row[p]], batch.light_edges.block_box[b][:, None]) & active[p]
        k, i = near.nonzero(as_tuple=True)
        r = row[p[k]]
        meets = edges_meet_box(batch.light_edges.edges[b[k]], path.centre[r, i], axis[r, i], HALF_LENGTH, HALF_WIDTH)
        score[r[meets.any(dim=1)]] = 0.0
    return score
