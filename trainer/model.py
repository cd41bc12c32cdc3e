"""A student in training: with adapters, the teachers' statistics and the losses, as one module that DDP can wrap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.batch import ANSWERS, THOUGHT, Batch
from trainer.constants import sent
from trainer.latents import Adapter, Statistics
from trainer.losses import Alignment, LossWeights, alignment, alignment_known, answer_loss, total
from trainer.segments import allow_table
from trainer.students.base import Student


class SFTModel(nn.Module):
    """Student and adapters. The student is whole without the adapters, which no policy keeps.

    Args:
        student: the policy.
        channels: C of each kind of latents that there are.
        hidden: units of the adapters.
        statistics: of the training split.
    """

    def __init__(
        self, student: Student, channels: Mapping[str, int], hidden: int, statistics: Mapping[str, Statistics]
    ) -> None:
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict({k: Adapter(student.width, channels[k], hidden) for k in channels})
        self.statistics = dict(statistics)

    def forward(
        self, batch: Batch, stage: int, weights: LossWeights, asked: Batch | None = None, asked_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a float32 scalar, and each part of it, detached.

        Args:
            batch: on the model's device, with targets; with ``prepared[ANSWERS]`` where its drives are answers already.
            stage: whose allow table holds.
            weights: of the parts.
            asked: questions, with ``prepared[ANSWERS]``; they go through the student beside the drives.
            asked_weight: what their loss is multiplied by before it is added.

        Returns:
            The loss; ``loss``, ``answer``, ``regression`` (where the answers have one), ``thought`` (where one is
            written), and for each kind of latents ``<kind>_cosine`` and ``<kind>_smooth_l1``; of questions
            ``asked_loss`` and ``asked_answer``.
        """
        loss, logs = self._losses(batch, stage, weights)
        if asked is not None:
            more, parts = self._losses(asked, stage, weights)
            loss = loss + asked_weight * more
            logs |= {"loss": loss, "asked_loss": parts["loss"], "asked_answer": parts["answer"]}
        return loss, {k: v.detach() for k, v in logs.items()}

    def _losses(self, batch: Batch, stage: int, weights: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a batch of drives, or of questions."""
        spoken, answers = self.student.spoken(batch), batch.prepared.get(ANSWERS)
        if answers is None:
            answers = self.student.answers.encode(batch.future, batch.status)
        there = None if spoken.smoothing is None else sent(spoken.smoothing, answers.device)
        out = self.student(batch, answers, allow_table(stage))
        answer = answer_loss(out.logits, answers, there)
        distance = spoken.distance(out.logits, batch.future, batch.status)
        parts = self.align(out.latents, batch)
        said = {"answer": answer} | ({} if distance is None else {"regression": distance})
        if out.thought is not None:
            said["thought"] = answer_loss(out.thought, self.student.thinking(batch).prepared[THOUGHT])
        loss = total(weights, sum(said.values(), torch.zeros_like(answer)), parts.get("wm"), parts.get("geo"))
        logs = {"loss": loss, **said}
        for kind, part in parts.items():
            logs |= {f"{kind}_cosine": part.cosine, f"{kind}_smooth_l1": part.smooth_l1}
        return loss, logs

    def align(self, latents: Mapping[str, Tensor], batch: Batch) -> dict[str, Alignment]:
        """Alignment losses of each kind, against standardised targets; a question's scene may have none."""
        of = alignment_known if batch.asked else alignment
        return {
            kind: of(self.predict(kind, latents[kind]), self.statistics[kind].standardise(batch.targets[kind]))
            for kind in self.adapters
        }

    def predict(self, kind: str, states_BND: Tensor) -> Tensor:
        """Standardised features [B, N, C] of hidden states."""
        out: Tensor = self.adapters[kind](states_BND)
        return out
