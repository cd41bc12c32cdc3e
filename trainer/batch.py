"""A batch: what every student sees, in arrays of fixed shape, with nothing of any model in it.

Legend: B batch, H history steps (0.5 s apart, the last is now), S future steps, N latents, C channels.
Images stay uint8; each student resizes and normalises as its own encoder wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from questions.units import Prompt as Question
from shards_schema.records import COMMANDS


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One sample.

    Attributes:
        token: of the scene.
        images: uint8 [V, 3, h, w], one a view; or `frames` a view, which stand together.
        status: float32 [H, 7]: x, y, heading, velocity x, y, acceleration x, y (m, rad, s; ego axes at step 0).
        command: index into `COMMANDS`, at step 0.
        future: float32 [S, 3]: x, y (m), heading (rad) of the rear axle at 0.5 s, 1 s ..., in its frame at step 0.
        targets: latent kind -> float32 [N, C], as the teacher gave it (not standardised); NaN where a question's
            scene has none.
        question: what is asked about it, instead of how to drive on; then the student is told no status and no command.
        thought: what should be thought in text before the answer (`trainer.thoughts`); "" where nothing is.
        frames: images of each view, in the order of time; the last is of now.
    """

    token: str
    images: NDArray[np.uint8]
    status: NDArray[np.float32]
    command: int
    future: NDArray[np.float32]
    targets: Mapping[str, NDArray[np.float32]]
    question: Question | None = None
    thought: str = ""
    frames: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples, stacked, all tensors on one device; units and frames as in `Example`.

    Attributes:
        tokens: of the B scenes.
        images: uint8 [B, V, 3, h, w].
        status: float32 [B, H, 7].
        command: int64 [B].
        future: float32 [B, S, 3].
        targets: latent kind -> float32 [B, N, C].
        prepared: what was made of it ahead, on the CPU: name -> [B, ...]; a student's own, see `Student.prepare`.
        lengths: of the B prompts, where a student prepared them; known here, so that no device is asked.
        asked: the B questions; none in a batch of drives. No batch has both.
        thoughts: the B thoughts in text to learn; none where there are none.
        frames: of each example.
    """

    tokens: tuple[str, ...]
    images: Tensor
    status: Tensor
    command: Tensor
    future: Tensor
    targets: Mapping[str, Tensor]
    prepared: Mapping[str, Tensor] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    asked: tuple[Question, ...] = ()
    thoughts: tuple[str, ...] = ()
    frames: int = 1

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; asynchronous where the tensors are pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in pinned memory (`DataLoader(pin_memory=True)` calls this)."""
        return self._each(lambda x: x.pin_memory())

    def __getitem__(self, rows: slice) -> Batch:
        return self._each(lambda x: x[rows], range(len(self))[rows])

    def take(self, rows: Tensor, places: Sequence[int]) -> Batch:
        """Some of the examples, in any order.

        Args:
            rows: int64 on the batch's device.
            places: the same numbers here, so that the device is not asked for them.
        """
        return self._each(lambda x: x[rows], places)

    def _each(self, do: Callable[[Tensor], Tensor], places: Sequence[int] | None = None) -> Batch:
        """All tensors changed alike, and by `places` what is not a tensor."""
        changed: dict[str, Any] = {name: do(getattr(self, name)) for name in _TENSORS}
        changed |= {name: {k: do(v) for k, v in getattr(self, name).items()} for name in ("targets", "prepared")}
        if places is not None:
            for name in ("tokens", "lengths", "asked", "thoughts"):
                told = getattr(self, name)
                changed[name] = tuple(told[i] for i in places) if told else ()
        return replace(self, **changed)


_TENSORS = ("images", "status", "command", "future")

ANSWERS = "answers"
"""In `Batch.prepared`: the drives, or what is to be said to the questions, as answers, int64 [B, A]."""
THOUGHT = "thought"
"""In `Batch.prepared`: the thoughts as words, int64 [B, T], padded with -1."""


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples, at least one, of equal shapes and the same kinds of targets: all drives, or all questions."""
    first = examples[0]
    return Batch(
        tokens=tuple(e.token for e in examples),
        images=torch.from_numpy(np.stack([e.images for e in examples])),
        status=torch.from_numpy(np.stack([e.status for e in examples])),
        command=torch.tensor([e.command for e in examples]),
        future=torch.from_numpy(np.stack([e.future for e in examples])),
        targets={k: torch.from_numpy(np.stack([e.targets[k] for e in examples])) for k in first.targets},
        asked=tuple(e.question for e in examples if e.question is not None),
        thoughts=tuple(e.thought for e in examples if e.thought),
        frames=first.frames,
    )


def prompt_text(status_H7: Tensor, command: int) -> str:
    """Ego status and command as a person would write them: the text segment of a language model."""
    now = status_H7[-1].tolist()
    past = " ".join(f"({x:.2f}, {y:.2f}, {h:.3f})" for x, y, h in status_H7[:, :3].tolist())
    return (
        f"Driving command: {COMMANDS[command]}. Velocity ({now[3]:.2f}, {now[4]:.2f}) m/s, "
        f"acceleration ({now[5]:.2f}, {now[6]:.2f}) m/s^2. Poses of the last {len(status_H7)} half seconds "
        f"(x forward, y left, heading): {past}. Plan the next seconds."
    )
