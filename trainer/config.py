"""The recipe of a supervised run, `configs/sft_*.yaml`: a frozen tree, its parts beside the code they configure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.stores.places import OutText, Place
from pipeline.stream import StreamConfig
from trainer.answers.motion import MotionConfig
from trainer.answers.text import TextConfig
from trainer.data import DataConfig
from trainer.distributed import ParallelConfig
from trainer.latents import LATENTS, TargetConfig
from trainer.losses import LossWeights
from trainer.students.hf import HFConfig
from trainer.students.tiny import TinyConfig

AnswerConfig = Annotated[MotionConfig | TextConfig, Field(discriminator="kind")]
StudentConfig = Annotated[TinyConfig | HFConfig, Field(discriminator="kind")]

DYNAMICS = TargetConfig(column="cosmos", target="latent_pool", grid={"time": 3, "pool_row": 3, "pool_col": 4})
GEOMETRY = TargetConfig(column="vggt", target="l23_tok12", grid={"tok12_token": 12}, select={"view": 0})

WEIGHTS = {1: LossWeights(wm=1, geo=1, answer=0.1), 2: LossWeights(wm=0.1, geo=0.1, answer=1)}


class StageConfig(BaseModel):
    """One stage.

    Attributes:
        stage: 1 or 2; names the allow table and the usual weights.
        steps: optimiser steps.
        weights: of the losses; None: 1/1/0.1 in stage 1, 0.1/0.1/1 in stage 2.
        mask: the allow table, by the stage whose it is; None: this stage's (2 in stage 1 is the control without mask).
        lr: peak learning rate.
        warmup: share of the steps.
        min_lr: share of `lr` that the cosine ends at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal[1, 2]
    steps: int = Field(ge=1)
    weights: LossWeights | None = None
    mask: Literal[1, 2] | None = None
    lr: float = Field(default=4e-5, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    min_lr: float = Field(default=0.0, ge=0, le=1)

    @property
    def loss_weights(self) -> LossWeights:
        """`weights`, or the stage's own."""
        return self.weights or WEIGHTS[self.stage]

    @property
    def table_stage(self) -> int:
        """Whose allow table holds."""
        return self.mask or self.stage


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimiserConfig(BaseModel):
    """AdamW; matrices decay, vectors do not.

    Attributes:
        betas, weight_decay: of AdamW.
        new_lr: factor on the learning rate of what is not pretrained (latents, adapters, answer head).
        clip: largest gradient norm, over all parameters.
        accumulate: batches a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)
    new_lr: float = Field(default=1.0, gt=0)
    clip: float = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, ge=1)


class ControlsConfig(BaseModel):
    """Switches of the experiments; all off in an honest run.

    Attributes:
        shuffle_teachers: give each training sample the targets of another.
        zero_latents: set the latents' states to zero while evaluating.
        hide_images: make every image grey, in training and in evaluation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shuffle_teachers: bool = False
    zero_latents: bool = False
    hide_images: bool = False


class SFTConfig(BaseModel):
    """A supervised run.

    Attributes:
        data: the dataset, a path or URL.
        out: where checkpoints and logs go.
        seed: of the weights, of dropout, and (with stream.seed) of the order.
        samples: what is read of a sample.
        stream: order, batch size, threads.
        student, answers: the policy and what it says.
        targets: latent kind (wm, geo) -> the teacher's feature that it is aligned to.
        statistics: what standardises targets. `split`: mean and std of the latents' own targets over the training
            split, which is read once for it before the first step. `column`: those that came with the column, read in
            no time; they are of single cells, all views and every log, so a target that is averaged has a std under 1.
        adapter: hidden units of the adapters.
        stages: in order.
        optimiser, parallel, controls: see there.
        dtype: bfloat16 runs forward passes in autocast; weights and optimiser stay as they are.
        device: cpu, cuda; None: cuda where there is one.
        evaluate_every, save_every, log_every: optimiser steps.
        evaluate_limit: held-out samples looked at during training (the closing table always takes all).
        keep: checkpoints kept.
        baselines: whether the closing table has the learned baselines.
        check_mask: whether the mask is checked by gradients on a first batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Place
    out: OutText
    seed: int = 0
    samples: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig()
    student: StudentConfig = TinyConfig()
    answers: AnswerConfig = MotionConfig()
    targets: Mapping[str, TargetConfig] = {"wm": DYNAMICS, "geo": GEOMETRY}
    statistics: Literal["split", "column"] = "split"
    adapter: int = Field(default=256, ge=1)
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    optimiser: OptimiserConfig = OptimiserConfig()
    parallel: ParallelConfig = ParallelConfig()
    controls: ControlsConfig = ControlsConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    evaluate_every: int = Field(default=200, ge=1)
    save_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=20, ge=1)
    evaluate_limit: int = Field(default=256, ge=1)
    keep: int = Field(default=2, ge=1)
    baselines: bool = True
    check_mask: bool = True

    @model_validator(mode="after")
    def _complete(self) -> SFTConfig:
        if set(self.targets) != set(LATENTS):
            raise ValueError(f"targets: expected {', '.join(LATENTS)}, got {', '.join(self.targets)}")
        return self

    @property
    def counts(self) -> dict[str, int]:
        """Latents of each kind."""
        return {kind: self.targets[kind].latents for kind in ("wm", "geo")}

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)
