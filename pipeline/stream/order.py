"""The order of an epoch: a pure function of (seed, epoch, digest of the sample set, mode), whoever reads it.

`none` is plan order. `whole` permutes all samples: for disks, where a sample costs the same wherever it lies. `window`
permutes the shards, and the samples within each window of a few shards: for object stores, where a shard should be
fetched once and let go. Permutations sort by SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014) of a key and the place, in integers only, so that no release of numpy or torch changes an
order. Cost: an argsort an epoch, 8 bytes a sample.

`window` with `lanes` C: the permuted shards are cut into C equal stretches, one a lane, and position p of the order
belongs to lane p mod C. R readers that take every R-th sample, R a divisor of C, then never share a lane: each shard is
read by one of them (those at a cut by two), and the order is the same for every such R.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Mode = Literal["none", "global", "window"]


def key_of(seed: int, epoch: int, digest: str) -> int:
    """64 bits that name the order of one epoch of one sample set."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{digest}".encode()).digest()[:8], "little")


def splitmix(key: int, places: Indices) -> NDArray[np.uint64]:
    """SplitMix64's output number `places` of the generator that starts at `key`: uint64, any shape."""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def none(count: int) -> Indices:
    """Plan order: [count] sample indices."""
    return np.arange(count, dtype=np.int64)


def whole(count: int, key: int) -> Indices:
    """A permutation of all samples: [count]."""
    return np.argsort(splitmix(key, none(count)), kind="stable")


def window(shards: Indices, key: int, *, width: int, lanes: int = 1) -> Indices:
    """Shards permuted, samples permuted within windows of `width` shards, `lanes` stretches read side by side.

    Args:
        shards: the shard of each sample in plan order, not falling.
        key: see `key_of`.
        width: shards a window has (the last of a lane may have fewer).
        lanes: stretches; see the module.

    Returns:
        [count] sample indices, a permutation.
    """
    count = len(shards)
    numbers, dense = np.unique(shards, return_inverse=True)
    turn = np.empty(len(numbers), np.int64)
    turn[np.argsort(splitmix(~key & (1 << 64) - 1, numbers), kind="stable")] = np.arange(len(numbers))
    turns = turn[dense]
    row = np.argsort(turns, kind="stable")  # samples, shard after shard in their new order
    cuts = np.arange(lanes + 1) * count // lanes
    lane = np.searchsorted(cuts, np.arange(count), side="right") - 1
    begins = turns[row[np.minimum(cuts[:-1], count - 1)]] if count else np.zeros(lanes, np.int64)
    frame = (turns[row] - begins[lane]) // width
    row = row[np.lexsort((splitmix(key, row), frame, lane))]  # `lane` does not fall, so it stays as it is
    return row[np.lexsort((lane, np.arange(count) - cuts[lane]))]


def order(mode: Mode, shards: Indices, key: int, *, width: int, lanes: int) -> Indices:
    """The order of an epoch in one of the three modes: [count] indices into the samples in plan order."""
    if mode == "none":
        return none(len(shards))
    return whole(len(shards), key) if mode == "global" else window(shards, key, width=width, lanes=lanes)
