"""The closed forms of the stream, without a byte read: orders, the split over ranks and workers, the interleave."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream import order, split
from pipeline.stream.mixture import _BLOCK, interleave, mixed

KEYS = st.integers(0, 2**64 - 1)


@st.composite
def shard_lists(draw: st.DrawFn) -> order.Indices:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    gaps = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    return np.repeat(np.cumsum(gaps), sizes).astype(np.int64)


@given(shard_lists(), KEYS, st.integers(1, 5), st.integers(1, 6), st.sampled_from(["none", "global", "window"]))
def test_every_order_is_a_permutation(
    shards: order.Indices, key: int, width: int, lanes: int, mode: order.Mode
) -> None:
    made = order.order(mode, shards, key, width=width, lanes=lanes)
    assert sorted(made.tolist()) == list(range(len(shards)))
    assert np.array_equal(made, order.order(mode, shards, key, width=width, lanes=lanes))


def test_orders_are_these_for_ever() -> None:
    # Computed from the definition with plain Python integers: a state is good with any release of numpy, torch or ours.
    key = order.key_of(7, 3, "ab" * 32)
    assert key == 16849050551337392438
    assert order.splitmix(0, np.arange(2)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # the paper's generator
    assert order.whole(10, key).tolist() == [7, 4, 8, 0, 3, 2, 1, 5, 9, 6]
    shards = np.repeat(np.arange(4), 3)
    assert order.window(shards, key, width=2, lanes=2).tolist() == [7, 4, 8, 0, 11, 3, 9, 2, 6, 1, 10, 5]


def test_seed_epoch_and_digest_each_change_the_order() -> None:
    orders = [order.whole(100, order.key_of(*k)).tolist() for k in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_a_permutation_is_even() -> None:
    # each of 8 places of each of 8 samples over 4000 seeds: 500 expected, 21 the standard deviation
    counts = Counter((i, s) for k in range(4000) for i, s in enumerate(order.whole(8, order.key_of(k, 0, "")).tolist()))
    assert len(counts) == 64
    assert all(abs(n - 500) < 110 for n in counts.values())


@given(shard_lists(), KEYS, st.integers(1, 4))
def test_a_window_reads_each_shard_once_and_few_at_a_time(shards: order.Indices, key: int, width: int) -> None:
    seen = shards[order.window(shards, key, width=width)].tolist()
    first = {s: seen.index(s) for s in seen}
    last = {s: len(seen) - 1 - seen[::-1].index(s) for s in seen}
    for place in range(len(seen)):
        assert sum(first[s] <= place <= last[s] for s in first) <= width


@given(shard_lists(), KEYS, st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([4, 8]))
def test_readers_of_lanes_share_shards_at_the_cuts_only(
    shards: order.Indices, key: int, width: int, world: int, lanes: int
) -> None:
    made = shards[order.window(shards, key, width=width, lanes=lanes)]
    full = len(shards) // lanes * lanes  # the last, short row of the lanes has no fixed columns
    readers: dict[int, set[int]] = {}
    for rank in range(world):
        for shard in made[rank:full:world].tolist():
            readers.setdefault(shard, set()).add(rank)
    assert sum(len(r) - 1 for r in readers.values()) <= lanes - 1


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["drop", "pad"]))
def test_ranks_and_workers_take_every_position_once(
    left: int, world: int, workers: int, batch: int, uneven: split.Uneven
) -> None:
    start, size = 7, left + 7
    count = split.share(left, world, uneven)
    taken: list[int] = []
    for rank in range(world):
        own = [run for w in range(workers) for run in split.runs(count, batch, w, workers)]
        assert sorted(i for run in own for i in run) == list(range(count))
        one = list(split.runs(count, batch, 0, 1))  # the batches in DataLoader's turn are those of one process
        assert [one[i::workers] for i in range(workers)] == [
            list(split.runs(count, batch, w, workers)) for w in range(workers)
        ]
        for run in own:
            taken += split.positions(run, start=start, rank=rank, world=world, size=size).tolist()
    if uneven == "drop":
        assert sorted(taken) == list(range(start, size - left % world))
    else:
        assert Counter(taken) >= Counter(range(start, size))
        assert len(taken) - left == -left % world


WEIGHTS = st.lists(st.sampled_from([0.1, 0.25, 1 / 3, 1.0, 2.0, 3.7, 100.0]), min_size=1, max_size=4)


@given(WEIGHTS, st.integers(0, 10**9))
def test_an_interleave_leaves_no_gap_and_keeps_proportions(weights: list[float], start: int) -> None:
    parts, places = interleave(np.arange(start, start + 300), weights)
    before, _ = interleave(np.array([start]), weights)
    assert len(before) == 1
    for part, weight in enumerate(weights):
        own = places[parts == part]
        assert np.array_equal(own, np.arange(own[0], own[0] + len(own)) if len(own) else own)
        expected = 300 * weight / sum(weights)
        assert abs(len(own) - expected) <= len(weights)
        if len(own):  # the places are those of the whole sequence: so many of this part came before
            assert abs(own[0] - start * weight / sum(weights)) <= len(weights) + start * 1e-6


@given(st.integers(0, 10**6), KEYS)
def test_mixing_permutes_within_blocks(block: int, key: int) -> None:
    positions = np.arange(block * _BLOCK, (block + 2) * _BLOCK)
    turned = mixed(positions, key)
    for half in (slice(0, _BLOCK), slice(_BLOCK, None)):
        assert sorted(turned[half].tolist()) == positions[half].tolist()
    assert np.array_equal(mixed(positions[5:9], key), turned[5:9])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_no_rank_sees_one_part_only(world: int) -> None:
    weights = [float(world - 1), 1.0]  # unmixed, the last of each `world` positions would be the second part's
    parts, _ = interleave(mixed(np.arange(6400), 5), weights)
    for rank in range(world):
        assert abs(np.mean(parts[rank::world]) - 1 / world) < 0.06
