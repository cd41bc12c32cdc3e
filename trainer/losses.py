"""The losses of the supervised stages, each a number of its own.

- answer: cross-entropy of the answer tokens, a mean over the tokens of each sample, then over samples.
- alignment, for `wm` and for `geo`: 1 - cosine, and smooth L1 (beta 1), between what an adapter predicts and the
  teacher's features, standardised a channel with the training split's statistics; means over latents, then samples.

Every mean is taken over samples last, so that equal parts of a batch on several ranks average to the whole batch.
The weights of the stages (1/1/0.1 and 0.1/0.1/1) are ours: the paper's are not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from shards_schema.inputs.models import StrictModel


class LossWeights(StrictModel):
    """What a stage weighs."""

    wm: float = Field(ge=0)
    """Of the dynamics alignment (1 - cosine + `smooth_l1` * smooth L1)."""
    geo: float = Field(ge=0)
    """Of the geometry alignment."""
    answer: float = Field(ge=0)
    """Of the cross-entropy."""
    smooth_l1: float = Field(default=1.0, ge=0)
    """Of smooth L1 relative to 1 - cosine."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """One alignment: 1 - cosine and smooth L1, scalars."""

    cosine: Tensor
    smooth_l1: Tensor


def alignment(predicted_BNC: Tensor, target_BNC: Tensor) -> Alignment:
    """Both alignment losses of standardised features [B, N latents, C channels], in float32."""
    predicted, target = predicted_BNC.float(), target_BNC.float()
    cosine_B = 1 - nn.functional.cosine_similarity(predicted, target, dim=-1, eps=1e-6).mean(1)
    return Alignment(cosine_B.mean(), nn.functional.smooth_l1_loss(predicted, target))


def alignment_known(predicted_BNC: Tensor, target_BNC: Tensor) -> Alignment:
    """The same where samples may have no target, which is NaN then: these add nothing, and no gradient.

    The sums are divided by all samples, so that equal parts of a batch on several ranks average to the whole.
    """
    there_B11 = ~target_BNC.isnan().flatten(1).any(1).view(-1, 1, 1)
    # where there is none, both are the same constant: of a loss of 0
    known = (torch.where(there_B11, features.float(), 1.0) for features in (predicted_BNC, target_BNC))
    return alignment(*known)


def answer_loss(logits_BAV: Tensor, answers_BA: Tensor, smoothing_VV: Tensor | None = None) -> Tensor:
    """Cross-entropy of the answers, a scalar in float32.

    Args:
        logits_BAV: [B, A tokens, V].
        answers_BA: int64; negative values are padding and count for nothing.
        smoothing_VV: for each right token the distribution that is asked for (rows sum to 1); None: the token alone.
    """
    logp_BAV = logits_BAV.float().log_softmax(-1)
    valid_BA = answers_BA >= 0
    ids_BA = answers_BA.clamp_min(0)
    if smoothing_VV is None:
        loss_BA = -logp_BAV.gather(-1, ids_BA.unsqueeze(-1)).squeeze(-1)
    else:
        loss_BA = -(smoothing_VV[ids_BA] * logp_BAV).sum(-1)
    return ((loss_BA * valid_BA).sum(1) / valid_BA.sum(1).clamp_min(1)).mean()


def total(weights: LossWeights, answer: Tensor, wm: Alignment | None, geo: Alignment | None) -> Tensor:
    """The weighted sum of a stage; of a student without latents there is no alignment."""
    parts = [(w, a) for w, a in ((weights.wm, wm), (weights.geo, geo)) if a is not None]
    aligned = sum(
        (w * (a.cosine + weights.smooth_l1 * a.smooth_l1) for w, a in parts),
        start=torch.zeros((), device=answer.device),
    )
    return aligned + weights.answer * answer
