"""How well a policy drives: its answers, scored, for GRPO's rewards and for held-out scenes.

An answer that does not parse scores 0 in everything and is counted; so does one whose text parses and that leaves 1 km
within 4 s, which no simulation should be asked about. All else that cannot be scored is an error (`reward.Reward`).

Legend: S scenes, G answers a scene, T poses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer import seeds
from trainer.batch import Batch
from trainer.evaluate import displacement
from trainer.held import each
from trainer.reward import Reward
from trainer.students.base import Student
from trainer.tally import known, mean_known

REACH = 1000.0
"""Metres (and radians); an answer beyond it, or not finite, counts as not parsed."""


def scored(
    reward: Reward, tokens: Sequence[str], poses_SGT3: Tensor, parsed_SG: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """``score`` and every sub-score, float64 [S, G] on the CPU, and which answers counted, bool [S, G].

    Raises:
        SampleError, AbsentError: see `Reward.score`.
    """
    poses = poses_SGT3.detach().cpu().double()
    good_SG = parsed_SG.cpu() & (poses.abs().flatten(2).amax(2) < REACH)
    found = reward.score(tokens, torch.where(good_SG[..., None, None], poses, 0.0))
    rows = {"score": found.score, **found.subscores}
    read = torch.stack(tuple(rows.values())).cpu() * good_SG  # one wait for all of them
    return dict(zip(rows, read.unbind(), strict=True)), good_SG


@dataclass(frozen=True, slots=True, eq=False)
class Driven:
    """Held-out scenes, each driven by the policy's one answer and, for the sampled mean, by some more.

    Attributes:
        tokens: S.
        scores: ``score`` and sub-scores of that answer, float64 [S]; 0 where it does not parse.
        sampled: float64 [S], mean score of sampled answers; NaN without any.
        parsed: bool [S], of that answer.
        errors: ``ade_4`` and so on against the human, float64 [S]; NaN where it does not parse.
    """

    tokens: tuple[str, ...]
    scores: Mapping[str, Tensor]
    sampled: Tensor
    parsed: Tensor
    errors: Mapping[str, Tensor]

    def means(self) -> dict[str, float]:
        """Over scenes: ``score``, ``sampled``, the share that is ``unparsed``; over those that parse: sub-scores and
        errors, as in `jobs.evaluate`. What there is none of is left out.
        """
        means = {name: mean_known(self.values(name)) for name in (*self.scores, "sampled", *self.errors)}
        return {**known(means), "unparsed": 1 - self.parsed.double().mean().item()}

    def values(self, name: str) -> Tensor:
        """What a mean is made of, float64 [S]; NaN where a scene has no such number."""
        if name == "sampled":
            return self.sampled
        if name == "score":
            return self.scores[name]
        return ({**self.scores, **self.errors})[name].masked_fill(~self.parsed, math.nan)

    def state(self) -> dict[str, Any]:
        """Plain lists, for a file; `restore` is the inverse."""
        return {
            "scores": {k: v.tolist() for k, v in self.scores.items()},
            "sampled": None if self.sampled.isnan().any() else self.sampled.tolist(),
            "parsed": self.parsed.tolist(),
            "errors": {k: [None if math.isnan(x) else x for x in self.values(k).tolist()] for k in self.errors},
        }

    @classmethod
    def restore(cls, tokens: Sequence[str], state: Mapping[str, Any]) -> Driven:
        """Of `state`."""
        none = [math.nan] * len(tokens)
        return cls(
            tokens=tuple(tokens),
            scores={k: torch.tensor(v, dtype=torch.float64) for k, v in state["scores"].items()},
            sampled=torch.tensor(state["sampled"] or none, dtype=torch.float64),
            parsed=torch.tensor(state["parsed"]),
            errors={
                k: torch.tensor([math.nan if x is None else x for x in v], dtype=torch.float64)
                for k, v in state["errors"].items()
            },
        )

    @classmethod
    def of(cls, parts: Sequence[Driven]) -> Driven:
        """Several, one after another."""
        first = parts[0]
        return cls(
            tokens=tuple(t for p in parts for t in p.tokens),
            scores={k: torch.cat([p.scores[k] for p in parts]) for k in first.scores},
            sampled=torch.cat([p.sampled for p in parts]),
            parsed=torch.cat([p.parsed for p in parts]),
            errors={k: torch.cat([p.errors[k] for p in parts]) for k in first.errors},
        )


def policy_scores(
    student: Student,
    batches: Sequence[Batch],
    reward: Reward,
    table: Tensor,
    device: torch.device,
    *,
    temperature: float = 1.0,
    samples: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Driven:
    """Drive held-out scenes; the ranks share the batches, and each has the whole result, in order.

    The same seed draws the same answers, whoever asks and when: evaluation leaves no trace in a run's own sampling.

    Args:
        student: the policy; evaluated in eval mode, left as it was.
        batches: the same on every rank. Each rank reads its own.
        reward: scores.
        table: the allow table.
        device: of the student.
        temperature: of the sampled answers.
        samples: sampled answers a scene.
        seed: of them, with the place of the batch.
        dtype: of autocast.

    Raises:
        SampleError, AbsentError: see `Reward.score`.
    """

    def driven(place: int, batch: Batch) -> Driven:
        generator = seeds.generator(device, seed, "held out", place)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            said = student.answer(batch, table)
            more = (
                student.sample(batch, table, group=samples, temperature=temperature, generator=generator).tokens
                if samples
                else None
            )
        return _driven(student, batch, reward, said, more, samples)

    return Driven.of(each(student, batches, device, driven))


def given_scores(trajectories: Sequence[Tensor], batches: Sequence[Batch], reward: Reward) -> Driven:
    """The same of given trajectories, float32 [B, T, 3] a batch: the human, a baseline. On the CPU, by this rank alone.

    Raises:
        SampleError, AbsentError: see `Reward.score`.
    """
    parts = []
    for poses, batch in zip(trajectories, batches, strict=True):
        parsed = torch.ones(len(batch), 1, dtype=torch.bool)
        rows, _ = scored(reward, batch.tokens, poses.unsqueeze(1), parsed)
        errors = {k: v.double().cpu() for k, v in displacement(poses, batch.future.float()).items()}
        parts.append(
            Driven(
                batch.tokens,
                {k: v[:, 0] for k, v in rows.items()},
                torch.full((len(batch),), torch.nan),
                parsed[:, 0],
                errors,
            )
        )
    return Driven.of(parts)


def _driven(
    student: Student,
    batch: Batch,
    reward: Reward,
    said: tuple[Tensor, Tensor],
    more: Tensor | None,
    samples: int,
) -> Driven:
    """The answer, and sampled ones, of each scene of a batch, scored at once."""
    poses, parsed = said
    apart = displacement(poses, batch.future.float())
    poses_all, parsed_all = poses.unsqueeze(1), parsed.unsqueeze(1)
    if more is not None:
        drawn, good = student.answers.decode(more, batch.status.repeat_interleave(samples, 0))
        poses_all = torch.cat((poses_all, drawn.view(-1, samples, *drawn.shape[1:])), 1)
        parsed_all = torch.cat((parsed_all, good.view(-1, samples)), 1)
    rows, counted = scored(reward, batch.tokens, poses_all, parsed_all)
    score = rows["score"]
    sampled = score[:, 1:].mean(1) if samples else torch.full((len(batch),), torch.nan)
    answered = counted[:, 0]
    errors = {k: v.double().cpu().masked_fill(~answered, math.nan) for k, v in apart.items()}
    return Driven(batch.tokens, {k: v[:, 0] for k, v in rows.items()}, sampled, answered, errors)
