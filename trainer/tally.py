"""What is logged: sums of steps, batches and ranks, kept on the device and read at once when they are due.

Each number that is read makes the host wait for the device, so nothing is read on the way. A tensor is added up in
float64, as Python does with its floats, which gives the same bits. `Tally` is what GRPO logs: sums of each step and
rank, made into means per scene, answer, token or update.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer import distributed

Number = float | Tensor
"""A number, or a scalar on some device."""

COUNTS = ("scenes", "answers", "tokens", "updates")
"""The sums that others are divided by; they are not logged themselves."""

ASKED = "asked/"
"""Before what is of questions; scenes, answers and tokens of questions are counted by themselves."""

_PER = {"spread": "scenes", "dropped": "scenes", "unparsed": "answers", "cut": "answers"} | dict.fromkeys(
    ("kl", "clipped_low", "clipped_high", "ratio", "entropy"), "tokens"
)
"""Number -> what it is a mean over; ``reward/...`` are over answers, all others over updates."""


def add(sums: dict[str, Number], numbers: Mapping[str, Number]) -> None:
    """Add numbers to sums of the same names, in place; tensors without their gradients."""
    for name, value in numbers.items():
        sums[name] = sums.get(name, 0.0) + (value.detach().double() if isinstance(value, Tensor) else value)


def read(numbers: Mapping[str, Number]) -> dict[str, float]:
    """The same as Python's; the device is asked once."""
    there = {name: value.double() for name, value in numbers.items() if isinstance(value, Tensor)}
    values = torch.stack(tuple(there.values())).tolist() if there else []
    found = dict(zip(there, values, strict=True))
    return {name: found[name] if isinstance(value, Tensor) else value for name, value in numbers.items()}


def mean(total: float, count: float) -> float | None:
    """Of a sum of so many; a mean over none is no number."""
    return total / count if count else None


def mean_known(values: Tensor) -> float | None:
    """Of those that are not NaN, whatever the shape; None where there is none."""
    there = values[~values.isnan()]
    return there.mean().item() if len(there) else None


def known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Without those that are None: what is no number has no line, no point and no cell."""
    return {name: value for name, value in numbers.items() if value is not None}


class Tally:
    """Sums of this rank, since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, Number] = {}

    def add(self, numbers: Mapping[str, Number]) -> None:
        """Those of one more step."""
        add(self._sums, numbers)

    def take(self, device: torch.device) -> dict[str, float]:
        """The means over all ranks, and begin anew; every rank calls.

        What was not counted at all (tokens and updates, where every group was dropped) has no mean and is left out.
        """
        sums, self._sums = read(self._sums), {}
        names = sorted({name for part in distributed.gathered(sorted(sums)) for name in part})
        total = distributed.summed({name: sums.get(name, 0.0) for name in names}, device)

        def count(name: str) -> float:
            whose, what = (ASKED, name.removeprefix(ASKED)) if name.startswith(ASKED) else ("", name)
            over = "answers" if what.startswith("reward/") else _PER.get(what)
            return total.get("updates" if over is None else whose + over, 0.0)

        means = {name: mean(value, count(name)) for name, value in total.items()}
        return known({name: value for name, value in means.items() if name.removeprefix(ASKED) not in COUNTS})
