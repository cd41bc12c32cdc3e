"""How well a policy answers questions: rewards of drawn answers for GRPO, and held-out questions (`scored`: of drives).

What is no answer scores 0 and is counted. Held-out scores are the metric's own (`questions.scoring`, official rules).

Legend: S questions, G answers each, A tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from questions.answers import Coordinates, read
from questions.outputs import Key, Output
from questions.rewards import weighed
from questions.scoring import CategoryScore, UnitScore, by_category, overall, score_units
from questions.units import Prompt
from trainer import seeds
from trainer.batch import Batch
from trainer.grpo_config import AskedConfig
from trainer.held import each
from trainer.students.base import Student
from trainer.tally import known


def rewarded(
    student: Student, batch: Batch, answers_BA: Tensor, config: AskedConfig
) -> tuple[dict[str, Tensor], Tensor]:
    """``score`` and its parts, float64 [S, G] on the CPU, of answers side by side, and which are answers, bool [S, G].

    Raises:
        ConfigError: of a pair one side alone is in the batch.
    """
    group = len(answers_BA) // len(batch)
    prompts = [question for question in batch.asked for _ in range(group)]
    texts = student.speech.decode(answers_BA)
    found = weighed(
        prompts, texts, config.reward, pairs=config.pairs, coordinates=config.coordinates, terse=True
    )  # fmt: skip
    readings = [read(p, text, "official", config.coordinates) for p, text in zip(prompts, texts, strict=True)]
    rows = {name: torch.tensor(values, dtype=torch.float64).view(-1, group) for name, values in found.items()}
    return rows, torch.tensor([reading.invalid is None for reading in readings]).view(-1, group)


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """Questions, each answered by the likeliest words and, for the sampled mean, by some that were drawn.

    Attributes:
        prompts: of whole units.
        said: of each prompt the likeliest answer, then the drawn ones.
        cut: of each prompt, whether the likeliest answer did not end.
        coordinates: of points.
    """

    prompts: tuple[Prompt, ...]
    said: tuple[tuple[str, ...], ...]
    cut: tuple[bool, ...]
    coordinates: Coordinates

    @property
    def outputs(self) -> dict[Key, Output]:
        """The likeliest answers."""
        return self._outputs(0)

    def units(self, which: int = 0) -> list[UnitScore]:
        """Scores of the likeliest answers (0), or of drawn ones."""
        return score_units(self.prompts, self._outputs(which), "official", self.coordinates)

    def _outputs(self, which: int) -> dict[Key, Output]:
        return {(p.unit, p.side): Output(texts[which]) for p, texts in zip(self.prompts, self.said, strict=True)}

    def categories(self, *, drawn: bool = False) -> dict[str, CategoryScore]:
        """By category: of the likeliest answers, or of each unit the mean of the drawn ones (empty without any)."""
        which = range(1, len(self.said[0])) if drawn else range(1)
        found = [by_category(self.units(i), "official") for i in which]
        return {
            name: replace(
                first,
                score=fmean(one[name].score or 0.0 for one in found),
                values=tuple(map(fmean, zip(*(one[name].values for one in found), strict=True))),
            )
            for name, first in (found[0] if found else {}).items()
        }

    def means(self) -> dict[str, float]:
        """``score`` and ``sampled`` (plain means of the categories), each category's score, and the share that is
        ``cut``; without what there is none of.
        """
        by = self.categories()
        means = {"score": overall(by)[0], "sampled": overall(self.categories(drawn=True))[0]}
        return {**known(means | {name: one.score for name, one in by.items()}), "cut": fmean(self.cut)}


def policy_answers(
    student: Student,
    batches: Sequence[Batch],
    config: AskedConfig,
    table: Tensor,
    device: torch.device,
    *,
    temperature: float = 1.0,
    samples: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Answered:
    """Ask held-out questions, of whole units; batches, ranks and seeds as in `scored.policy_scores`."""

    def answered(place: int, batch: Batch) -> Answered:
        generator = seeds.generator(device, seed, "held-out questions", place)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            tokens = [student.sample(batch, table, temperature=0, length=config.length).tokens]
            if samples:
                drawn = student.sample(
                    batch, table, group=samples, temperature=temperature, generator=generator, length=config.length
                ).tokens
                tokens += drawn.view(len(batch), samples, -1).unbind(1)
        texts = tuple(zip(*map(student.speech.decode, tokens), strict=True))
        cut = (tokens[0] != student.speech.end).all(1).tolist()
        return Answered(batch.asked, texts, tuple(cut), config.coordinates)

    parts = each(student, batches, device, answered)
    return Answered(
        prompts=tuple(p for part in parts for p in part.prompts),
        said=tuple(texts for part in parts for texts in part.said),
        cut=tuple(cut for part in parts for cut in part.cut),
        coordinates=config.coordinates,
    )
