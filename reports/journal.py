"""A training run as people and TensorBoard see it: a bar, lines above it, `log.jsonl`, event files where it is there.

Rank 0 alone has a journal; `follow` runs the loop on every rank.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reports.progress import bar
from trainer import distributed
from trainer.grpo import GRPO
from trainer.sft import SFT

Say = Callable[[Mapping[str, float]], str | None]
"""Numbers of a step -> what is said of them; None: they are not worth a word."""


class Journal:
    """See the module.

    Args:
        out: folder of the run.
        total: steps.
        done: of them, before this process.
        line: that is printed above the bar.
        postfix: of the bar, for numbers that get no line; None leaves it as it is.
    """

    def __init__(self, out: str, total: int, done: int, line: Say, postfix: Say) -> None:
        self._line, self._postfix = line, postfix
        Path(out).mkdir(parents=True, exist_ok=True)
        self._file = open(Path(out) / "log.jsonl", "a")  # noqa: SIM115 (open as long as the run)
        self._bar = bar(total=total, done=done, unit="step")
        self._board = _summary_writer(out)

    def step(self, step: int) -> None:
        """A step is done."""
        self._bar.update(step - self._bar.n)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        line = self._line(numbers)
        if line is not None:
            self._bar.write(f"step {step}: {line}")
        elif (postfix := self._postfix(numbers)) is not None:
            self._bar.set_postfix_str(postfix)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()


def follow(run: SFT | GRPO, line: Say, postfix: Say, on_policy: Callable[[], None] | None = None) -> float:
    """Train to the end, `Journal` included; every rank calls. Gives the seconds that it took."""
    began = time.perf_counter()
    if distributed.rank() > 0:
        run.fit(on_policy=on_policy)
        return time.perf_counter() - began
    book = Journal(run.config.out, run.total, run.step, line, postfix)
    try:
        run.fit(on_step=book.step, on_numbers=book.numbers, on_policy=on_policy)
    finally:
        book.close()
    return time.perf_counter() - began


def log(text: str) -> None:
    """Print a line, on rank 0."""
    if distributed.rank() == 0:
        print(text, flush=True)


def _summary_writer(out: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(f"{out}/tensorboard")
