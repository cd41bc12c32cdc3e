"""How near what is stored is to what was computed, and the gate of int8.

Vectors are the features along the channel axis. Two cosines between a vector as computed and as read: the raw one, and
the one after each channel is standardised, since a few large channels can hide the loss of all the others (raw 0.9999
where 127 of 128 channels are gone), and it is standardised features that students are trained on.

The gate looks at each shard before it is committed: int8 is refused where the 1st percentile of either cosine is
under 0.999. It is refused earlier, after the first batch or whenever there are twice as many samples as at the last
look, where that is certain already, were all samples to come without loss. The gate looks at 32 vectors of each sample,
at other places in each, which are kept until the shard is whole (its statistics are needed); a look at all of them, on
a sample of the data, is `jobs.fidelity`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards_schema.errors import SpecError
from shards_schema.statistics import ChannelStatistics

COSINE = 0.999
"""Least 1st percentile of either cosine for int8."""

_KEPT = 32
"""Vectors that are kept of a sample: 34 MB of a shard of 64 samples and 2048 channels."""
_FEWEST = 128
"""Kept vectors of a shard below which their statistics say too little to standardise with."""


def vectors(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """The feature vectors of an array, [N, C], in its dtype."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def cosines(computed_NC: NDArray[np.float32], read_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each pair of vectors, float64 [N]; 1 where both are zero, 0 where one is.

    As 1 - (|y - x|^2 - (|y| - |x|)^2) / (2 |x| |y|), which stays exact where the two are nearly equal.
    """
    x, y = (np.sqrt(_squares(v)) for v in (computed_NC, read_NC))
    both = 2 * x * y
    lost = _squares(read_NC - computed_NC) - (y - x) ** 2
    out: NDArray[np.float64] = np.where(both > 0, 1 - lost / np.where(both > 0, both, 1), (x == y).astype(np.float64))
    return out


def _squares(vectors_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("nc,nc->n", vectors_NC, vectors_NC), np.float64)


def standardised(vectors_NC: NDArray[np.float32], computed: ChannelStatistics) -> NDArray[np.float32]:
    """(x - mean) / std of each channel.

    Args:
        vectors_NC: float32 [N, C], as computed or as read.
        computed: statistics of what was computed, for both: what is read may have lost a channel, and its variance too.
            Its constant channels become 0.
    """
    std = computed.std
    gain = np.where(std > 0, 1 / np.where(std > 0, std, 1), 0)
    return np.asarray((vectors_NC - computed.mean) * gain, np.float32)


class Int8Gate:
    """Measures one int8 target over a shard.

    Args:
        name: of the target, for messages.
        axis: its channels.
    """

    def __init__(self, name: str, axis: int) -> None:
        self._name, self._axis = name, axis
        self._computed: list[NDArray[np.float32]] = []
        self._read: list[NDArray[np.float32]] = []
        self._due = 1

    def add(self, computed: NDArray[Any], read: NDArray[Any]) -> None:
        """One sample."""
        x, y = vectors(computed, self._axis), vectors(read, self._axis)
        kept = min(_KEPT, len(x))
        # evenly spaced, and from another place in each sample, so that every place is looked at in some
        places = (np.arange(kept) * len(x) // kept + len(self._read)) % len(x)
        self._computed.append(x[places].astype(np.float32))
        self._read.append(y[places].astype(np.float32))

    def check_begun(self, where: str, planned: int) -> None:
        """Refuse a shard under way in which int8 has lost too much already; asked after a batch.

        Args:
            where: column and shard, for the message.
            planned: samples that the shard may have in the end.

        Raises:
            SpecError: see `check`.
        """
        if len(self._read) >= self._due:
            self._due = 2 * len(self._read)
            self.check(where, planned)

    def check(self, where: str, planned: int = 0) -> None:
        """Refuse a shard in which int8 lost too much.

        Args:
            where: column and shard, for the message.
            planned: samples of the shard; those that are not there yet count as read without loss.

        Raises:
            SpecError: it did; the figures are named.
        """
        if not self._read:  # no sample was written
            return
        x, y = np.concatenate(self._computed), np.concatenate(self._read)
        lossless = np.ones(len(x) * max(planned - len(self._read), 0) // len(self._read))

        def first_percentile(cosine: NDArray[np.float64]) -> float:
            return float(np.percentile(np.concatenate((cosine, lossless)), 1))

        found = {"cosine": first_percentile(cosines(x, y))}
        if len(x) >= _FEWEST:
            of = ChannelStatistics.of(x, 1)
            found["standardised cosine"] = first_percentile(cosines(standardised(x, of), standardised(y, of)))
        if min(found.values()) < COSINE:
            figures = ", ".join(f"{name} {value:.6f}" for name, value in found.items())
            raise SpecError(
                f"{where}: target {self._name} is not offered as int8: 1st percentile of {figures}, expected at least "
                f"{COSINE} between what was computed and what is read; give it storage float16 or bfloat16, and "
                "another out or column"
            )
