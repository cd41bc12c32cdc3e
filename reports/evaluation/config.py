"""The config of `jobs.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.stores.places import OutPath, Place
from scoring import Version
from scoring.scorer import DEFAULT_MAX_BYTES
from shards_schema.inputs.models import StrictModel

Baseline = Literal["constant_velocity", "stop", "human", "ego_status_mlp", "best_of_n"]
"""See `reports.evaluation.drivers`."""


class MLPConfig(StrictModel):
    """The blind MLP; None: as long and as many as the first policy was trained, or 1000 steps of 64."""

    steps: int | None = Field(default=None, ge=1)
    """Of its training."""
    batch: int | None = Field(default=None, ge=1)
    """Scenes a step of its training."""
    all_status: bool = False
    """It sees all status that our students see; else what NAVSIM's EgoStatusMLP sees."""


class EvaluateConfig(StrictModel):
    """An evaluation."""

    data: Place
    """The dataset, a path or URL, with the reward column."""
    out: OutPath
    """Folder of what is written."""
    policy: tuple[Path, ...] = ()
    """Checkpoints (``stage_2.pt``), one or a list; the first is the candidate of the page."""
    baselines: tuple[Baseline, ...] = ("human", "constant_velocity")
    """See `reports.evaluation.drivers`."""
    version: Literal["v1", "v2", "both"] = "v1"
    """v1: PDMS, v2: EPDMS, or both."""
    split: str = "held_out"
    """held_out, all, or a file of tokens or of a scene filter."""
    held_out: float | None = Field(default=None, gt=0, lt=1)
    """Share of the logs that the split holds out; None: as the first policy was trained."""
    split_seed: int | None = None
    """Of the split; None: as the first policy was trained."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many scenes, spread evenly; None: all."""
    column: str = "pdm"
    """Of the reward."""
    traffic: Literal["auto", "replay", "reactive"] = "auto"
    """replay: of the log; reactive: NAVSIM's IDM vehicles, v2 only; auto: reactive for a two-stage split where the
    column has what it needs, else replay."""
    use_human_filter: bool = True
    """v2, see docs/reward.md."""
    consistent: bool = False
    """v2, see docs/reward.md."""
    samples: int = Field(default=16, ge=2)
    """Answers a scene of ``best_of_n``."""
    temperature: float = Field(default=1.0, gt=0)
    """Of ``best_of_n``."""
    seed: int = 0
    """Of ``best_of_n``."""
    mlp: MLPConfig = MLPConfig()
    """Of ``ego_status_mlp``."""
    batch: int = Field(default=16, ge=1)
    """Scenes answered at once."""
    chunk: int = Field(default=64, ge=1)
    """Scenes scored at once."""
    worst: int = Field(default=12, ge=0)
    """Scenes of the page; 0: no page."""
    device: str | None = None
    """Of policies and scores: cpu, cuda; None: cuda where there is one."""
    max_bytes: int = Field(default=DEFAULT_MAX_BYTES, ge=1)
    """Bound on the scorer's intermediates."""

    @field_validator("policy", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return () if value is None else (value,) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _something(self) -> EvaluateConfig:
        if not self.policy and not self.baselines:
            raise ValueError("nothing to evaluate: give a policy, or baselines")
        if "best_of_n" in self.baselines and not self.policy:
            raise ValueError("best_of_n asks the policy: give one")
        if self.traffic == "reactive" and self.version == "v1":
            raise ValueError("reactive traffic is of EPDMS: give version=v2")
        if len(set(self.baselines)) != len(self.baselines):
            raise ValueError(f"baselines must be distinct, got {', '.join(self.baselines)}")
        return self

    @property
    def versions(self) -> tuple[Version, ...]:
        """One or both."""
        return ("v1", "v2") if self.version == "both" else (self.version,)
