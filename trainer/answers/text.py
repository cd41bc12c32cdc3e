"""Trajectories as text: the waypoints written out, ``(1.52,0.03,0.011) ...``.

Over the characters below, one token each, or over a language model's own tokens. An answer that does not parse is told
apart, never repaired.

Legend: B batch, S steps, A tokens, H history steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from trainer.answers.base import Expectation

CHARACTERS = "0123456789.-,() "
"""What text waypoints are written with."""

_NUMBER = r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*"
_WAYPOINT = re.compile(rf"\({_NUMBER},{_NUMBER},{_NUMBER}\)")
_BETWEEN = re.compile(r"\s*,\s*|\s+")
_END = re.compile(r"(?:\s*(?:<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>))*")


def parse_waypoints(text: str, steps: int) -> list[list[float]] | None:
    """The poses (x, y in metres, heading in radians) of a text, or None where it is not exactly `steps` of them.

    ``(1.52,0.03,0.011) (3.04,...``, and what models write for the same: signs, blanks within a point, a comma between
    points, thoughts before (up to ``</think>``), end tokens behind. Nothing else: what else is there is no answer.
    """
    said, place = text.rpartition("</think>")[2].strip(), 0
    poses: list[list[float]] = []
    while (point := _WAYPOINT.match(said, place)) is not None and len(poses) < steps:
        poses.append([float(number) for number in point.groups()])
        place = point.end()
        between = _BETWEEN.match(said, place)
        if len(poses) == steps or between is None:
            break
        place = between.end()
    return poses if len(poses) == steps and _END.fullmatch(said, place) else None


class Written(float):
    """A number to be put into a text by anybody's format: what rounds to zero has no sign ("0.00", not "-0.00")."""

    def __format__(self, spec: str) -> str:
        text = super().__format__(spec)
        return text if re.search("[1-9n]", text) else float.__format__(0.0, spec)


class TextConfig(StrictModel):
    """Text waypoints; `digits` after the point for metres, one more for radians."""

    kind: Literal["text"] = "text"
    digits: int = Field(default=2, ge=0, le=4)


class TextAnswers:
    """See the module, and `base.Answers` for shapes.

    Args:
        steps: S.
        digits: after the point.
        encoder, decoder: of a language model's tokenizer (text -> ids, ids -> text); None: one token a character.
        vocabulary, end: of that tokenizer.
    """

    codebook: Tensor | None = None
    smoothing: Tensor | None = None

    def __init__(
        self,
        steps: int,
        digits: int = 2,
        *,
        encoder: Callable[[str], Sequence[int]] | None = None,
        decoder: Callable[[Sequence[int]], str] | None = None,
        vocabulary: int = len(CHARACTERS) + 1,
        end: int = len(CHARACTERS),
    ) -> None:
        self.steps, self.digits = steps, digits
        self._encode = encoder or (lambda text: [CHARACTERS.index(c) for c in text])
        self._decode = decoder or (lambda ids: "".join(CHARACTERS[i] for i in ids if i < len(CHARACTERS)))
        self.vocabulary = vocabulary
        self.end: int | None = end
        widest = self._text([[-199.9, -199.9, -3.1]] * steps)
        self.length = len(self._encode(widest)) + 1

    def _text(self, poses: Sequence[Sequence[float]]) -> str:
        d = self.digits
        return " ".join(f"({x:z.{d}f},{y:z.{d}f},{h:z.{d + 1}f})" for x, y, h in poses)

    def encode(self, future_BS3: Tensor, status_BH7: Tensor) -> Tensor:
        """Text, the end token, then -1.

        Raises:
            ConfigError: a trajectory that leaves the range the length was made for (200 m).
        """
        out = torch.full((len(future_BS3), self.length), -1, dtype=torch.long)
        for row, poses in zip(out, future_BS3.tolist(), strict=True):
            ids = [*self._encode(self._text(poses)), self.end]
            if len(ids) > self.length:
                raise ConfigError(f"text answer: {len(ids)} tokens, at most {self.length}: {self._text(poses)}")
            row[: len(ids)] = torch.tensor(ids)
        return out.to(future_BS3.device)

    def _parse(self, ids: Sequence[int]) -> list[list[float]] | None:
        """The waypoints of one answer, or None where it is not exactly `steps` of them and an end."""
        if self.end is None or self.end not in ids:
            return None
        return parse_waypoints(self._decode(list(ids)[: list(ids).index(self.end)]), self.steps)

    def decode(self, answers_BA: Tensor, status_BH7: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros where an answer does not parse; poses are as written, also where no car could be."""
        out = torch.zeros(len(answers_BA), self.steps, 3)
        ok = torch.zeros(len(answers_BA), dtype=torch.bool)
        for i, ids in enumerate(answers_BA.tolist()):
            poses = self._parse([t for t in ids if t >= 0])
            if poses is not None:
                out[i], ok[i] = torch.tensor(poses), True
        return out.to(answers_BA.device), ok.to(answers_BA.device)

    def expectation(self, status_BH7: Tensor) -> Expectation | None:
        """None: texts have no mean."""
        return None

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """None: nor a distance."""
        return None

    def state(self) -> dict[str, Any]:
        """Steps and digits; the tokenizer is the model's."""
        return {"kind": "text", "steps": self.steps, "digits": self.digits}
