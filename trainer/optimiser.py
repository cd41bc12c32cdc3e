"""What a loop optimises with: AdamW in groups, the learning rate of each step, and a gradient that is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from shards_schema.errors import ShardsError
from trainer.config import OptimiserConfig


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


class MasteredAdamW(torch.optim.AdamW):
    """AdamW whose steps are taken on float32 copies of weights in bfloat16, which are then rounded: the masters.

    A step of 1e-6 is less than bfloat16 can tell from none. Masters and moments are float32, and in checkpoints. What
    is float32 anyway is its own master.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; a closure is not taken."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p] for p in weights]
            for p, state in zip(weights, states, strict=True):
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
                if p.dtype is not torch.float32 and "master" not in state:
                    state["master"] = p.detach().float()
            masters = [state.get("master", p) for p, state in zip(weights, states, strict=True)]
            beta1, beta2 = group["betas"]
            adamw(
                masters,
                [p.grad.float() for p in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=group["fused"], amsgrad=False, maximize=False, eps=group["eps"], lr=group["lr"],
                beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
            )  # fmt: skip
            for p, master in zip(weights, masters, strict=True):
                if master is not p:
                    p.copy_(master)


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over what is trained: matrices of layers decay; `scale` of a group multiplies the learning rate.

    The rate is 0 until `set_rate`. Under FSDP the model is sharded before. One kernel does a group's step (fused) where
    torch has one; a checkpoint of either kind goes on with the other. Weights in bfloat16 have masters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 and name.endswith("weight") else 0.0
            scale = 1.0 if ".vlm." in name else config.new_lr
            groups.setdefault((decay, scale), []).append(parameter)
    made = [{"params": p, "weight_decay": decay, "scale": scale} for (decay, scale), p in groups.items()]
    every = [p for group in groups.values() for p in group]
    fused = all(p.device.type in ("cpu", "cuda") for p in every)
    kind = torch.optim.AdamW if all(p.dtype is torch.float32 for p in every) else MasteredAdamW
    return kind(made, lr=0.0, betas=config.betas, fused=fused)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of each group: `rate` times its `scale`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def clipped(model: nn.Module, limit: float, step: int, numbers: Mapping[str, Tensor], last: Path | None) -> Tensor:
    """Clip the gradient of all parameters to a norm; every rank calls.

    Args:
        model: with gradients.
        limit: the largest L2 norm, over all parameters together.
        step: for the message.
        numbers: losses of the step, scalars, for the message.
        last: the newest checkpoint, for the message.

    Returns:
        The norm before, a scalar on the model's device.

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
