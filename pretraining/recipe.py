"""What the small networks are trained on, and for how long: everything that decides their weights."""

from __future__ import annotations

from pydantic import Field, PositiveInt

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
