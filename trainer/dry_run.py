"""What a recipe takes of a machine that is not here, counted on the meta device; docs/8b.md has the formulas.

No weight is read and nothing of the dataset: of a pretrained student its config, tokenizer and image processor. What is
counted is the language model's layers and the vision tower; norms, pointwise kernels and the data's way are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards_schema.errors import ConfigError
from trainer import distributed
from trainer.answers.base import Answers
from trainer.answers.motion import MotionAnswers, MotionConfig
from trainer.batch import Batch
from trainer.build import make_answers, make_student, make_words
from trainer.config import MachineConfig, SFTConfig
from trainer.grpo_config import GRPOConfig
from trainer.latents import Adapter
from trainer.resuming import step_samples
from trainer.students.base import Student
from trainer.students.hf import outline
from trainer.students.hf_config import HFConfig
from trainer.thoughts import WIDEST

HELD_BACK = 0.1
"""Share of a GPU's memory for CUDA itself, NCCL, work space of kernels, and what the allocator cannot use."""
CHANNELS = 2048
"""C of a teacher's features, for the adapters: VGGT's."""
HISTORY = 4
"""H, status steps: NAVSIM's."""
_FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """`memory` of a rank, part -> bytes; `tokens` of a sample; `samples`, `flops` of a step of all ranks; `steps`."""

    memory: dict[str, float]
    tokens: int
    samples: int
    flops: float
    steps: int


def sft_needs(config: SFTConfig) -> Needs:
    """Of supervised training.

    Raises:
        ConfigError: what `distributed.shard` refuses.
        WeightsError: a pretrained student's config cannot be read.
    """
    shape = Shape(config)
    rows, length = config.stream.batch_size, shape.prompt + shape.thought + shape.answers - 1
    samples = step_samples(config, config.machine.gpus)
    return Needs(
        memory=shape.states(config, shape.adapters)
        | {"activations": shape.activations(rows * length, config.dtype), "logits": shape.logits(rows)},
        tokens=length,
        samples=samples,
        flops=samples * (shape.learned(length) + shape.seen),
        steps=config.total_steps,
    )


