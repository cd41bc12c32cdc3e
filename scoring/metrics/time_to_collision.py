"""TTC, time to collision within bound: 1 or 0."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.areas import Areas
from scoring.context import ContextBatch
from scoring.metrics.contacts import LOOKAHEAD, Contacts, ahead_of, bearing, behind, first
from scoring.vehicle import STEPS, Path

_STOPPED_SPEED = 5e-3


def time_to_collision_within_bound(batch: ContextBatch, path: Path, areas: Areas, contacts: Contacts) -> Tensor:
    """[B]. The first contact with each track, now or up to 0.9 s ahead at constant velocity, decides for it.

    A violation if the track is ahead, or if it is not behind while the ego is in multiple lanes, off the road, or its
    rear axle in an intersection. Steps at which the ego stands do not count. v2 stops at step 31, where agents end.
    """
    moving = path.speed[contacts.row] >= _STOPPED_SPEED
    hit = contacts.hit & moving[..., None]
    if batch.version == "v2":
        hit[:, STEPS - max(LOOKAHEAD) :] = False
    met, place = first(hit.flatten(1))
    row, agent, place = contacts.row[met], contacts.agent[met], place[met]
    step = place // len(LOOKAHEAD)
    ahead = torch.tensor(LOOKAHEAD, device=place.device)[place % len(LOOKAHEAD)]
    angle = bearing(batch, path, row, step, agent, step + ahead)
    exposed = areas.unsafe[row, step] | areas.rear_axle_in_intersection[row, step]
    violated = ahead_of(angle) | (exposed & ~behind(angle))
    score = torch.ones(len(path.scene), dtype=torch.float64, device=path.states.device)
    score[row[violated]] = 0.0
    return score
