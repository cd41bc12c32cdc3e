"""What the training loops share: optimiser, schedule, batches without end, and what a run may go on from."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Set
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from pipeline.stream import ShardStream
from shards_schema.errors import MismatchError, ShardsError
from trainer import distributed
from trainer.batch import Batch, collate
from trainer.config import OptimiserConfig

FREE = frozenset(
    {"data", "out", "device", "parallel", "evaluate_every", "save_every", "log_every", "evaluate_limit", "keep"}
)
"""What may differ when a run goes on: where things lie, ranks, how often is logged, evaluated and saved."""


class DivergedError(ShardsError, ArithmeticError):
    """The loss or the gradient of a step is not finite."""


class Schedule(Protocol):
    """A learning rate over `steps`: linear warm-up (a share of them), then half a cosine from `lr` to `lr * min_lr`."""

    @property
    def steps(self) -> int: ...  # noqa: D102 (see the class)
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102
    @property
    def min_lr(self) -> float: ...  # noqa: D102


def learning_rate(schedule: Schedule, step: int) -> float:
    """Of optimiser step 0 <= step < schedule.steps."""
    warmup = round(schedule.warmup * schedule.steps)
    if step < warmup:
        return schedule.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, schedule.steps - warmup)
    return schedule.lr * (schedule.min_lr + (1 - schedule.min_lr) * (1 + math.cos(math.pi * done)) / 2)


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over what is trained: matrices of layers decay; `scale` of a group multiplies the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 and name.endswith("weight") else 0.0
            scale = 1.0 if ".vlm." in name else config.new_lr
            groups.setdefault((decay, scale), []).append(parameter)
    made = [{"params": p, "weight_decay": decay, "scale": scale} for (decay, scale), p in groups.items()]
    return torch.optim.AdamW(made, lr=0.0, betas=config.betas)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of each group, by its `scale`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def batches_of(stream: ShardStream, size: int, device: torch.device) -> Generator[Batch, None, None]:
    """Whole batches of `size` a rank without end, epoch after epoch; the cursor moves when one is handed out."""
    while True:
        for batch in stream.batches(collate=collate, pin_memory=device.type == "cuda", drop_last=True):
            stream.advance(size * distributed.world_size())
            yield batch
        stream.set_epoch(stream.epoch + 1)


def refuse_other(recorded_json: str, own: BaseModel, path: Path | None, free: Set[str] = FREE) -> None:
    """Whether a run may go on from a checkpoint: all of the recipe but `free` is as it was.

    Raises:
        MismatchError: it is not; the first keys that differ are named.
    """
    recorded, mine = json.loads(recorded_json), own.model_dump(mode="json")
    changed = [k for k in mine if k not in free and mine[k] != recorded.get(k)]
    if changed:
        told = "; ".join(f"{k}: {recorded.get(k)} -> {mine[k]}" for k in changed[:3])
        raise MismatchError(f"{path}: begun with another recipe ({told}); give the same one, or another out")


def clipped(model: nn.Module, limit: float, step: int, numbers: Mapping[str, Tensor], last: Path | None) -> Tensor:
    """Clip the gradient of all parameters to a norm; the norm before.

    Raises:
        DivergedError: it is not finite; step, losses and the checkpoint to go on from are named.
    """
    norm: Any = nn.utils.clip_grad_norm_(model.parameters(), limit)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP's norms are distributed
    if not torch.isfinite(whole):
        losses = {n: round(v.item(), 4) for n, v in numbers.items()}
        raise DivergedError(
            f"step {step}: gradient norm {whole.item()}, losses {losses}; lower the learning rate, or go on from {last}"
        )
    return whole.detach()
