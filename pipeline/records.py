"""What a dataset holds, by its own documents: the columns that were begun, the shards that were committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.commit import CommitRecord


def columns_of(volume: Volume) -> list[str]:
    """The columns that were begun in a dataset, sorted."""
    return [name for name in volume.folders("") if volume.exists(layout.column_json(name))]


def committed(volume: Volume, column: str) -> list[int]:
    """The shards of a column that have a commit record, sorted."""
    return sorted(s for name in volume.names(column) if (s := layout.shard_of_record(name)) is not None)


def read_record(volume: Volume, column: str, shard: int) -> CommitRecord:
    """The commit record of a shard.

    Raises:
        MissingFileError: it was never committed.
        DatasetError: the record is damaged.
    """
    path = layout.record(column, shard)
    return CommitRecord.from_bytes(volume.read(path), volume.path(path))


def read_records(volume: Volume, column: str, shards: Iterable[int], *, threads: int = 16) -> Iterator[CommitRecord]:
    """The commit records of some shards, in the order given; `threads` are asked for at once, and twice as many held.

    Tens of thousands of requests to an object store wait for each other's round trips otherwise, and that many records
    (some 100 kB each as Python objects) do not fit into a driver.

    Raises:
        MissingFileError, DatasetError: see `read_record`.
    """
    waiting: deque[Future[CommitRecord]] = deque()
    with ThreadPoolExecutor(threads, "records") as pool:
        try:
            for shard in shards:
                waiting.append(pool.submit(read_record, volume, column, shard))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
