"""GRPO's loss, from log-probabilities alone: no model and no reward in it.

For each token, with ratio r = exp(logp - old), advantage A of its answer, and d = reference - logp:

    -min(r A, clip(r, 1 - low, 1 + high) A)  +  beta r (exp(d) - d - 1)

The clipped surrogate is PPO's (arXiv 1707.06347), the last term Schulman's k3 estimate of KL(policy || reference), as
in GRPO (arXiv 2402.03300). Its factor r, through which a gradient flows too, makes the expected gradient that of the
KL, also at r = 1; GRPO's paper has none (`kl_ratio` false), TRL 1.16 has it by default. Kinds differ in how tokens are
averaged, and in nothing else:

    grpo      over the tokens of each answer, then over answers       (2402.03300)
    bnpo      over all tokens of a pass                               (TRL)
    dr_grpo   sum, divided by answers x the longest possible answer   (2503.20783)
    dapo      over all tokens of a step, on all ranks                 (2503.14476)

A pass is what one rank sends through the network at once; a step may have several passes, and ranks. `grpo`, `dr_grpo`
and `dapo` divide by counts of the whole step, so its parts add up to the same loss however it is divided; `bnpo` is a
mean over each pass, which is what tells it from `dapo`.

Legend: S scenes, G answers a group, B = S G answers, A tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossKind = Literal["grpo", "bnpo", "dr_grpo", "dapo"]

EPSILON = 1e-4
"""Added to the standard deviation of a group (TRL's)."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step counts, over all its passes and ranks.

    Attributes:
        answers, tokens: that take part.
        length: tokens of the longest possible answer.
        passes: over all ranks.
    """

    answers: float
    tokens: float
    length: int
    passes: int = 1


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss, and what is logged of it: sums over tokens, detached, to be divided by `tokens`.

    Attributes:
        loss: scalar with a gradient.
        tokens: in the mask.
        kl: k3 against the reference, without the factor r (0 without a reference).
        clipped_low, clipped_high: tokens where the clip took the gradient away.
        ratio: of the new probability to the old.
    """

    loss: Tensor
    tokens: Tensor
    kl: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    ratio: Tensor


def group_advantages(rewards_SG: Tensor, *, scale: bool) -> tuple[Tensor, Tensor]:
    """What each answer is better than its group, and which groups can teach anything.

    Args:
        rewards_SG: float [S, G], G >= 2; float64, or rounding passes for spread.
        scale: divide by the group's standard deviation (unbiased, plus 1e-4); off is Dr.GRPO (arXiv 2503.20783).

    Returns:
        advantages [S, G], mean 0 in each group; bool [S], whether the rewards of a group differ at all.
    """
    centred_SG = rewards_SG - rewards_SG.mean(1, keepdim=True)
    std_S1 = rewards_SG.std(1, keepdim=True)
    spread_S = ~torch.isclose(std_S1, torch.zeros_like(std_S1)).squeeze(1)
    return (centred_SG / (std_S1 + EPSILON) if scale else centred_SG), spread_S


def policy_loss(
    logp_BA: Tensor,
    old_BA: Tensor,
    reference_BA: Tensor | None,
    advantage_B: Tensor,
    mask_BA: Tensor,
    size: StepSize,
    *,
    kind: LossKind,
    beta: float,
    clip_low: float,
    clip_high: float,
    kl_ratio: bool = True,
) -> PolicyLoss:
    """See the module. The losses of a step's passes add up to its loss.

    Args:
        logp_BA: of the policy, with a gradient.
        old_BA: of the policy that answered.
        reference_BA: of the frozen reference; None only where `beta` is 0.
        advantage_B: of each answer.
        mask_BA: bool, tokens that take part.
        size: of the whole step.
        kind: how tokens are averaged.
        beta: weight of the KL.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        kl_ratio: whether the KL has its factor r.

    Log-probabilities are float [B, A], advantages [B]; what is returned has the dtype and the device of `logp_BA`.

    Raises:
        ValueError: `beta` without a reference.
    """
    mask_BA = mask_BA.to(logp_BA.dtype)
    advantage_B1 = advantage_B.unsqueeze(1).to(logp_BA.dtype)
    ratio_BA = (logp_BA - old_BA).exp()
    limited_BA = ratio_BA.clamp(1 - clip_low, 1 + clip_high)
    loss_BA = -torch.minimum(ratio_BA * advantage_B1, limited_BA * advantage_B1)
    kl_BA = torch.zeros_like(loss_BA)
    if reference_BA is not None:
        difference_BA = reference_BA - logp_BA
        kl_BA = difference_BA.exp() - difference_BA - 1
        loss_BA = loss_BA + beta * kl_BA * (ratio_BA if kl_ratio else 1.0)
    elif beta:
        raise ValueError(f"beta is {beta}: a KL needs the log-probabilities of a reference")
    if kind == "grpo":
        loss = ((loss_BA * mask_BA).sum(1) / mask_BA.sum(1).clamp_min(1)).sum() / max(size.answers, 1)
    elif kind == "bnpo":
        loss = (loss_BA * mask_BA).sum() / mask_BA.sum().clamp_min(1) / max(size.passes, 1)
    elif kind == "dr_grpo":
        loss = (loss_BA * mask_BA).sum() / max(size.answers * size.length, 1)
    else:
        loss = (loss_BA * mask_BA).sum() / max(size.tokens, 1)
    with torch.no_grad():
        low_BA = (ratio_BA < 1 - clip_low) & (advantage_B1 < 0)
        high_BA = (ratio_BA > 1 + clip_high) & (advantage_B1 > 0)
        sums = [(x * mask_BA).sum() for x in (torch.ones_like(mask_BA), kl_BA, low_BA, high_BA, ratio_BA)]
    return PolicyLoss(loss, *sums)
