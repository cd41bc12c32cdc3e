"""Commit records that were taken back, so that their shards are made again; none is ever lost.

    <column>/000003.json  --withdraw-->  logs/withdrawn/<column>/000003.json  --settle-->  .../000003.1.json, .2, ...

A record is withdrawn when its successor's files are ready, in one step, so a shard is committed, or not begun as far as
anybody can see; a run that ends in between leaves one that is done on the normal path. Without a number a record was
withdrawn by a run that is not closed, which does not take back what came after it.
"""

from __future__ import annotations

from contextlib import suppress

from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.errors import MissingFileError

_FOLDER = f"{layout.LOGS}/withdrawn"


def withdraw(volume: Volume, column: str, shard: int) -> None:
    """Take the record of a shard back, if it has one and none of it was taken back since the last `settle`."""
    if not volume.exists(to := layout.withdrawn(column, shard)):
        with suppress(MissingFileError):
            volume.move(layout.record(column, shard), to)


def open_withdrawals(volume: Volume, column: str) -> frozenset[int]:
    """The shards of a column whose records were taken back since the last `settle`."""
    found = map(layout.shard_of_record, volume.names(f"{_FOLDER}/{column}"))
    return frozenset(shard for shard in found if shard is not None)


def latest(volume: Volume, column: str, shard: int) -> str | None:
    """The record of a shard that was taken back last, as a path; None where none was."""
    if volume.exists(path := layout.withdrawn(column, shard)):
        return path
    number = _numbers(volume, column, shard)
    return layout.withdrawn(column, shard, number) if number else None


def settle(volume: Volume, column: str | None = None) -> None:
    """Number what was taken back, of one column or of all: a run ended well, and the next may take back again."""
    for name in volume.folders(_FOLDER) if column is None else [column]:
        for shard in sorted(open_withdrawals(volume, name)):
            number = _numbers(volume, name, shard) + 1
            volume.move(layout.withdrawn(name, shard), layout.withdrawn(name, shard, number))


def _numbers(volume: Volume, column: str, shard: int) -> int:
    """How many records of a shard have a number."""
    number = 0
    while volume.exists(layout.withdrawn(column, shard, number + 1)):
        number += 1
    return number
