"""Does a student obey its mask? Measured on the student itself, by gradients that have to be exactly zero.

`influence` is |d last hidden state of a segment / d input of another segment|, for each pair. Whatever the weights are,
it is zero where `segments.reachable` says that no path leads, and not zero where one does; `check` compares. A path
may lead through others (stage 1: image -> latents -> answer), so a leak past the latents shows only when the answer's
edges to the latents are cut as well: `cut`. After the cut not even pixels may change the answer by one bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shards_schema.errors import ShardsError
from trainer.batch import Batch
from trainer.segments import CONTENT, Segment, attention_mask, is_causal, reachable
from trainer.students.base import Student


class LeakError(ShardsError, AssertionError):
    """A student lets a segment see what its table forbids, or does not see what it allows."""


def cut(table: Tensor) -> Tensor:
    """A copy of the table in which the answer does not see the latents either."""
    out = table.clone()
    out[Segment.ANSWER, [Segment.WM, Segment.GEO]] = False
    return out


def influence(student: Student, batch: Batch, answers_BA: Tensor, table: Tensor, *, masked: bool = True) -> Tensor:
    """The largest absolute gradient of one segment's last states by another's inputs: float64 [5, 5] over (query, key).

    NaN where there is no such segment.

    Args:
        student: not sharded; the mode that it is in is the mode that is measured.
        batch: on its device.
        answers_BA: int64 [B, A].
        table: bool [6, 6], of `allow_table`.
        masked: False: by the student's own causal path, of prompts without padding, whatever the table.
    """
    prompt = student.prompt(batch)
    answer = torch.full_like(answers_BA[:, :-1], int(Segment.ANSWER))
    segments = torch.cat((prompt.segments, answer), 1)
    seen: list[Tensor] = []

    def listen(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0].detach().requires_grad_())
        return (seen[-1], *args[1:])

    handle = student.blocks[0].register_forward_pre_hook(listen)
    try:
        mask = attention_mask(segments, table) if masked else None
        last = student.run(prompt, answers_BA[:, :-1], mask).last
    finally:
        handle.remove()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(last.shape, generator=generator).to(last)
    out = torch.zeros(len(CONTENT), len(CONTENT), dtype=torch.float64)
    for q in CONTENT:
        rows = (segments == q).unsqueeze(-1)
        (gradient,) = torch.autograd.grad((last * direction * rows).sum(), seen[0], retain_graph=True)
        for k in CONTENT:
            columns = (segments == k).unsqueeze(-1)
            there = bool(rows.any() and columns.any())
            out[q, k] = (gradient * columns).abs().max().double() if there else torch.nan
    return out


def faults(measured: Tensor, table: Tensor, layers: int) -> list[str]:
    """What `influence` found against what a table allows in so many layers; empty when the student obeys it."""
    expected = reachable(table, layers)
    return [
        f"{q.name.lower()} <- {k.name.lower()}: gradient {measured[q, k]:.3g}, the mask "
        + ("lets it through" if expected[q, k] else "forbids it")
        for q in CONTENT
        for k in CONTENT
        if not measured[q, k].isnan() and bool(measured[q, k] > 0) != bool(expected[q, k])
    ]


def check(student: Student, batch: Batch, answers_BA: Tensor, table: Tensor) -> None:
    """Refuse a student that does not obey a table, with and without the answer's edges to the latents.

    Raises:
        LeakError: the cells, with the gradients found.
    """
    training = student.training
    student.eval()
    try:
        for given, masked in ((table, True), (cut(table), True), *([(table, False)] if is_causal(table) else [])):
            measured = influence(student, batch, answers_BA, given, masked=masked)
            found = faults(measured, given, len(student.blocks))
            if found:
                raise LeakError(f"{type(student).__name__} does not obey its mask: {'; '.join(found)}")
    finally:
        student.train(training)