def grpo_needs(config: GRPOConfig, sft: SFTConfig) -> Needs:
    """Of GRPO from a policy of the recipe `sft`; raises what `sft_needs` raises."""
    shape = Shape(sft)
    group, said = config.group, shape.thought + shape.answers
    answers = config.stream.batch_size * group
    rows = min(config.micro or answers, answers)
    together = min(rows, group)  # answers behind a prompt
    behind = shape.prompt + together * (said - 1)
    memory = shape.states(config, shape.adapters if config.regulariser.on else [])
    learning = shape.activations(max(1, rows // group) * behind, config.dtype)
    reference = bool(config.beta)
    samples = step_samples(config, config.machine.gpus)
    asked = (shape.forward(behind) + shape.seen) * reference + config.inner * (shape.learned(behind) + shape.seen)
    drawn = shape.forward(shape.prompt) + shape.seen + group * shape.forward(said)
    return Needs(
        memory=memory
        | ({"reference": memory["weights"]} if reference else {})
        | {"activations, or the rollouts' cache": max(learning, answers * (shape.prompt + said - 1) * shape.cache)}
        | {"logits": shape.logits(rows)},
        tokens=behind,
        samples=samples,
        flops=samples * (group / together * asked + drawn),
        steps=config.steps,
    )


def report(needs: Needs, machine: MachineConfig) -> str:
    """For a person.

    Raises:
        ConfigError: a rank has not the memory.
    """
    total = sum(needs.memory.values())
    lines = [f"  {part:47} {size / 1e9:7.2f} GB" for part, size in needs.memory.items()]
    most = (1 - HELD_BACK) * machine.memory * 1e9
    if total > most:
        raise ConfigError(
            f"dry run: a rank takes {total / 1e9:.1f} GB ("
            + ", ".join(f"{part} {size / 1e9:.1f}" for part, size in needs.memory.items())
            + f") and has {most / 1e9:.1f} of machine.memory {machine.memory:g}, less a tenth; take "
            "parallel.mode: fsdp, gradient_checkpointing, student.lora, a smaller stream.batch_size or micro, or more "
            "machine.gpus"
        )
    seconds = needs.flops / (machine.gpus * machine.tflops * 1e12 * machine.share)
    return "\n".join(
        [
            f"dry run: memory of each of {machine.gpus} ranks",
            *lines,
            f"  {'in all':47} {total / 1e9:7.2f} GB of {most / 1e9:.1f}",
            f"a step: {needs.samples} samples of {needs.tokens} tokens, {needs.flops:.2e} FLOPs, {seconds:.2f} s at "
            f"{machine.share:g} of {machine.tflops:g} TFLOP/s; {needs.steps} steps: "
            f"{needs.steps * seconds / 3600:.2f} h",
        ]
    )


class Shape:
    """A student on the meta device, and what follows from its shapes.

    Attributes:
        prompt: tokens of a sample's prompt.
        answers: tokens of an answer.
        thought: of a thought in text before it, at most.
        cache: bytes of the keys and values of a token, in bfloat16.
        seen: FLOPs of the vision tower for a sample.
    """

    def __init__(self, config: SFTConfig) -> None:
        if isinstance(config.answers, MotionConfig):
            motions = torch.randn(config.answers.size, 3, generator=torch.Generator().manual_seed(0))
            said: Answers = MotionAnswers(
                motions, config.samples.steps, config.answers.smoothing, config.answers.relative
            )
        else:
            none = torch.empty(0), torch.empty(0)
            said = make_answers(config.answers, config.student, lambda: none, config.samples.steps)
        views, thinks = len(config.samples.pictures), config.thought == "text"
        if isinstance(config.student, HFConfig):
            self.student: Student = outline(config.student, said, config.counts)
        else:
            with torch.device("meta"):
                self.student = make_student(
                    config.student,
                    said,
                    config.counts,
                    views=views,
                    history=HISTORY,
                    words=make_words(config.student, (), thinks=thinks),
                )
        with torch.device("meta"):
            self.adapters = [Adapter(self.student.width, CHANNELS, config.adapter) for _ in config.aligned]
        self.blocks, self.answers = self.student.blocks, said.length
        words = self.student.words
        self.thought = words.encode([WIDEST]).shape[1] if thinks and words is not None else 0
        self._words = 0 if words is None else words.vocabulary
        self._checkpointing = bool(getattr(config.student, "gradient_checkpointing", False))
        self.prompt, images = _prompt(self.student, config)
        keys = [m.out_features for n, m in self.blocks[0].named_modules() if n.endswith("k_proj")]
        self.cache = 2 * 2 * len(self.blocks) * int(keys[0] if keys else self.student.width)
        tower = [p for n, p in self.student.named_parameters() if "vision" in n or "visual" in n]
        each = 2 + 4 * any(p.requires_grad for p in tower)
        self.seen = each * sum(p.numel() for p in tower) * 4 * images  # four patches make a token

    def states(self, config: SFTConfig | GRPOConfig, adapters: Sequence[nn.Module]) -> dict[str, float]:
        """Bytes of what a rank keeps from step to step, and of what is gathered for a pass."""
        low = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        distributed.shard(self.student, self.blocks, adapters, config.parallel, torch.device("meta"), low)
        fsdp, gpus = config.parallel.mode == "fsdp", config.machine.gpus
        parts = gpus if fsdp else 1
        every = [p for module in (self.student, *adapters) for p in module.parameters()]
        learnt = [p for p in every if p.requires_grad]
        trained = sum(p.nbytes for p in learnt)
        out = {
            "weights": sum(p.nbytes for p in every) / parts,
            "gradients": trained / parts,
            "AdamW's moments": 2 * _FLOAT * sum(p.numel() for p in learnt) / parts,
        }
        if low_weights := [p for p in learnt if p.element_size() < _FLOAT]:
            out["their masters in float32"] = _FLOAT * sum(p.numel() for p in low_weights) / parts
        if fsdp:
            within = {id(p) for block in self.blocks for p in block.parameters()}
            around = [p for p in every if id(p) not in within]
            block = list(self.blocks[0].parameters())
            stored = block[0].element_size()
            whole = sum(p.numel() for p in block) * min(stored, low.itemsize)
            out["gathered: two layers, and what is around them"] = 2 * whole + sum(p.nbytes for p in around)
            out["their gradients"] = _FLOAT * sum(p.numel() for p in (*block, *around) if p.requires_grad)
        elif gpus > 1:
            out["DDP's buckets"] = trained
        return out

    def activations(self, tokens: int, dtype: str) -> float:
        """Bytes kept for so many tokens: the residual stream of each layer, and what is in a layer (checkpointing), or
        in each: inputs and outputs of its linear parts.
        """
        linear = [m for m in self.blocks[0].modules() if isinstance(m, nn.Linear)]
        inside = sum(m.in_features + m.out_features for m in linear) * (2 if dtype == "bfloat16" else _FLOAT)
        stream = self.student.width * next(self.blocks[0].parameters()).element_size()
        return tokens * (len(self.blocks) * stream + inside * (1 if self._checkpointing else len(self.blocks)))

    def logits(self, rows: int) -> float:
        """Bytes of logits, their softmax and their gradient."""
        return 3 * _FLOAT * rows * (self.answers * self.student.answers.vocabulary + self.thought * self._words)

    def forward(self, tokens: int) -> float:
        """FLOPs of a pass of a sample: two a weight and token, and the two products of attention."""
        weights = sum(p.numel() for p in self._linear())
        return 2 * weights * tokens + 4 * len(self.blocks) * self.student.width * tokens**2

    def learned(self, tokens: int) -> float:
        """FLOPs of a pass and its gradient: again as much for inputs, for what is trained, and for recomputing."""
        weights = self._linear()
        share = sum(p.numel() for p in weights if p.requires_grad) / sum(p.numel() for p in weights)
        return self.forward(tokens) * (2 + share + self._checkpointing)

    def _linear(self) -> list[Tensor]:
        return [m.weight for block in self.blocks for m in block.modules() if isinstance(m, nn.Linear)]


def _prompt(student: Student, config: SFTConfig) -> tuple[int, int]:
    """Tokens of a sample's prompt, and those of its images among them, of a grey scene of the right size."""
    width, height = config.samples.image or (1920, 1080)
    batch = Batch(
        tokens=("",),
        images=torch.zeros(1, len(config.samples.pictures), 3, height, width, dtype=torch.uint8),
        status=torch.full((1, HISTORY, 7), 12.34),
        command=torch.zeros(1, dtype=torch.long),
        future=torch.zeros(1, config.samples.steps, 3),
        targets={},
        frames=1 + config.samples.history,
    )
    batch = student.prepare(batch)
    if batch.lengths:
        words = batch.prepared["ids"]
        return batch.lengths[0], int((words == getattr(student, "_image_id", -1)).sum())
    return int(student.prompt(batch.to("meta")).segments.shape[1]), 0
