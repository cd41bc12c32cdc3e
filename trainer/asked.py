"""A policy, asked: what it says to questions under a mask, with and without latents and pictures.

Under stage 1 the answer sees text and latents alone, so what is right there is in the latents. `WAYS` has that, the
plain causal mask, both with the latents' states at zero, and the blind control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from questions.controls import said
from questions.units import Prompt
from trainer.batch import Batch, collate
from trainer.build import Policy
from trainer.evaluate import zeroed_latents
from trainer.questions import QuestionReader
from trainer.segments import allow_table
from trainer.students.base import Student


@dataclass(frozen=True, slots=True)
class Way:
    """How a policy is asked: whose allow table holds; latents at zero; every pixel grey."""

    stage: Literal[1, 2]
    zeroed: bool = False
    grey: bool = False


WayName = Literal["stage_1", "stage_1_zeroed", "stage_2", "stage_2_zeroed", "hidden"]
WAYS: Mapping[WayName, Way] = {
    "stage_1": Way(1),
    "stage_1_zeroed": Way(1, zeroed=True),
    "stage_2": Way(2),
    "stage_2_zeroed": Way(2, zeroed=True),
    "hidden": Way(2, grey=True),
}
"""The ways that a policy may be asked in, by the names of their files."""

Choosing = Literal["said", "likeliest"]
"""What counts as the answer: what the policy writes, or of a choice the option that it finds likeliest."""


def ask(
    policy: Policy,
    questions: Sequence[Prompt],
    read: QuestionReader,
    ways: Sequence[WayName],
    *,
    choosing: Choosing = "said",
    length: int | None = None,
) -> dict[WayName, list[str]]:
    """What a policy says, each way, to questions that make one batch; nothing is drawn.

    Args:
        policy: on its device.
        questions: at least one.
        read: makes examples.
        ways: names of `WAYS`.
        choosing: what counts.
        length: tokens that are written at most; None is as many as the student can.

    Returns:
        Way -> a text a question.

    Raises:
        ConfigError: a policy that cannot be asked.
    """
    student = policy.student
    device = next(student.parameters()).device
    seen = collate([read(question) for question in questions])
    blind = replace(seen, images=torch.full_like(seen.images, 128))
    student.spoken(seen)
    out: dict[WayName, list[str]] = {}
    for name in ways:
        way = WAYS[name]
        batch = student.prepare(blind if way.grey else seen).to(device)
        half = torch.autocast(device.type, torch.bfloat16, enabled=policy.config.dtype == "bfloat16")
        with half, zeroed_latents(student) if way.zeroed else nullcontext():
            out[name] = _answers(student, batch, allow_table(way.stage), choosing, length)
    return out


@torch.no_grad()
def _answers(student: Student, batch: Batch, table: Tensor, choosing: Choosing, length: int | None) -> list[str]:
    assert student.words is not None
    chosen = [i for i, q in enumerate(batch.asked) if q.options and choosing == "likeliest"]
    free = [i for i in range(len(batch)) if i not in chosen]
    out: dict[int, str] = {}
    if free:
        part = _rows(batch, free)
        tokens = student.sample(part, table, temperature=0, length=length).tokens
        out |= zip(free, student.words.decode(tokens), strict=True)
    if chosen:
        pairs = [(i, said(option)) for i in chosen for option in batch.asked[i].options]
        answers = student.words.encode([text for _, text in pairs]).to(batch.images.device)
        scores = student.logp(_rows(batch, [i for i, _ in pairs]), answers, table).sum(1).tolist()
        best: dict[int, float] = {}
        for (i, text), score in zip(pairs, scores, strict=True):
            if score > best.get(i, -float("inf")):
                best[i], out[i] = score, text
    return [out[i] for i in range(len(batch))]


def _rows(batch: Batch, places: Sequence[int]) -> Batch:
    return batch.take(torch.tensor(places, device=batch.images.device), places)
