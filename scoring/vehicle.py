"""The ego vehicle (nuPlan's Pacifica), its state vector and its outline.

A state is float64 [..., 11] at the rear axle: x, y, heading, vx, vy, ax, ay, steering angle, steering rate, yaw rate,
yaw acceleration (metres, radians, seconds). A path is a batch of rows, each 41 states at 10 Hz.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoring.rowwise import length
from shards_schema.poses import EGO_FRONT, EGO_REAR, EGO_WIDTH

FRONT_LENGTH, REAR_LENGTH, WIDTH = EGO_FRONT, EGO_REAR, EGO_WIDTH
LENGTH = FRONT_LENGTH + REAR_LENGTH
WHEEL_BASE = 3.089
HALF_LENGTH = LENGTH / 2.0
HALF_WIDTH = WIDTH / 2.0
REAR_AXLE_TO_CENTRE = HALF_LENGTH - REAR_LENGTH

X, Y, HEADING, VX, VY, AX, AY, STEERING, STEERING_RATE, YAW_RATE, YAW_ACCEL = range(11)
"""Places in a state vector."""

STATE_SIZE = 11
STEPS = 41
"""Time indices 0..40 of a scored path."""

INTERVAL_S = 0.1
"""Seconds between them."""


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """Simulated paths of B rows and what every metric derives from them.

    Attributes:
        states: [B, 41, 11].
        scene: int64 [B], the scene of each row.
        cos, sin: [B, 41], of the heading.
        speed: [B, 41], of (vx, vy).
        centre: [B, 41, 2], of the outline.
        corners: [B, 41, 4, 2], front left, rear left, rear right, front right.
    """

    states: Tensor
    scene: Tensor
    cos: Tensor
    sin: Tensor
    speed: Tensor
    centre: Tensor
    corners: Tensor

    @classmethod
    def of(cls, states: Tensor, scene: Tensor) -> Path:
        """The path of `states` [B, 41, 11] in the scenes `scene` [B]."""
        cos, sin = states[..., HEADING].cos(), states[..., HEADING].sin()
        ahead, left = torch.stack((cos, sin), dim=-1), torch.stack((-sin, cos), dim=-1)
        centre = states[..., :2] + REAR_AXLE_TO_CENTRE * ahead
        front, rear = centre + HALF_LENGTH * ahead, centre - HALF_LENGTH * ahead
        side = HALF_WIDTH * left
        corners = torch.stack((front + side, rear + side, rear - side, front - side), dim=-2)
        speed = length(states[..., VX], states[..., VY])
        return cls(states, scene, cos, sin, speed, centre, corners)

    @property
    def rear_axle(self) -> Tensor:
        """[B, 41, 2]."""
        return self.states[..., :2]
