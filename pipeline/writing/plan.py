"""The plan: which scene goes into which row of which shard, fixed before any work.

A pure function of the scene list, the seed and the shard size. The scenes of a log stay together, in time order,
because their windows share frames and a worker that has the whole run decodes each JPEG once; a log with more scenes
than a shard holds is cut into equal pieces. The pieces are dealt in the order of a seeded hash (so that a shard mixes
logs, which shuffling readers need) to the fullest open shard that still has room, and what little room is left over
stays empty: every shard owns `shard_size` rows of the Zarr arrays, and row = shard * shard_size + place.

Ten million scenes are planned in one process, so scenes are columns (Arrow, NumPy) throughout and Python sees only
pieces and shards: `docs/results/scale.md` has the figures.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards_schema.errors import ConfigError
from shards_schema.plan import SCHEMA, Plan, PlanConfig, SceneRef

REFS_SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("log", pa.dictionary(pa.int32(), pa.string())),
        ("timestamp", pa.int64()),
        ("start", pa.int32()),
    ]
)
"""Scenes to be planned, in any order: the fields of a `SceneRef`, 35 bytes a scene instead of some 200."""

_CHUNK = 1 << 18
"""Scenes that stand in Python objects, or in text to be hashed, at once."""


def refs_table(refs: Iterable[SceneRef]) -> pa.Table:
    """Scenes as columns, see `REFS_SCHEMA`; `refs` may be a generator."""
    batches, rest = [], iter(refs)
    while chunk := list(islice(rest, _CHUNK)):
        columns = [
            pa.array([r.token for r in chunk], pa.string()),
            pa.array([r.log for r in chunk], pa.string()).dictionary_encode(),
            pa.array([r.timestamp for r in chunk], pa.int64()),
            pa.array([r.start for r in chunk], pa.int32()),
        ]
        batches.append(pa.record_batch(columns, schema=REFS_SCHEMA))
    return pa.Table.from_batches(batches, REFS_SCHEMA)


def make_plan(refs: Iterable[SceneRef] | pa.Table, config: PlanConfig) -> Plan:
    """Deal scenes to shards.

    Args:
        refs: the scenes, in any order; a table has `REFS_SCHEMA`.

    Raises:
        ConfigError: there are no scenes, or a token stands twice.
    """
    table = refs if isinstance(refs, pa.Table) else refs_table(refs)
    if not table.num_rows:
        raise ConfigError("no scenes to plan: look at source.root, source.split and source.filter")
    _refuse_twins(table["token"])
    table, starts = _in_order(table)
    pieces = _pieces(starts, table.num_rows, config.shard_size)
    logs = table["log"].take(pieces[:, 0]).cast(pa.string()).to_pylist()
    tokens = table["token"].take(pieces[:, 0]).to_pylist()
    names = (f"{config.seed}:{log}:{token}".encode() for log, token in zip(logs, tokens, strict=True))
    dealt = [i for _, i in sorted((hashlib.sha256(name).digest(), i) for i, name in enumerate(names))]
    pieces = pieces[dealt]
    sizes = pieces[:, 1]
    shard, place = _deal(sizes.tolist(), config.shard_size)
    by_row = np.lexsort((place, shard))  # the pieces, in row order
    sizes, shard, place = sizes[by_row], shard[by_row], place[by_row]
    within = np.arange(table.num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shards = np.repeat(shard, sizes)
    rows = shards * config.shard_size + np.repeat(place, sizes) + within
    table = _take(table, np.repeat(pieces[by_row, 0], sizes) + within)
    table = pa.table(
        [
            table["token"],
            table["log"].cast(pa.string()),
            table["timestamp"],
            pa.array(shards, pa.int32()),
            pa.array(rows, pa.int64()),
            table["start"],
        ],
        schema=SCHEMA,
    )
    return Plan.of(table, config)


def extended(plan: Plan, refs: pa.Table) -> Plan:
    """More scenes, in shards and rows of their own behind those of `plan`, of which nothing is touched.

    Args:
        plan: what there is.
        refs: scenes that it lacks, see `REFS_SCHEMA`.

    Returns:
        Their part alone, numbered on; `joined` puts it behind `plan`.
    """
    more = make_plan(refs, plan.config).table
    shard = pc.add(more["shard"], pa.scalar(plan.shards, pa.int32()))
    row = pc.add(more["row"], plan.shards * plan.config.shard_size)
    table = pa.table([more["token"], more["log"], more["timestamp"], shard, row, more["start"]], schema=SCHEMA)
    return Plan.of(table, plan.config)


def compared(plan: Plan, refs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Scenes of the plan that are not among `refs`, and those of `refs` that are not in the plan, as `REFS_SCHEMA`."""
    names = REFS_SCHEMA.names
    planned, found = (t.select(names).set_column(1, "log", t["log"].cast(pa.string())) for t in (plan.table, refs))
    gone, new = (a.join(b, names, join_type="left anti") for a, b in ((planned, found), (found, planned)))
    return gone.select(names).cast(REFS_SCHEMA), new.select(names).cast(REFS_SCHEMA)


