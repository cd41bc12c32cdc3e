"""Which part of the map the ego is on, for each step of each path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoring.context import ContextBatch
from scoring.geometry import bounds, contains, pairs
from scoring.vehicle import STEPS, Path

_CORNERS, _CENTRE, _REAR_AXLE = slice(0, 4), 4, 5


@dataclass(frozen=True, slots=True, eq=False)
class Areas:
    """bool [B, 41] each.

    Attributes:
        multiple_lanes: corners are in more than one lane or lane connector, and none holds all four.
        non_drivable: some corner is in no drivable polygon.
        oncoming: the centre is in no lane or lane connector of the route.
        centre_in_intersection: of the outline's centre.
        rear_axle_in_intersection: of the rear axle.
    """

    multiple_lanes: Tensor
    non_drivable: Tensor
    oncoming: Tensor
    centre_in_intersection: Tensor
    rear_axle_in_intersection: Tensor

    @property
    def unsafe(self) -> Tensor:
        """In multiple lanes, or off the drivable area."""
        return self.multiple_lanes | self.non_drivable


def areas(batch: ContextBatch, path: Path, max_bytes: int) -> Areas:
    """The areas of each row and step."""
    rows = len(path.scene)
    points = torch.cat((path.corners, path.centre[:, :, None], path.rear_axle[:, :, None]), dim=2).flatten(1, 2)
    row, item = pairs(batch.map_edges, path.scene, bounds(points))
    inside = contains(batch.map_edges, path.scene, points, row, item, max_bytes).view(-1, STEPS, 6)
    scene = path.scene[row]

    def count(which: Tensor, flags: Tensor) -> Tensor:
        """int32 [B, ...]: how many polygons of the layer `which` [S, M] have the flag [L, ...]."""
        chosen = which[scene, item].nonzero()[:, 0]
        out = torch.zeros((rows, *flags.shape[1:]), dtype=torch.int32, device=flags.device)
        return out.index_add_(0, row[chosen], flags[chosen].to(torch.int32))

    corners = inside[..., _CORNERS]
    some, every = corners.any(dim=-1), corners.all(dim=-1)
    in_lanes = count(batch.is_lane, torch.stack((some, every), dim=-1))
    in_intersection = count(batch.is_intersection, inside[..., _CENTRE : _REAR_AXLE + 1]) > 0
    return Areas(
        multiple_lanes=(in_lanes[..., 0] > 1) & (in_lanes[..., 1] == 0),
        non_drivable=(count(batch.is_drivable, corners) == 0).any(dim=-1),
        oncoming=count(batch.is_route_lane, inside[..., _CENTRE]) == 0,
        centre_in_intersection=in_intersection[..., 0],
        rear_axle_in_intersection=in_intersection[..., 1],
    )
