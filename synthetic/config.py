"""What is generated: one frozen config, which is also the identity of the dataset that it makes.

Two runs with equal `identity()` write equal bytes; where the data lies and how many processes make it is not part of
it.
"""

from __future__ import annotations

import os
from typing import Any, get_args

from pydantic import Field, field_validator

from shards_schema.inputs.models import StrictModel
from shards_schema.records import CHANNELS
from synthetic.drive import Manoeuvre

GENERATOR = "last-shards synthetic 2"
"""Name and version of the generator: raised whenever equal configs would give other bytes than before."""

MANOEUVRES: tuple[Manoeuvre, ...] = get_args(Manoeuvre)
DEFAULT_MANOEUVRES: tuple[Manoeuvre, ...] = tuple(m for m in MANOEUVRES if m != "no_route")


class SyntheticConfig(StrictModel):
    """A synthetic dataset."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the towns and of everything that happens in them."""
    splits: tuple[str, ...] = ("mini",)
    """Folders under ``navsim_logs``; each gets `logs` logs of its own."""
    logs: int = Field(default=4, ge=1, le=10_000)
    """Logs a split."""
    frames: int = Field(default=40, ge=1, le=120)
    """2 Hz frames a log; 40 are 20 s."""
    width: int = Field(default=480, ge=32, le=4096)
    """Of the images in pixels."""
    height: int = Field(default=270, ge=18, le=4096)
    """Of the images in pixels; the field of view is always that of nuPlan's cameras (16:9)."""
    manoeuvres: tuple[Manoeuvre, ...] = Field(default=DEFAULT_MANOEUVRES, min_length=1)
    """What the ego does, log by log, from the beginning again when there are more logs."""
    traffic: float = Field(default=1.0, ge=0.0, le=2.0)
    """Density of moving cars, people and cyclists; 1 is a town by day, 0 leaves what the manoeuvre needs."""
    lidar_points: int = Field(default=4000, ge=0, le=200_000)
    """Rays a sweep; those that hit something within 80 m become points."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    """1..100."""
    cameras: tuple[str, ...] = CHANNELS
    """Those that see something; the images of the others are grey, which is most of the time saved."""
    second_stage: str = Field(default="", pattern=r"^((navhard|warmup)_two_stage)?$")
    """Folder of follow-ups of the first split's scenes, as ``navhard_two_stage``; empty: there are none."""
    follow_ups: int = Field(default=2, ge=1, le=20)
    """Pairs of follow-ups a scene that has any."""
    truth: bool = False
    """Whether to write what is behind each pixel of `cameras`, too: ``truth.zarr`` and ``objects.parquet``."""
    processes: int = Field(default_factory=lambda: max(1, min(8, os.cpu_count() or 1)), ge=1, le=1024)
    """Logs made at the same time (not part of the identity)."""

    @field_validator("splits", "manoeuvres", "cameras", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """``splits=mini,test`` on the command line is a tuple of two."""
        return tuple(v.strip() for v in value.split(",") if v.strip()) if isinstance(value, str) else value

    @field_validator("splits")
    @classmethod
    def _plain_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value) or not all(v.replace("_", "").isalnum() for v in value):
            raise ValueError(f"splits: expected distinct names of letters, digits and _, got {value}")
        return value

    @field_validator("cameras")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(CHANNELS):
            raise ValueError(f"cameras: expected some of {', '.join(CHANNELS)}, got {value}")
        return tuple(channel for channel in CHANNELS if channel in value)

    def identity(self) -> dict[str, Any]:
        """JSON of everything that decides the bytes of the dataset."""
        whole = self.model_dump(mode="json", exclude={"processes"})
        if self.cameras == CHANNELS:  # datasets made before there was a choice keep their identity
            del whole["cameras"]
        if not self.second_stage:  # likewise
            del whole["second_stage"], whole["follow_ups"]
        if not self.truth:  # likewise
            del whole["truth"]
        return {"generator": GENERATOR, **whole}