def _refuse_twins(tokens: pa.ChunkedArray) -> None:
    """Tokens are compared by 64 bits of a hash, and as themselves only where those are equal: a set of ten million
    strings would be the largest thing in the driver."""
    hashes = np.empty(len(tokens), np.int64)
    for first in range(0, len(tokens), _CHUNK):
        texts = tokens.slice(first, _CHUNK).to_pylist()
        hashes[first : first + _CHUNK] = np.fromiter(map(hash, texts), np.int64, len(texts))
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    suspects = tokens.take(np.unique(np.concatenate([order[equal], order[equal + 1]]))).to_pylist()
    seen: set[str] = set()
    for token in suspects:
        if token in seen:
            raise ConfigError(f"token {token} stands for two scenes; tokens name samples and must be unique")
        seen.add(token)


def _in_order(table: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The scenes by log, then time, token and start; and where each log begins."""
    table = table.unify_dictionaries().combine_chunks()
    log = table["log"].combine_chunks()
    log = log.chunk(0) if isinstance(log, pa.ChunkedArray) else log
    rank = np.empty(len(log.dictionary), np.int32)
    rank[pc.sort_indices(log.dictionary).to_numpy()] = np.arange(len(rank), dtype=np.int32)
    ranks = rank[log.indices.to_numpy()]
    keys = pa.table([pa.array(ranks), table["timestamp"], table["token"], table["start"]], ["r", "t", "k", "s"])
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]).to_numpy()
    sorted_ranks = ranks[order]
    starts = np.flatnonzero(np.diff(sorted_ranks, prepend=-1))
    return _take(table, order), starts


def _take(table: pa.Table, rows: NDArray[Any]) -> pa.Table:
    return table.take(pa.array(rows))


def _pieces(starts: NDArray[np.int64], end: int, size: int) -> NDArray[np.int64]:
    """The scenes of each log, cut into the fewest equal pieces that fit into a shard, as [P, 2]: first scene, count."""
    lengths = np.diff(starts, append=end)
    counts = -(-lengths // size)
    log = np.repeat(np.arange(len(starts)), counts)
    i = np.arange(len(log)) - np.repeat(np.cumsum(counts) - counts, counts)
    first, last = lengths[log] * i // counts[log], lengths[log] * (i + 1) // counts[log]
    return np.stack([starts[log] + first, last - first], axis=1)


def _deal(pieces: Sequence[int], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Best fit: each piece goes to the open shard with the least room that is enough, the oldest of equals.

    Shards are held by room left; a bit mask of the rooms that occur finds the best one without a search.

    Args:
        pieces: their lengths, in the order in which they are dealt.

    Returns:
        Shard and place in it of each piece.
    """
    shards = 0
    shard, place = np.empty(len(pieces), np.int64), np.empty(len(pieces), np.int64)
    by_room: defaultdict[int, deque[int]] = defaultdict(deque)
    rooms = 0
    for i, length in enumerate(pieces):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].popleft()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            number, room = shards, size
            shards += 1
        shard[i], place[i] = number, size - room
        left = room - length
        if left:
            by_room[left].append(number)
            rooms |= 1 << left
    return shard, place
