"""What a dataset holds, by its own documents: the columns that were begun, the shards that were committed."""

from __future__ import annotations

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
