"""Rollouts: answers drawn for a batch of scenes, scored, and weighed against their group; what a GRPO step learns from.

Groups whose scores do not differ teach nothing; they are left out of the passes and counted. A pass is what goes
through the network at once. Every rank has as many passes as any rank has, since FSDP gathers weights in each.

Legend: S scenes of this rank, G answers each, B = S G, A tokens, T poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import distributed
from trainer.batch import Batch
from trainer.grpo_config import GRPOConfig
from trainer.policy_loss import StepSize, group_advantages
from trainer.reward import Reward
from trainer.scored import scored
from trainer.students.base import Student


@dataclass(frozen=True, slots=True)
class Pass:
    """Answers that go through the network together: `rows` int64 [n] of B, and whether they `count`.

    A pass that does not count is there for the other ranks' sake; it has one row, and adds nothing to the policy loss.
    """

    rows: Tensor
    counts: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """What a step learns from, on the student's device.

    Attributes:
        passes: of this rank, at least one.
        batch: of scenes, each G times, B in all.
        answers: int64 [B, A], padded with -1.
        advantage: float32 [B].
        sampled: float32 [B, A], the sampler's log-probabilities, 0 on padding.
        size: of the whole step, over ranks.
    """

    passes: Sequence[Pass]
    batch: Batch
    answers: Tensor
    advantage: Tensor
    sampled: Tensor
    size: StepSize

    @property
    def rows(self) -> int:
        """Rows in all passes of this rank, those that do not count among them."""
        return sum(len(part.rows) for part in self.passes)


@torch.no_grad()
def roll_out(
    student: Student, batch: Batch, reward: Reward, table: Tensor, config: GRPOConfig, generator: torch.Generator,
    autocast: torch.autocast,
) -> tuple[Rollout, dict[str, float]]:  # fmt: skip
    """Draw `config.group` answers of each scene, score them, and say how much better each is than its group.

    Args:
        student: the policy, in eval mode.
        batch: of S scenes, on the student's device.
        reward: scores.
        table: the allow table.
        config: the recipe.
        generator: of this rank, on the student's device; draws the answers, and deals the control's advantages.
        autocast: around the sampling.

    Returns:
        The rollout, and sums over this rank of what is logged (see `tally`): ``scenes``, ``answers``, ``spread``,
        ``dropped``, ``unparsed``, ``reward/...``.

    Raises:
        SampleError, AbsentError: a scene cannot be scored.
    """
    g, device = config.group, batch.status.device
    many = batch.repeat(g)
    with autocast:
        drawn = student.sample(many, table, temperature=config.temperature, generator=generator)
    distributed.reshard(student)
    poses, parsed = student.answers.decode(drawn.tokens, many.status)
    rows, counted = scored(reward, batch.tokens, poses.view(-1, g, *poses.shape[1:]), parsed.view(-1, g))
    advantage_SG, spread_S = group_advantages(rows["score"], scale=config.scale)
    if config.controls.shuffle_advantages:
        dealt = torch.rand(advantage_SG.shape, generator=generator, device=device).argsort(1).cpu()
        advantage_SG = advantage_SG.gather(1, dealt)
    kept = spread_S.repeat_interleave(g).nonzero().squeeze(1).to(device)
    numbers = {
        "scenes": float(len(batch)),
        "answers": float(len(many)),
        "spread": rows["score"].std(1).sum().item(),
        "dropped": float((~spread_S).sum()),
        "unparsed": float((~counted).sum()),
        **{f"reward/{name}": value.sum().item() for name, value in rows.items()},
    }
    passes, size = _divide(kept, drawn.tokens, student.answers.length, config.micro)
    advantage_B = advantage_SG.flatten().float().to(device)
    return Rollout(passes, many, drawn.tokens, advantage_B, drawn.logp, size), numbers


def _divide(kept: Tensor, answers_BA: Tensor, length: int, micro: int | None) -> tuple[list[Pass], StepSize]:
    """The passes over the rows that are kept, `micro` at a time, and the size of the whole step. Every rank calls."""
    parts = list(torch.split(kept, micro or len(kept))) if len(kept) else []
    most = max(1, *distributed.gathered(len(parts)))
    blank = Pass(torch.zeros(1, dtype=torch.long, device=kept.device), counts=False)
    passes = [Pass(rows, counts=True) for rows in parts] + [blank] * (most - len(parts))
    tokens = float((answers_BA[kept] >= 0).sum())
    own = {"answers": float(len(kept)), "tokens": tokens, "passes": float(len(parts))}
    total = distributed.summed(own, kept.device)
    return passes, StepSize(total["answers"], total["tokens"], length, int(total["passes"]))
