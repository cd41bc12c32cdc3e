"""DDC, driving direction compliance: 1, 0.5 or 0."""

from __future__ import annotations

import torch
from torch import Tensor

from scoring.areas import Areas
from scoring.context import Version
from scoring.rowwise import length
from scoring.vehicle import Path

_WINDOW = 11
"""Samples: the last second, and the step itself."""

_COMPLIANT_M = 2.0
_VIOLATION_M = 6.0


def driving_direction_compliance(path: Path, areas: Areas, version: Version) -> Tensor:
    """[B]: by the most metres driven within a second off the lanes of the route; v2 exempts intersections."""
    against = areas.oncoming
    if version == "v2":
        against = against & ~areas.centre_in_intersection
    step = length(*path.centre.diff(dim=1).unbind(dim=-1))
    metres = torch.cat((torch.zeros_like(step[:, :1]), step), dim=1) * against
    padded = torch.nn.functional.pad(metres, (_WINDOW - 1, 0))
    worst = padded.unfold(1, _WINDOW, 1).sum(dim=-1).amax(dim=1)
    return torch.where(worst < _COMPLIANT_M, 1.0, torch.where(worst < _VIOLATION_M, 0.5, 0.0)).double()
