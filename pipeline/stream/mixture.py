"""Several streams as one, in fixed proportions.

Which stream a position belongs to, and which of its samples, is in closed form. Two streams with weights a : b share
q positions as round(q a / (a + b)) and the rest, so every prefix has the right proportions to within one sample; more
than two are split one against the rest, and the rest again. A fixed pattern would meet the ranks' own period (with
2 : 1 and three ranks, one rank would see one stream only), so positions are permuted within blocks first. A stream that
ends starts its next epoch, with that epoch's order; an epoch of the mixture is a number of positions, by default as
many as its streams have samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stream import order
from pipeline.stream.base import Place, Stream
from pipeline.stream.collate import Collate
from pipeline.stream.config import StreamConfig
from pipeline.stream.fetch import Reading
from pipeline.stream.shards import ShardStream
from shards_schema.codecs import digest_of
from shards_schema.errors import ConfigError

_BLOCK = 64
"""Positions that are permuted among each other: enough to break a period, too few to bend the proportions."""
_FINEST = 10**6
"""Weights become fractions with at most this denominator, so that places up to 10**12 are exact in 64 bits."""


def interleave(positions: order.Indices, weights: Sequence[float]) -> tuple[NDArray[np.int64], order.Indices]:
    """Which stream each position of an endless mixture belongs to, and how many of that stream came before it.

    Args:
        positions: not negative.
        weights: positive, one a stream; only their proportions matter.

    Returns:
        stream of each position, and its place in that stream (0, 1, 2, ... with no gap for rising positions).
    """
    part = np.zeros(len(positions), np.int64)
    place = positions.copy()
    still = np.arange(len(positions))
    for number in range(len(weights) - 1):
        share = Fraction(weights[number] / sum(weights[number:])).limit_denominator(_FINEST)
        before, after = _rounded(place[still], share), _rounded(place[still] + 1, share)
        mine = after > before
        place[still] = np.where(mine, before, place[still] - before)
        part[still[mine]] = number
        still = still[~mine]
    part[still] = len(weights) - 1
    return part, place


def _rounded(count: order.Indices, share: Fraction) -> order.Indices:
    """round(count x share) in integers."""
    return (2 * count * share.numerator + share.denominator) // (2 * share.denominator)


def mixed(positions: order.Indices, key: int) -> order.Indices:
    """Positions permuted within blocks of `_BLOCK`."""
    blocks, index = np.unique(positions // _BLOCK, return_inverse=True)
    cells = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
    turned = np.argsort(order.splitmix(key, cells), axis=1, kind="stable")
    return np.asarray(blocks[index] * _BLOCK + turned[index, positions % _BLOCK])


class Mixture(Stream):
    """Weighted streams read as one; samples carry ``dataset``, the number of their stream.

    Args:
        streams: (stream, weight); their own starts, splits and threads are not used. They must yield the same targets
            if batches are to be made of them.
        config: split, batches, threads, and the seed of the interleave; each stream keeps its own order.
        epoch_size: positions of an epoch; None is the number of samples of all streams.
        rank: see `ShardStream`.
        world_size: likewise.

    Raises:
        ConfigError: no streams, one without a weight, or a weight that is not positive.
    """

    def __init__(
        self,
        streams: Sequence[tuple[ShardStream, float]],
        config: StreamConfig | Mapping[str, Any] | None = None,
        *,
        epoch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if any(isinstance(given, Stream) for given in streams):
            raise ConfigError("a mixture takes pairs of a stream and its weight: [(a, 2.0), (b, 1.0)]")
        if not streams or not all(weight > 0 for _, weight in streams):
            raise ConfigError(f"a mixture needs streams with positive weights, got {[w for _, w in streams]}")
        self.streams = tuple(stream for stream, _ in streams)
        self.weights = tuple(float(weight) for _, weight in streams)
        size = sum(stream.size for stream in self.streams) if epoch_size is None else epoch_size
        super().__init__(config, size, rank, world_size)
        orders = [[s.digest, s.config.order_state()] for s in self.streams]
        self._digest = digest_of({"streams": orders, "weights": self.weights, "epoch_size": size})

    def __repr__(self) -> str:
        parts = ", ".join(f"{weight:g} x {s.table!r}" for s, weight in zip(self.streams, self.weights, strict=True))
        return f"Mixture({parts}; {self.size} positions an epoch)"

    @property
    def digest(self) -> str:
        """Of the streams, their orders and weights, and the epoch's size."""
        return self._digest

    @property
    def collate(self) -> Collate:
        """Makes batches; see `Collate`."""
        return self.streams[0].collate

    def locate(self, epoch: int, positions: order.Indices) -> list[Place]:
        """See `Stream.locate`."""
        key = order.key_of(self.config.seed, 0, self.digest)
        parts, places = interleave(mixed(epoch * self.size + positions, key), self.weights)
        found: list[Place] = []
        for part, place in zip(parts.tolist(), places.tolist(), strict=True):
            stream = self.streams[part]
            inner, position = divmod(place, stream.size)
            found.append((part, int(stream.order_of(inner)[position])))
        return found

    def reader(self, *, lazy: bool) -> Reading:
        """See `Stream.reader`."""
        readings = [stream.table.reader(lazy=lazy) for stream in self.streams]

        def begin(places: Sequence[Place]) -> list[tuple[int, list[int], Any]]:
            """For each stream that has a share: its number, which of the samples, and its own reading begun."""
            shares: dict[int, list[int]] = {}
            for i, (part, _) in enumerate(places):
                shares.setdefault(part, []).append(i)
            return [(part, own, readings[part].begin([places[i][1] for i in own])) for part, own in shares.items()]

        def finish(begun: Sequence[tuple[int, list[int], Any]]) -> list[Any]:
            samples: list[Any] = [None] * sum(len(own) for _, own, _ in begun)
            for part, own, share in begun:
                for i, sample in zip(own, readings[part].finish(share), strict=True):
                    samples[i] = {**sample, "dataset": part} if isinstance(sample, dict) else sample
            return samples

        return Reading(begin, finish)

    @property
    def works(self) -> bool:
        """Whether any of its streams does; see `Fetcher.works`."""
        return any(stream.works for stream in self.streams)
