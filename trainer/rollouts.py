"""Rollouts: answers drawn for a batch of scenes, scored, and weighed against their group; what a GRPO step learns from.

Questions are scenes with a text of their own, and a reward of their own (`answered`); nothing else tells them apart.
Groups whose scores do not differ teach nothing; they are left out of the passes and counted. A pass is what goes
through the network at once. Every rank has as many passes as any rank has, since FSDP gathers weights in each.

Legend: S scenes of this rank, G answers each, B = S G, A tokens, T poses. A policy that thinks in text draws a
thought of its own before each answer: tokens of the answer like the others, for the loss too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import distributed
from trainer.answered import rewarded
from trainer.batch import Batch
from trainer.grpo_config import AskedConfig, GRPOConfig
from trainer.policy_loss import StepSize, group_advantages
from trainer.reward import Reward
from trainer.scored import scored
from trainer.students.base import Student
from trainer.tally import Number


@dataclass(frozen=True, slots=True)
class Pass:
    """Answers that go through the network together, those of a scene behind its one prompt: as many of each scene.

    Attributes:
        rows: int64 [n] of B, on the device.
        scenes: int64 [s] of S, whose they are, on the device.
        places: the same s numbers, here.
        counts: a pass that does not is there for the other ranks' sake: one row, and nothing for the policy loss.
    """

    rows: Tensor
    scenes: Tensor
    places: tuple[int, ...]
    counts: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """What a step learns from, on the student's device.

    Attributes:
        passes: of this rank, at least one.
        batch: of S scenes; each has G answers, side by side.
        answers: int64 [B, A], padded with -1.
        words: of A, at the beginning, of the thoughts, each padded by itself; 0: none.
        advantage: float32 [B].
        sampled: float32 [B, A], the sampler's log-probabilities, 0 on padding.
        size: of the whole step, over ranks.
    """

    passes: Sequence[Pass]
    batch: Batch
    answers: Tensor
    words: int
    advantage: Tensor
    sampled: Tensor
    size: StepSize

    @property
    def rows(self) -> int:
        """Rows in all passes of this rank, those that do not count among them."""
        return sum(len(part.rows) for part in self.passes)

    def scenes(self, part: Pass) -> Batch:
        """Those of a pass."""
        return self.batch.take(part.scenes, part.places)


@torch.no_grad()
def roll_out(
    student: Student, batch: Batch, reward: Reward | AskedConfig, table: Tensor, config: GRPOConfig,
    generator: torch.Generator, autocast: torch.autocast,
) -> tuple[Rollout, dict[str, Number]]:  # fmt: skip
    """Draw `config.group` answers of each scene, score them, and say how much better each is than its group.

    Args:
        student: the policy, in eval mode.
        batch: of S scenes, prepared, on the student's device.
        reward: scores drives; or says how answers to questions are rewarded.
        table: the allow table.
        config: the recipe.
        generator: of this rank, on the student's device; draws the answers, and deals the control's advantages.
        autocast: around the sampling.

    Returns:
        The rollout, and sums over this rank of what is logged (see `tally`): ``scenes``, ``answers``, ``spread``,
        ``dropped``, ``unparsed``, ``reward/...``, and where answers or thoughts have an end ``cut``, those that did not
        come to it. An answer whose thought is cut is none.

    Raises:
        SampleError, AbsentError: a scene cannot be scored.
    """
    g, device, end = config.group, batch.status.device, student.spoken(batch).end
    most = reward.length if isinstance(reward, AskedConfig) else None
    with autocast:
        drawn = student.sample(batch, table, group=g, temperature=config.temperature, generator=generator, length=most)
    distributed.reshard(student)
    lengths_B = (drawn.tokens >= 0).sum(1).cpu()
    answers, sampled = (
        x[:, : max(2, int(lengths_B.max()))] for x in (drawn.tokens, drawn.logp)
    )  # then there is padding
    words, longest, cut_B = 0, drawn.tokens.shape[1], None if end is None else (drawn.tokens != end).all(1)
    if drawn.thought is not None and drawn.thought_logp is not None and drawn.cut is not None:
        words, longest = drawn.thought.shape[1], longest + student.thinks
        answers, sampled = torch.cat((drawn.thought, answers), 1), torch.cat((drawn.thought_logp, sampled), 1)
        lengths_B, cut_B = (answers >= 0).sum(1).cpu(), drawn.cut if cut_B is None else drawn.cut | cut_B
    if isinstance(reward, AskedConfig):
        rows, counted = rewarded(student, batch, drawn.tokens, reward)
    else:
        poses, parsed = student.answers.decode(drawn.tokens, batch.status.repeat_interleave(g, 0))
        parsed = parsed if drawn.cut is None else parsed & ~drawn.cut
        rows, counted = scored(reward, batch.tokens, poses.view(-1, g, *poses.shape[1:]), parsed.view(-1, g))
    advantage_SG, spread_S = group_advantages(rows["score"], scale=config.scale)
    if config.controls.shuffle_advantages:
        dealt = torch.rand(advantage_SG.shape, generator=generator, device=device).argsort(1).cpu()
        advantage_SG = advantage_SG.gather(1, dealt)
    kept = spread_S.repeat_interleave(g).nonzero().squeeze(1)
    numbers: dict[str, Number] = {
        "scenes": float(len(batch)),
        "answers": float(len(drawn.tokens)),
        "spread": rows["score"].std(1).sum().item(),
        "dropped": float((~spread_S).sum()),
        "unparsed": float((~counted).sum()),
        **({} if cut_B is None else {"cut": float(cut_B.sum())}),
        **{f"reward/{name}": value.sum().item() for name, value in rows.items()},
    }
    passes, size = _divide(kept, lengths_B, longest, config, device)
    advantage_B = advantage_SG.flatten().float().to(device)
    return Rollout(passes, batch, answers, words, advantage_B, sampled, size), numbers


def _divide(
    kept: Tensor, lengths_B: Tensor, length: int, config: GRPOConfig, device: torch.device
) -> tuple[list[Pass], StepSize]:
    """The passes over the rows that are kept, `micro` at a time, and the size of the whole step. Every rank calls.

    A pass has all answers of as many scenes as `micro` has room for, or of one scene as many as there is room for. Rows
    and lengths are on the CPU; they go to the device together, here, where it has nothing to do anyway.
    """
    places = torch.stack((kept, kept // config.group))
    there, at_once = places.to(device), config.micro or max(1, len(kept))
    passes, span = [], max(1, at_once // config.group) * config.group
    for begin in range(0, len(kept), span):
        end = min(begin + span, len(kept))
        for i in range(begin, end, at_once):
            of = slice(i, min(i + at_once, end))
            each = min(of.stop - i, config.group)
            rows, scenes = there[0, of], there[1, of][::each]
            passes.append(Pass(rows, scenes, tuple(places[1, of][::each].tolist()), counts=True))
    own = (len(kept), lengths_B[kept].sum().item(), len(passes))
    every = distributed.each_rank(own, device)
    answers, tokens, count = (sum(numbers) for numbers in zip(*every, strict=True))
    most = max(1, *(int(numbers[2]) for numbers in every))
    first = torch.zeros(1, dtype=torch.long, device=device)
    passes += [Pass(first, first, (0,), counts=False)] * (most - len(passes))
    return passes, StepSize(answers, tokens, length, int(count))
