"""The gradient of a GRPO step: the policy asked about the answers of a rollout, pass by pass, and its loss backward.

The old log-probabilities are not the sampler's, which decodes with a cache and differs in the last bits, but those of
the first teacher-forced pass itself, detached: the first ratio is exactly 1. How far the sampler was from them is
logged (`gap`). Losses of passes and ranks add up to the step's (`policy_loss`).

Legend: B answers, A tokens (those of a thought before it among them), V vocabulary, n rows of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer import distributed
from trainer.batch import Batch
from trainer.grpo_config import GRPOConfig
from trainer.model import SFTModel
from trainer.policy_loss import PolicyLoss, policy_loss
from trainer.rollouts import Rollout
from trainer.students.base import Student, said_logp


class PolicyOutput(NamedTuple):
    """Of a teacher-forced pass over answers. A tuple, since DDP and FSDP look for the tensors of what a module returns.

    Attributes:
        logp: float32 [B, A] at the sampling temperature; 0 on padding.
        entropy: float32 [B, A], of the whole distribution, in nats, without a gradient; 0 on padding.
        alignment: latent kind -> alignment loss, a scalar; empty without a regulariser.
    """

    logp: Tensor
    entropy: Tensor
    alignment: dict[str, Tensor]


class PolicyPass(nn.Module):
    """Model and temperature as one module that DDP can wrap; it has no weights of its own.

    Args:
        model: student and adapters.
        config: the recipe.
        table: the allow table.
    """

    def __init__(self, model: SFTModel, config: GRPOConfig, table: Tensor) -> None:
        super().__init__()
        self.model, self._config, self._table = model, config, table

    def forward(self, batch: Batch, answers_BA: Tensor, words: int = 0) -> PolicyOutput:
        """What the policy makes of answers int64 [B, A], padded with -1, to the scenes of a batch, as many to each.

        So many `words` at the beginning of an answer are its thought.
        """
        out = self.model.student(batch, answers_BA, self._table, words)
        logps, every = zip(*said_logp(out, answers_BA, self._config.temperature, words), strict=True)
        logp_BA = torch.cat(logps, 1)
        with torch.no_grad():  # it is only logged, and would keep [B, A, V] twice for the backward pass
            entropy_BA = torch.cat([-(logp_BAV.exp() * logp_BAV).sum(-1) for logp_BAV in every], 1)
        alignment: dict[str, Tensor] = {}
        if self._config.regulariser.on:
            weight = self._config.regulariser.smooth_l1
            alignment = {k: a.cosine + weight * a.smooth_l1 for k, a in self.model.align(out.latents, batch).items()}
        return PolicyOutput(logp_BA, torch.where(answers_BA >= 0, entropy_BA, 0.0), alignment)


@torch.no_grad()
def reference_logps(
    reference: Student | None, rollout: Rollout, table: Tensor, temperature: float, autocast: torch.autocast
) -> list[Tensor | None]:
    """The reference's log-probabilities of each pass, float32 [n, A]; None each without a reference."""
    if reference is None:
        return [None] * len(rollout.passes)
    found: list[Tensor | None] = []
    for part in rollout.passes:
        with autocast:
            answers = rollout.answers[part.rows]
            found.append(reference.logp(rollout.scenes(part), answers, table, temperature, rollout.words))
    distributed.reshard(reference)
    return found


def backward(
    policy: nn.Module,
    rollout: Rollout,
    references: Sequence[Tensor | None],
    old: list[Tensor],
    config: GRPOConfig,
    autocast: torch.autocast,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """Add the gradient of one optimiser step on a rollout to the parameters of the policy.

    Args:
        policy: a `PolicyPass`, in DDP or not; its gradients are zero, None, or those of another rollout of the step.
        rollout: see there.
        references: of `reference_logps`.
        old: the old log-probabilities of each pass, float32 [n, A]; empty in the first step, which fills it.
        config: the recipe.
        autocast: around the forward passes.
        weight: of the rollout's losses in the step.

    Returns:
        Sums over this rank of what is logged (see `tally`), scalars on the device; losses without the weight.
    """
    world, last = distributed.world_size(), len(rollout.passes) - 1
    numbers: dict[str, Tensor] = {}
    for i, (part, reference) in enumerate(zip(rollout.passes, references, strict=True)):
        answers = rollout.answers[part.rows]
        mask = (answers >= 0) & part.counts
        with distributed.no_sync(policy, last=i == last):
            with autocast:
                asked: PolicyOutput = policy(rollout.scenes(part), answers, rollout.words)
            if i == len(old):
                old.append(asked.logp.detach())
            found = policy_loss(
                asked.logp, old[i], reference, rollout.advantage[part.rows], mask, rollout.size,
                kind=config.loss, beta=config.beta, kl_ratio=config.kl_ratio,
                clip_low=config.clip_low, clip_high=config.clip_high,
            )  # fmt: skip
            # losses of passes and ranks add up, and DDP and FSDP average: hence the factor; alignment is a mean
            loss = found.loss * world
            share = len(part.rows) / rollout.rows
            for kind, value in asked.alignment.items():
                loss = loss + share * getattr(config.regulariser, kind) * value
            (weight * loss).backward()  # type: ignore[no-untyped-call]
        gap = ((rollout.sampled[part.rows] - old[i]).abs() * mask).max()
        for name, value in _logged(found, world * found.loss.detach(), asked, mask, gap, share).items():
            numbers[name] = numbers.get(name, torch.zeros_like(value)) + value
    return numbers


def _logged(
    found: PolicyLoss, loss: Tensor, asked: PolicyOutput, mask_BA: Tensor, gap: Tensor, share: float
) -> dict[str, Tensor]:
    out = {
        "loss": loss,
        "tokens": found.tokens,
        "kl": found.kl,
        "clipped_low": found.clipped_low,
        "clipped_high": found.clipped_high,
        "ratio": found.ratio,
        "entropy": (asked.entropy * mask_BA).sum(),
        "gap": gap.detach() * share,
    }
    return out | {f"align_{kind}": value.detach() * share for kind, value in asked.alignment.items()}
