"""What GRPO logs: sums of each step and rank, made into means per scene, answer, token or update when they are due."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer import distributed

COUNTS = ("scenes", "answers", "tokens", "updates")
"""The sums that others are divided by; they are not logged themselves."""

_PER = {"spread": "scenes", "dropped": "scenes", "unparsed": "answers"} | dict.fromkeys(
    ("kl", "clipped_low", "clipped_high", "ratio", "entropy"), "tokens"
)
"""Number -> what it is a mean over; ``reward/...`` are over answers, all others over updates."""


def add(sums: dict[str, float], numbers: Mapping[str, float]) -> None:
    """Add numbers to sums of the same names, in place."""
    for name, value in numbers.items():
        sums[name] = sums.get(name, 0.0) + value


class Tally:
    """Sums of this rank, since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def add(self, numbers: Mapping[str, float]) -> None:
        """Those of one more step."""
        add(self._sums, numbers)

    def take(self, device: torch.device) -> dict[str, float]:
        """The means over all ranks, and begin anew; every rank calls.

        What was not counted at all (tokens and updates, where every group was dropped) has no mean and is left out.
        """
        sums, self._sums = self._sums, {}
        names = sorted({name for part in distributed.gathered(sorted(sums)) for name in part})
        total = distributed.summed({name: sums.get(name, 0.0) for name in names}, device)
        out = {}
        for name, value in total.items():
            count = total.get("answers" if name.startswith("reward/") else _PER.get(name, "updates"))
            if name not in COUNTS and count:
                out[name] = value / count
        return out
