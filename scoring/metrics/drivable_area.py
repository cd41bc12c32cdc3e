"""DAC, drivable area compliance: 1 or 0."""

from __future__ import annotations

from torch import Tensor

from scoring.areas import Areas


def drivable_area_compliance(areas: Areas) -> Tensor:
    """[B]: 0 if a corner is off the drivable area at any step."""
    return (~areas.non_drivable.any(dim=1)).double()
