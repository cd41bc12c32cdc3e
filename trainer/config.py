"""The recipe of a supervised run, `configs/sft_*.yaml`: a frozen tree, its parts beside the code they configure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.stores.places import OutText, Place
from pipeline.stream import StreamConfig
from shards_schema.inputs.models import StrictModel
from trainer.answers.motion import MotionConfig
from trainer.answers.text import TextConfig
from trainer.data import DataConfig
from trainer.distributed import ParallelConfig
from trainer.latents import LATENTS, TargetConfig
from trainer.losses import LossWeights
from trainer.questions import QuestionsConfig
from trainer.students.hf_config import HFConfig
from trainer.students.tiny import TinyConfig

AnswerConfig = Annotated[MotionConfig | TextConfig, Field(discriminator="kind")]
StudentConfig = Annotated[TinyConfig | HFConfig, Field(discriminator="kind")]

DYNAMICS = TargetConfig(column="cosmos", target="latent_pool", grid={"time": 3, "pool_row": 3, "pool_col": 4})
GEOMETRY = TargetConfig(column="vggt", target="l23_tok12", grid={"tok12_token": 12}, select={"view": 0})

WEIGHTS = {1: LossWeights(wm=1, geo=1, answer=0.1), 2: LossWeights(wm=0.1, geo=0.1, answer=1)}


class StageConfig(StrictModel):
    """One stage."""

    stage: Literal[1, 2]
    """1 or 2; names the allow table and the usual weights."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    weights: LossWeights | None = None
    """Of the losses; None: 1/1/0.1 in stage 1, 0.1/0.1/1 in stage 2."""
    mask: Literal[1, 2] | None = None
    """The allow table, by the stage whose it is; None: this stage's (2 in stage 1 is the control without mask)."""
    lr: float = Field(default=4e-5, gt=0)
    """Peak learning rate."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps."""
    min_lr: float = Field(default=0.0, ge=0, le=1)
    """Share of `lr` that the cosine ends at."""

    @property
    def loss_weights(self) -> LossWeights:
        """`weights`, or the stage's own."""
        return self.weights or WEIGHTS[self.stage]

    @property
    def table_stage(self) -> int:
        """Whose allow table holds."""
        return self.mask or self.stage


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimiserConfig(StrictModel):
    """AdamW; matrices decay, vectors do not."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of AdamW."""
    new_lr: float = Field(default=1.0, gt=0)
    """Factor on the learning rate of what is not pretrained (latents, adapters, answer head)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm, over all parameters."""
    accumulate: int = Field(default=1, ge=1)
    """Batches a step."""


class MachineConfig(StrictModel):
    """What a dry run counts on; a run takes what is there."""

    gpus: int = Field(default=8, ge=1)
    """Ranks."""
    memory: float = Field(default=80.0, gt=0)
    """GB of a GPU."""
    tflops: float = Field(default=989.0, gt=0)
    """Of a GPU, dense, in bfloat16 (H100)."""
    share: float = Field(default=0.4, gt=0, le=1)
    """Of it that is reached: a guess."""


class ControlsConfig(StrictModel):
    """Switches of the experiments; all off in an honest run."""

    shuffle_teachers: bool = False
    """Give each training sample the targets of another."""
    zero_latents: bool = False
    """Set the latents' states to zero while evaluating."""
    hide_images: bool = False
    """Make every image grey, in training and in evaluation."""


class SFTConfig(StrictModel):
    """A supervised run."""

    data: Place
    """The dataset, a path or URL."""
    out: OutText
    """Where checkpoints and logs go."""
    seed: int = 0
    """Of the weights, of dropout, and (with stream.seed) of the order."""
    samples: DataConfig = DataConfig()
    """What is read of a sample."""
    stream: StreamConfig = StreamConfig()
    """Order, batch size, threads."""
    student: StudentConfig = TinyConfig()
    """The policy."""
    answers: AnswerConfig = MotionConfig()
    """What it says."""
    thought: Literal["latents", "text", "none"] = "latents"
    """What comes before the answer. `latents`; `text`: facts of the scene, which it learns from the labels and writes
    itself, and no latents; `none`: neither."""
    targets: Mapping[str, TargetConfig] = {"wm": DYNAMICS, "geo": GEOMETRY}
    """Latent kind (wm, geo) -> the teacher's feature that it is aligned to; not read where there are no latents."""
    questions: QuestionsConfig | None = None
    """Questions that it also learns to answer; null is none (docs/questions.md)."""
    statistics: Literal["split", "column"] = "split"
    """What standardises targets. `split`: mean and std of the latents' own targets over the training split, which is
    read once for it before the first step. `column`: those that came with the column, read in no time; they are of
    single cells, all views and every log, so a target that is averaged has a std under 1."""
    adapter: int = Field(default=256, ge=1)
    """Hidden units of the adapters."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """In order."""
    optimiser: OptimiserConfig = OptimiserConfig()
    parallel: ParallelConfig = ParallelConfig()
    controls: ControlsConfig = ControlsConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs forward passes in autocast; weights and optimiser stay as they are."""
    device: str | None = None
    """cpu, cuda; None: cuda where there is one."""
    evaluate_every: int = Field(default=200, ge=1)
    """Optimiser steps."""
    save_every: int = Field(default=200, ge=1)
    """Optimiser steps."""
    log_every: int = Field(default=20, ge=1)
    """Optimiser steps."""
    evaluate_limit: int = Field(default=256, ge=1)
    """Held-out samples looked at during training (the closing table always takes all)."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    baselines: bool = True
    """Whether the closing table has the learned baselines."""
    dry_run: bool = False
    """Count memory, tokens and FLOPs on the meta device, print them and end; what cannot fit is refused."""
    machine: MachineConfig = MachineConfig()
    check_mask: bool = True
    """Whether the mask is checked by gradients on a first batch."""

    @model_validator(mode="after")
    def _complete(self) -> SFTConfig:
        if set(self.targets) != set(LATENTS):
            raise ValueError(f"targets: expected {', '.join(LATENTS)}, got {', '.join(self.targets)}")
        if self.thought == "latents":
            return self
        if any(stage.table_stage == 1 for stage in self.stages):
            raise ValueError(
                f"thought: {self.thought} has no latents, and under the mask of stage 1 the answer sees the image "
                "through latents alone; give stages of 2, or mask: 2"
            )
        meant = [name for name in ("shuffle_teachers", "zero_latents") if getattr(self.controls, name)]
        if meant:
            raise ValueError(
                f"controls.{meant[0]}: thought: {self.thought} has no latents, so it has nothing to change"
            )
        return self

    @property
    def aligned(self) -> Mapping[str, TargetConfig]:
        """`targets`; none where there are no latents."""
        return self.targets if self.thought == "latents" else {}

    @property
    def counts(self) -> dict[str, int]:
        """Latents of each kind."""
        return {kind: self.aligned[kind].latents if self.aligned else 0 for kind in ("wm", "geo")}

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)
