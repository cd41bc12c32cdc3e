"""Which committed shards are made again: those that left samples out for what may be otherwise by now.

By default that is what a file's arrival changes: an image that was missing and is there now, a log that could not be
read and was just scanned. A shard whose last record but one left out the same for the same reasons has been tried, and
is not tried twice. Codes that are asked for by name are tried whatever there is, once a run that ends well.

What was left out stands in the commit records. Where every shard is committed, `quarantine.parquet` says it in one file
(the record itself decides); else the records are read, and parsed if they left anything out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.sources.base import Scan
from pipeline.sources.files import Listing
from pipeline.stores.records import read_record
from pipeline.stores.threads import map_ahead
from pipeline.stores.volume import Volume
from pipeline.stores.withdrawn import latest, open_withdrawals, settle
from pipeline.writing.images import missing_image
from shards_schema import layout
from shards_schema.commit import CommitRecord, Quarantined
from shards_schema.errors import DatasetError
from shards_schema.tables import from_parquet

MISSING, UNREADABLE = "image_missing", "log_unreadable"
"""The codes that a file's arrival changes."""
_NOTHING = b'"quarantined":[]'
_THREADS = 16

Pair = tuple[int, str]
"""Shard and column."""


@dataclass(frozen=True, slots=True)
class Again:
    """What is made again, and what was found while looking.

    Attributes:
        pairs: (shard, column).
        samples: of those, how many are quarantined under each code that is tried again.
        known: every code that any committed shard has, with its samples.
    """

    pairs: frozenset[Pair] = frozenset()
    samples: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)


def choose(volume: Volume, scan: Scan, done: Collection[Pair], codes: Sequence[str] | None, *, complete: bool) -> Again:
    """The shards to be made again.

    Args:
        volume: the dataset.
        scan: of its source, just now.
        done: what is committed, of the columns at hand.
        codes: asked for by name; None is the default alone, and none of them nothing at all.
        complete: whether all that is planned is committed.

    Raises:
        DatasetError: a record is damaged.
        StoreError: it cannot be found out what is there.
    """
    if codes is not None and not codes:
        return Again()
    known: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    pairs: set[Pair] = set()
    listing = Listing()
    withdrawn = {column: open_withdrawals(volume, column) for column in {column for _, column in done}}

    def arrived(left_out: Quarantined) -> bool:
        if left_out.code == MISSING and (path := missing_image(left_out.reason)) is not None:
            return path in listing
        return left_out.code == UNREADABLE  # its scenes are in the plan, so the scan has read its log

    for record in _leaving_out(volume, set(done), complete=complete):
        shard, column = record.shard, record.column
        known.update(q.code for q in record.quarantined)
        asked = [q for q in record.quarantined if q.code in (codes or ()) and shard not in withdrawn[column]]
        changed = [q for q in record.quarantined if arrived(q)]
        if changed and _tried(volume, record):
            changed = []
        if not asked and not changed:
            continue
        if shard in withdrawn[column]:
            settle(volume, column)
        pairs.add((shard, column))
        samples.update(q.code for q in record.quarantined if q in asked or q in changed)
    return Again(frozenset(pairs), samples, known)


def _leaving_out(volume: Volume, done: Collection[Pair], *, complete: bool) -> Iterator[CommitRecord]:
    """The records of `done` that left samples out."""
    if complete and volume.exists(layout.QUARANTINE):
        where, data = volume.path(layout.QUARANTINE), volume.read(layout.QUARANTINE)
        try:
            table = from_parquet(data).select(["shard", "column"]).to_pydict()
        except (ValueError, OSError, KeyError) as error:
            raise DatasetError(
                f"{where}: cannot be read ({error}); delete it, and the same command writes it again"
            ) from error
        pairs = sorted({*zip(table["shard"], table["column"], strict=True)} & {*done})
    else:
        pairs = sorted(done)

    def read(pair: Pair) -> CommitRecord | None:
        shard, column = pair
        if _NOTHING in volume.read(layout.record(column, shard)):
            return None
        return read_record(volume, column, shard)

    for record in map_ahead(read, pairs, threads=_THREADS):
        if record is not None and record.quarantined:
            yield record


def _tried(volume: Volume, record: CommitRecord) -> bool:
    """Whether the shard was made again before, and left out the same for the same reasons."""
    path = latest(volume, record.column, record.shard)
    if path is None:
        return False
    return CommitRecord.from_bytes(volume.read(path), volume.path(path)).quarantined == record.quarantined
