"""What a dataset holds, by its own documents: the columns that were begun, the shards that were committed.

A seal shows that a record is whole, not who wrote it. So a record is held against the place where it was found, and its
paths, tokens and offsets against each other, before anybody opens a file or cuts a slice by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.stores.threads import map_ahead
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.codecs import seal_of
from shards_schema.commit import CommitRecord
from shards_schema.errors import DatasetError, MissingFileError
from shards_schema.manifests import DatasetManifest


def read_manifest(volume: Volume) -> tuple[DatasetManifest, str]:
    """`dataset.json` and its seal.

    Raises:
        MissingFileError: there is no dataset.
        DatasetError: it is damaged, not ours, or of another schema version.
    """
    where = volume.path(layout.DATASET)
    try:
        data = volume.read(layout.DATASET)
    except MissingFileError as error:
        root = volume.path("").rstrip("/")
        raise MissingFileError(
            f"{where} is not there, so {root} is no dataset; make it with `python -m jobs.teachers CONFIG out={root}`"
        ) from error
    return DatasetManifest.from_bytes(data, where), seal_of(data)


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
        DatasetError: the record is damaged, or is another's.
    """
    path = layout.record(column, shard)
    where = volume.path(path)
    record = CommitRecord.from_bytes(volume.read(path), where)
    if (record.column, record.shard) != (column, shard):
        raise DatasetError(
            f"{where}: is the record of column {record.column!r:.80}, shard {record.shard!r:.20}: files were swapped. "
            "Delete it and run the job again"
        )
    if (fault := _fault(record)) is not None:
        raise DatasetError(f"{where}: {fault}; whoever wrote it, it was not this program")
    return record


def _fault(record: CommitRecord) -> str | None:
    """What no honest record says: members outside the tar, paths out of the dataset, values of other types."""
    if not all(isinstance(text, str) for text in (record.dataset, record.fingerprint)) or not _whole(record.planned):
        return "dataset, fingerprint and planned should be text, text and a count"
    for path, file in record.files.items():
        if ".." in path.split("/") or path.startswith("/") or "\0" in path or "://" in path:
            return f"names the file {path!r:.80}"
        if not _whole(file.size) or not isinstance(file.sha256, str):
            return f"{path!r:.80} should have a size and a sha256, has {file.size!r:.40} and {file.sha256!r:.40}"
    named = (*record.tokens, *(text for q in record.quarantined for text in (q.token, q.code, q.reason)))
    if not all(isinstance(text, str) for text in named) or any(
        "/" in token or "\0" in token for token in record.tokens
    ):
        return "tokens, codes and reasons should be text, and no token a path"
    if not all(_whole(row) for row in (*record.rows, *(q.row for q in record.quarantined))):
        return "rows should be counts"
    tar = record.files.get(layout.tar(record.column, record.shard))
    for name, places in record.members.items():
        if not all(
            _whole(m.offset) and _whole(m.size) and (tar is None or m.offset + m.size <= tar.size) for m in places
        ):
            return f"members {name!r:.80} do not lie within the tar"
        if not all(_whole(m.crc32c) and m.crc32c < 1 << 32 for m in places):
            return f"members {name!r:.80} should have a CRC-32C each, a count below 2^32"
    return None


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def read_records(volume: Volume, column: str, shards: Iterable[int], *, threads: int = 16) -> Iterator[CommitRecord]:
    """The commit records of some shards, in the order given; `threads` are asked for at once, and twice as many held.

    Tens of thousands of requests to an object store wait for each other's round trips otherwise, and that many records
    (some 100 kB each as Python objects) do not fit into a driver.

    Raises:
        MissingFileError, DatasetError: see `read_record`.
    """
    return map_ahead(lambda shard: read_record(volume, column, shard), shards, threads=threads)
