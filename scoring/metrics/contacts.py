"""Where ego outlines meet agents' boxes, now and ahead: the common ground of collisions (NC) and time to collision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoring.context import AGENT_STEPS, ContextBatch
from scoring.geometry import boxes_meet, grown, oriented_boxes_meet, slices
from scoring.rowwise import length
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, INTERVAL_S, STEPS, Path

LOOKAHEAD = (0, 3, 6, 9)
"""Steps ahead at which TTC tests the outline, moved on at constant velocity; the first is the collision test."""

_RADIUS = math.hypot(HALF_LENGTH, HALF_WIDTH)
_BEHIND = math.radians(150.0)
_AHEAD = math.radians(30.0)


@dataclass(frozen=True, slots=True, eq=False)
class Contacts:
    """Row-agent pairs that may meet.

    Attributes:
        row, agent: int64 [L].
        hit: bool [L, 41, 4]: the outline of step i, moved `LOOKAHEAD[f]` steps on, touches the agent's box of step
            i + `LOOKAHEAD[f]`; false where that step is past the agents' horizon.
    """

    row: Tensor
    agent: Tensor
    hit: Tensor


def contacts(batch: ContextBatch, path: Path, max_bytes: int) -> Contacts:
    """Every contact, exactly (separating axes), after culling by the paths' bounds and by circles."""
    horizon = AGENT_STEPS[batch.version]
    velocity = torch.stack((path.cos, path.sin), dim=-1) * path.speed[..., None]
    moved = torch.stack([path.centre + velocity * (f * INTERVAL_S) for f in LOOKAHEAD], dim=1)
    reach = moved.flatten(1, 2)
    row_box = grown(torch.cat((reach.amin(dim=1), reach.amax(dim=1)), dim=1), _RADIUS)
    row, agent = boxes_meet(row_box[:, None], _agent_boxes(batch)[path.scene]).nonzero(as_tuple=True)

    axis = torch.stack((path.cos, path.sin), dim=-1)
    half = torch.tensor([HALF_LENGTH, HALF_WIDTH], dtype=torch.float64, device=path.states.device)
    hit = torch.zeros((len(row), STEPS, len(LOOKAHEAD)), dtype=torch.bool, device=path.states.device)
    radius = length(*batch.agents_half.unbind(dim=-1)) + _RADIUS
    for part in slices(len(row), STEPS * 80, max_bytes):
        r, n = row[part], agent[part]
        s = path.scene[r]
        for f, ahead in enumerate(LOOKAHEAD):
            steps = min(STEPS, horizon - ahead)
            window = slice(ahead, ahead + steps)
            apart = batch.agents_centre[s, n, window] - moved[r, f, :steps]
            close = (apart.square().sum(dim=-1) <= radius[s, n, None].square() * (1 + 1e-9)) & batch.agents_valid[
                s, n, window
            ]
            k, i = close.nonzero(as_tuple=True)
            meets = oriented_boxes_meet(
                moved[r[k], f, i],
                axis[r[k], i],
                half,
                batch.agents_centre[s[k], n[k], i + ahead],
                batch.agents_axis[s[k], n[k], i + ahead],
                batch.agents_half[s[k], n[k]],
            )
            hit[part.start + k[meets], i[meets], f] = True
    found = hit.flatten(1).any(dim=1)
    return Contacts(row[found], agent[found], hit[found])


def bearing(batch: ContextBatch, path: Path, row: Tensor, step: Tensor, agent: Tensor, agent_step: Tensor) -> Tensor:
    """Angle [L] in [0, pi] from the ego's heading at `step` to the line from its rear axle to the agent's centre.

    NaN, which is neither ahead nor behind, where the two points are one.
    """
    d = batch.agents_centre[path.scene[row], agent, agent_step] - path.rear_axle[row, step]
    along = d[:, 0] * path.cos[row, step] + d[:, 1] * path.sin[row, step]
    return torch.acos((along / length(*d.unbind(dim=1))).clamp(-1.0, 1.0))


def behind(angle: Tensor) -> Tensor:
    """Whether a `bearing` is more than 150 degrees."""
    return angle > _BEHIND


def ahead_of(angle: Tensor) -> Tensor:
    """Whether a `bearing` is less than 30 degrees."""
    return angle < _AHEAD


def first(flags: Tensor) -> tuple[Tensor, Tensor]:
    """For bool [L, K]: whether any is set [L], and the index of the first [L] (0 where none is)."""
    return flags.any(dim=1), flags.to(torch.int8).argmax(dim=1)


def _agent_boxes(batch: ContextBatch) -> Tensor:
    """[S, N, 4]: bounds of each agent over the steps at which it is there; empty for one that never is."""
    gone = ~batch.agents_valid[..., None]
    low = batch.agents_centre.masked_fill(gone, math.inf).amin(dim=2)
    high = batch.agents_centre.masked_fill(gone, -math.inf).amax(dim=2)
    radius = length(*batch.agents_half.unbind(dim=-1))[..., None]
    return torch.cat((low - radius, high + radius), dim=-1)
