"""Statistics of each channel of a target: one pass, in float64, in parts that merge.

A part holds count, mean, sum of squared differences from the mean, minimum and maximum; two parts merge by the update
of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), so a
shard's sums are of use without the samples, and a column's follow from its shards', in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards_schema.specs import TargetSpec
from shards_schema.storage import read_specs


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Of the values of C channels.

    Attributes:
        count: values of each channel.
        mean: float64 [C].
        squares: float64 [C], sum of (value - mean)^2.
        min: float64 [C].
        max: float64 [C].
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation, float64 [C]; 0 where a channel is constant."""
        out: NDArray[np.float64] = np.sqrt(self.squares / self.count)
        return out

    @classmethod
    def of(cls, values: NDArray[Any], axis: int) -> ChannelStatistics:
        """Of one array with its channels on `axis`; finite, at least one value a channel."""
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)
        low, high, mean = rows.min(0), rows.max(0), rows.sum(0) / len(rows)
        rows -= mean
        return cls(len(rows), mean, np.einsum("nc,nc->c", rows, rows), low, high)

    def merged(self, other: ChannelStatistics) -> ChannelStatistics:
        """Of the values of both."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return ChannelStatistics(
            count=count,
            mean=self.mean + delta * (other.count / count),
            squares=self.squares + other.squares + delta**2 * (self.count * other.count / count),
            min=np.minimum(self.min, other.min),
            max=np.maximum(self.max, other.max),
        )


def measured(specs: Sequence[TargetSpec]) -> tuple[TargetSpec, ...]:
    """The targets of a column that have statistics, as they are read: floating, finite, fixed, with a channel axis."""
    return tuple(
        spec
        for spec in read_specs(specs)
        if np.dtype(spec.dtype).kind == "f"
        and spec.finite
        and not spec.ragged
        and spec.channel_axis is not None
        and 0 not in spec.shape
    )
