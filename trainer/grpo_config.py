"""The recipe of a GRPO run, `configs/grpo_*.yaml`. What the policy is made of comes from its checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.stores.places import LocalPath, LocalText, OutText, Place
from pipeline.stream import StreamConfig
from questions.rewards import Weights
from scoring import Version
from shards_schema.inputs.models import StrictModel
from trainer.config import MachineConfig, OptimiserConfig
from trainer.distributed import ParallelConfig
from trainer.policy_loss import LossKind
from trainer.questions import QuestionsConfig


class RewardConfig(StrictModel):
    """The reward."""

    column: str = "pdm"
    """Of the teacher `pdm`."""
    version: Version = "v1"
    """``v1``: PDMS, ``v2``: EPDMS."""
    use_human_filter: bool = True
    """v2: what the human failed too counts as 1."""
    max_bytes: int = Field(default=1 << 28, ge=1 << 20)
    """Bound on the scorer's intermediates."""
    keep: int = Field(default=2048, ge=1)
    """Contexts kept in memory."""


class RegulariserConfig(StrictModel):
    """Alignment kept while the policy is refined: weights of each kind's loss, as in SFT; both 0 reads no teacher."""

    wm: float = Field(default=0.02, ge=0)
    geo: float = Field(default=0.02, ge=0)
    smooth_l1: float = Field(default=1.0, ge=0)

    @property
    def on(self) -> bool:
        """Whether there is any."""
        return self.wm > 0 or self.geo > 0


class AskedConfig(QuestionsConfig):
    """Questions that the policy is refined by: `share` counts units, whose prompts stand in one batch."""

    alone: bool = False
    """No drives: the reward column is not read, and a step is `share` x stream.batch_size units a rank."""
    held: LocalPath | None = None
    """Unit file of an evaluation split, for the scores before, meanwhile and after; null is none."""
    reward: Weights = Weights()
    """Weights of form, accuracy and location."""
    pairs: bool = True
    """Accuracy counts where both answers of a pair are right, as in the metric; false: each by itself."""
    coordinates: Literal["pixels", "unit", "thousand"] = "pixels"
    """Of the policy's points and boxes."""
    length: int = Field(default=256, ge=2)
    """Tokens of an answer at most; one that is cut is counted."""


class GRPOControls(StrictModel):
    """Switches of the experiments; off in an honest run."""

    shuffle_advantages: bool = False
    """Each group's advantages are dealt to its answers by chance."""


class GRPOConfig(StrictModel):
    """A GRPO run."""

    policy: LocalText
    """What SFT left (``stage_2.pt``): weights, adapters, statistics, and the recipe of all that is not here."""
    data: Place
    """The dataset, a path or URL; needs the reward column."""
    out: OutText
    """Where checkpoints and logs go."""
    seed: int = 0
    """Of the sampling (with the rank)."""
    steps: int = Field(ge=1)
    """Batches of scenes, each sampled once."""
    stream: StreamConfig = StreamConfig()
    """Order and scenes a step and rank."""
    group: int = Field(default=8, ge=2)
    """G, answers a scene."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of every log-probability."""
    inner: int = Field(default=1, ge=1)
    """Optimiser steps on the same answers."""
    micro: int | None = Field(default=None, ge=1)
    """Answers that go through the network at once, those of a scene behind its one prompt; None: all. A multiple of
    `group`, or prompts are read more than once."""
    loss: LossKind = "grpo"
    """How tokens are averaged, see `policy_loss`."""
    scale: bool = True
    """Divide advantages by the group's standard deviation; false is Dr.GRPO's."""
    beta: float = Field(default=0.02, ge=0)
    """Of the KL to the policy that the run began with; 0 keeps no reference."""
    kl_ratio: bool = True
    """Whether the KL is weighted by the ratio, see `policy_loss`."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Of the ratio, below 1."""
    clip_high: float = Field(default=0.2, gt=0)
    """Of the ratio, above 1."""
    regulariser: RegulariserConfig = RegulariserConfig()
    """Alignment losses."""
    reward: RewardConfig = RewardConfig()
    """The reward of drives."""
    questions: AskedConfig | None = None
    """Questions beside the drives, or alone; null is none (docs/grpo.md)."""
    lr: float = Field(default=2e-6, gt=0)
    """The learning rate, see `optimiser.Schedule`."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps, see `optimiser.Schedule`."""
    min_lr: float = Field(default=0.1, ge=0, le=1)
    """Share of `lr` at the end, see `optimiser.Schedule`."""
    optimiser: OptimiserConfig = OptimiserConfig(weight_decay=0.0)
    """AdamW; `accumulate` has to be 1: a step takes all its answers, `micro` at a time."""
    parallel: ParallelConfig = ParallelConfig()
    controls: GRPOControls = GRPOControls()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs forward passes in autocast."""
    device: str | None = None
    """cpu, cuda; None: cuda where there is one."""
    evaluate_every: int = Field(default=50, ge=1)
    """Steps."""
    save_every: int = Field(default=50, ge=1)
    """Steps."""
    log_every: int = Field(default=5, ge=1)
    """Steps."""
    evaluate_limit: int = Field(default=256, ge=1)
    """Held-out scenes looked at during the run (the closing table takes all)."""
    evaluate_samples: int = Field(default=4, ge=1)
    """Sampled answers a held-out scene, beside the policy's one answer."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    dry_run: bool = False
    """As in SFT's recipe; `policy` may then be that recipe, a YAML file, where there is no policy yet."""
    machine: MachineConfig = MachineConfig()

    @model_validator(mode="after")
    def _one_batch_a_step(self) -> GRPOConfig:
        if self.optimiser.accumulate != 1:
            raise ValueError(
                f"optimiser.accumulate: expected 1, got {self.optimiser.accumulate}: a step of GRPO is one batch of "
                "scenes; a larger stream.batch_size makes it larger, micro divides it"
            )
        return self
