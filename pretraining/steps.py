"""What both networks share: the recipe, which decides their weights, and the loop.

The loop is AdamW, a warm-up and a cosine, gradients clipped; everything by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from shards_schema.inputs.models import StrictModel


class Recipe(StrictModel):
    """How both networks are trained. Equal recipes give equal weights on one kind of processor."""

    seed: int = 0
    """Of the first weights and of the order of what is seen. (The drives have seeds of their own.)"""
    drives: PositiveInt = 128
    """That are trained on."""
    held_out: PositiveInt = 20
    """That are not: other towns."""
    geometry_steps: PositiveInt = 900
    """Of VGGT."""
    geometry_frames: PositiveInt = Field(default=12, multiple_of=3)
    """Images a step, in windows of one or of three."""
    geometry_rate: float = Field(default=1.5e-3, gt=0)
    """The highest learning rate of VGGT."""
    dynamics_steps: PositiveInt = 2000
    """Of CV8x8x8."""
    dynamics_clips: PositiveInt = 3
    """Clips a step."""
    dynamics_rate: float = Field(default=2e-3, gt=0)
    """The highest learning rate of CV8x8x8."""


DECAY = 0.05
CLIP = 1.0
WARM = 0.05
"""Share of the steps in which the rate rises."""
QUIET = 0.1


def quieten(network: nn.Module, *ends: str) -> None:
    """Make random weights smaller whose names end so: those by which blocks add to what passes them, and the last."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(ends):
                parameter.mul_(QUIET)


def train(
    network: nn.Module,
    steps: int,
    rate: float,
    loss_at: Callable[[int], dict[str, Tensor]],
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> None:
    """Train `network`, whose loss at a step is the sum of what `loss_at` gives.

    Raises:
        FloatingPointError: a loss is not a number.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=DECAY)
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / (WARM * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
        losses = loss_at(step)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"step {step}: the loss is {total.item()}")
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        progress(step + 1, {name: value.item() for name, value in losses.items()})
    network.eval().requires_grad_(False)
