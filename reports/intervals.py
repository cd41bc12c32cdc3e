"""95 % intervals of means, by Student's t: over seeds, and over scenes of logs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import mean, stdev
from typing import NamedTuple

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_Z = 1.959964


class Interval(NamedTuple):
    """A mean and half of its 95 % interval; `half` is infinite where one value (or log) is all there is."""

    middle: float
    half: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return abs(self.middle) > self.half

    def text(self, scale: float = 1.0, digits: int = 4) -> str:
        """Times `scale`: the mean and the interval's ends, where there is an interval."""
        middle, half = scale * self.middle, scale * self.half
        ends = (
            f"{middle - half:+.{digits}f} .. {middle + half:+.{digits}f}" if math.isfinite(half) else "one value alone"
        )
        return f"{middle:+.{digits}f} ({ends})"

    def __str__(self) -> str:
        return self.text().replace("(", "(95 %: " if math.isfinite(self.half) else "(no interval: ")


def t_95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t: a table up to 9, then the expansion around the normal (error < 1e-3)."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = _Z
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def over(values: Sequence[float]) -> Interval | None:
    """Of independent values: one a seed; None of none."""
    if not values:
        return None
    if len(values) < 2:
        return Interval(mean(values), math.inf)
    return Interval(mean(values), t_95(len(values) - 1) * stdev(values) / math.sqrt(len(values)))


def clustered(values: Sequence[float], groups: Sequence[Hashable]) -> Interval | None:
    """Of values that are alike within a group (scenes of a log): the sandwich estimate, freedom by groups.

    None of none.
    """
    if not values:
        return None
    middle = mean(values)
    sums: dict[Hashable, float] = {}
    for value, group in zip(values, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value - middle
    count = len(sums)
    if count < 2:
        return Interval(middle, math.inf)
    error = math.sqrt(sum(s * s for s in sums.values()) * count / (count - 1)) / len(values)
    return Interval(middle, t_95(count - 1) * error)
