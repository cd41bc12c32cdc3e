"""The config of `jobs.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.stores.places import OutPath, Place
from scoring import Version
from scoring.scorer import DEFAULT_MAX_BYTES

Baseline = Literal["constant_velocity", "stop", "human", "ego_status_mlp", "best_of_n"]
"""See `reports.evaluation.drivers`."""


class MLPConfig(BaseModel):
    """The blind MLP; None: as long and as many as the first policy was trained, or 1000 steps of 64.

    Attributes:
        steps, batch: of its training.
        all_status: it sees all status that our students see; else what NAVSIM's EgoStatusMLP sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    all_status: bool = False


class EvaluateConfig(BaseModel):
    """An evaluation.

    Attributes:
        data: the dataset, a path or URL, with the reward column.
        out: folder of what is written.
        policy: checkpoints (``stage_2.pt``), one or a list; the first is the candidate of the page.
        baselines: see `reports.evaluation.drivers`.
        version: v1: PDMS, v2: EPDMS, or both.
        split: held_out, all, or a file of tokens or of a scene filter.
        held_out, split_seed: of the split; None: as the first policy was trained.
        limit: at most so many scenes, spread evenly; None: all.
        column: of the reward.
        traffic: replay: of the log; reactive: NAVSIM's IDM vehicles, v2 only; auto: reactive for a two-stage split
            where the column has what it needs, else replay.
        use_human_filter, consistent: v2, see docs/reward.md.
        samples, temperature, seed: of ``best_of_n``.
        mlp: of ``ego_status_mlp``.
        batch: scenes answered at once. chunk: scenes scored at once.
        worst: scenes of the page; 0: no page.
        device: of policies and scores: cpu, cuda; None: cuda where there is one.
        max_bytes: bound on the scorer's intermediates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Place
    out: OutPath
    policy: tuple[Path, ...] = ()
    baselines: tuple[Baseline, ...] = ("human", "constant_velocity")
    version: Literal["v1", "v2", "both"] = "v1"
    split: str = "held_out"
    held_out: float | None = Field(default=None, gt=0, lt=1)
    split_seed: int | None = None
    limit: int | None = Field(default=None, ge=1)
    column: str = "pdm"
    traffic: Literal["auto", "replay", "reactive"] = "auto"
    use_human_filter: bool = True
    consistent: bool = False
    samples: int = Field(default=16, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    seed: int = 0
    mlp: MLPConfig = MLPConfig()
    batch: int = Field(default=16, ge=1)
    chunk: int = Field(default=64, ge=1)
    worst: int = Field(default=12, ge=0)
    device: str | None = None
    max_bytes: int = Field(default=DEFAULT_MAX_BYTES, ge=1)

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
