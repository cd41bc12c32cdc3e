"""The recipe of a GRPO run, `configs/grpo_*.yaml`. What the policy is made of comes from its checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.stores.places import LocalText, OutText, Place
from pipeline.stream import StreamConfig
from scoring import Version
from trainer.config import OptimiserConfig
from trainer.distributed import ParallelConfig
from trainer.policy_loss import LossKind


class RewardConfig(BaseModel):
    """The reward.

    Attributes:
        column: of the teacher `pdm`.
        version: ``v1``: PDMS, ``v2``: EPDMS.
        use_human_filter: v2: what the human failed too counts as 1.
        max_bytes: bound on the scorer's intermediates.
        keep: contexts kept in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str = "pdm"
    version: Version = "v1"
    use_human_filter: bool = True
    max_bytes: int = Field(default=1 << 28, ge=1 << 20)
    keep: int = Field(default=2048, ge=1)


class RegulariserConfig(BaseModel):
    """Alignment kept while the policy is refined: weights of each kind's loss, as in SFT; both 0 reads no teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wm: float = Field(default=0.02, ge=0)
    geo: float = Field(default=0.02, ge=0)
    smooth_l1: float = Field(default=1.0, ge=0)

    @property
    def on(self) -> bool:
        """Whether there is any."""
        return self.wm > 0 or self.geo > 0


class GRPOControls(BaseModel):
    """Switches of the experiments; off in an honest run.

    Attributes:
        shuffle_advantages: each group's advantages are dealt to its answers by chance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shuffle_advantages: bool = False


class GRPOConfig(BaseModel):
    """A GRPO run.

    Attributes:
        policy: what SFT left (``stage_2.pt``): weights, adapters, statistics, and the recipe of all that is not here.
        data: the dataset, a path or URL; needs the reward column.
        out: where checkpoints and logs go.
        seed: of the sampling (with the rank).
        steps: batches of scenes, each sampled once.
        stream: order and scenes a step and rank.
        group: G, answers a scene.
        temperature: of sampling, and of every log-probability.
        inner: optimiser steps on the same answers.
        micro: answers that go through the network at once; None: all.
        loss: how tokens are averaged, see `policy_loss`.
        scale: divide advantages by the group's standard deviation; false is Dr.GRPO's.
        beta: of the KL to the policy that the run began with; 0 keeps no reference.
        kl_ratio: whether the KL is weighted by the ratio, see `policy_loss`.
        clip_low, clip_high: of the ratio.
        regulariser: alignment losses.
        reward: the reward.
        lr, warmup, min_lr: see `optimiser.Schedule`.
        optimiser: AdamW; `accumulate` has to be 1: a step takes all its answers, `micro` at a time.
        parallel, controls: see there.
        dtype: bfloat16 runs forward passes in autocast.
        device: cpu, cuda; None: cuda where there is one.
        evaluate_every, save_every, log_every: steps.
        evaluate_limit: held-out scenes looked at during the run (the closing table takes all).
        evaluate_samples: sampled answers a held-out scene, beside the policy's one answer.
        keep: checkpoints kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: LocalText
    data: Place
    out: OutText
    seed: int = 0
    steps: int = Field(ge=1)
    stream: StreamConfig = StreamConfig()
    group: int = Field(default=8, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    inner: int = Field(default=1, ge=1)
    micro: int | None = Field(default=None, ge=1)
    loss: LossKind = "grpo"
    scale: bool = True
    beta: float = Field(default=0.02, ge=0)
    kl_ratio: bool = True
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.2, gt=0)
    regulariser: RegulariserConfig = RegulariserConfig()
    reward: RewardConfig = RewardConfig()
    lr: float = Field(default=2e-6, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    min_lr: float = Field(default=0.1, ge=0, le=1)
    optimiser: OptimiserConfig = OptimiserConfig(weight_decay=0.0)
    parallel: ParallelConfig = ParallelConfig()
    controls: GRPOControls = GRPOControls()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    evaluate_every: int = Field(default=50, ge=1)
    save_every: int = Field(default=50, ge=1)
    log_every: int = Field(default=5, ge=1)
    evaluate_limit: int = Field(default=256, ge=1)
    evaluate_samples: int = Field(default=4, ge=1)
    keep: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _one_batch_a_step(self) -> GRPOConfig:
        if self.optimiser.accumulate != 1:
            raise ValueError(
                f"optimiser.accumulate: expected 1, got {self.optimiser.accumulate}: a step of GRPO is one batch of "
                "scenes; a larger stream.batch_size makes it larger, micro divides it"
            )
        return self
