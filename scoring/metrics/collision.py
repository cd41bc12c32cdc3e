"""NC, no at-fault collision: 1, 0.5 (a static object was hit) or 0 (an agent was)."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.areas import Areas
from scoring.context import ContextBatch
from scoring.geometry import oriented_boxes_meet
from scoring.metrics.contacts import Contacts, bearing, behind, first
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, Path

_STOPPED_SPEED = 5e-2


def no_at_fault_collisions(batch: ContextBatch, path: Path, areas: Areas, contacts: Contacts) -> Tensor:
    """[B]. The first contact with each track decides whether the ego is at fault in it.

    At fault: the ego moves, and the track is stopped, or is met with the front edge, or is met with a side while the
    ego is in multiple lanes or off the road. Not at fault: the ego stands, or the track comes from behind.
    """
    met, step = first(contacts.hit[..., 0])
    row, agent, step = contacts.row[met], contacts.agent[met], step[met]
    scene = path.scene[row]
    stopped = batch.agents_stopped[scene, agent]
    from_behind = behind(bearing(batch, path, row, step, agent, step))
    axis = torch.stack((path.cos[row, step], path.sin[row, step]), dim=-1)
    front = oriented_boxes_meet(
        path.centre[row, step] + HALF_LENGTH * axis,
        axis,
        torch.tensor([0.0, HALF_WIDTH], dtype=torch.float64, device=axis.device),
        batch.agents_centre[scene, agent, step],
        batch.agents_axis[scene, agent, step],
        batch.agents_half[scene, agent],
    )
    at_fault = (path.speed[row, step] > _STOPPED_SPEED) & (stopped | (~from_behind & (front | areas.unsafe[row, step])))
    cost = torch.where(batch.agents_is_agent[scene, agent], 0.0, 0.5).double()[at_fault]
    score = torch.ones(len(path.scene), dtype=torch.float64, device=path.states.device)
    return score.scatter_reduce(0, row[at_fault], cost, "amin")
