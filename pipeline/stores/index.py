"""`index.parquet` and `quarantine.parquet`: what the commit records say, as tables.

A pure function of the records: safe to rebuild at any time, and never the truth (a record is). Sorted, so that the
same records give the same bytes. `write` takes the records one by one and holds one row group (a million rows, some
60 MB) of the index: a dataset of ten million samples has a hundred million rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np
import pyarrow as pa

from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.commit import CommitRecord
from shards_schema.plan import Plan
from shards_schema.tables import encoded, parquet_parts, to_parquet

INDEX_SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("column", pa.dictionary(pa.int32(), pa.string())),
        ("member", pa.dictionary(pa.int32(), pa.string())),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32c", pa.uint32()),
    ]
)
"""One row a tar member: the bytes of `<token>.<member>` are [offset, offset + size) of `<column>/<shard>.tar`."""

QUARANTINE_SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("log", pa.string()),
        ("column", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("code", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row a (sample, column) that was planned and could not be written."""


_order = attrgetter("column", "shard")


def write(volume: Volume, records: Iterable[CommitRecord], plan: Plan) -> None:
    """Write both tables.

    Args:
        records: a sequence in any order, or an iterator by column and shard, which is read once and not kept.

    Raises:
        ValueError: an iterator is not in that order; nothing is written then.
    """
    quarantined: list[CommitRecord] = []
    last: tuple[str, int] | None = None
    with volume.create(layout.INDEX) as file, parquet_parts(file, INDEX_SCHEMA) as parts:
        for record in sorted(records, key=_order) if isinstance(records, Sequence) else records:
            if last is not None and _order(record) <= last:
                raise ValueError(f"the record of {_order(record)} comes after that of {last}; give them in order")
            last = _order(record)
            if (rows := _rows(record)) is not None:
                parts.add(rows)
            if record.quarantined:
                quarantined.append(record)
    volume.put(layout.QUARANTINE, to_parquet(quarantine_table(quarantined, plan)))


def index_table(records: Sequence[CommitRecord]) -> pa.Table:
    """See `INDEX_SCHEMA`; sorted by column, shard, member, row."""
    tables = [rows for record in sorted(records, key=_order) if (rows := _rows(record)) is not None]
    return encoded(pa.concat_tables(tables), INDEX_SCHEMA) if tables else INDEX_SCHEMA.empty_table()


def _rows(record: CommitRecord) -> pa.Table | None:
    """The rows of one record, with plain strings."""
    members = sorted(record.members.items())
    if not members or not record.tokens:
        return None
    n, all_of = record.written, record.written * len(members)
    places = [m for _, each in members for m in each]
    names = pa.array([name for name, _ in members])
    return pa.table(
        {
            "token": pa.concat_arrays([pa.array(record.tokens, pa.string())] * len(members)),
            "column": pa.repeat(record.column, all_of),
            "member": names.take(pa.array(np.repeat(np.arange(len(members)), n))),
            "shard": pa.repeat(pa.scalar(record.shard, pa.int32()), all_of),
            "row": np.tile(np.array(record.rows, np.int64), len(members)),
            "offset": np.array([m.offset for m in places], np.int64),
            "size": np.array([m.size for m in places], np.int64),
            "crc32c": pa.array([m.crc32c for m in places], pa.uint32()),
        }
    )


def quarantine_table(records: Sequence[CommitRecord], plan: Plan) -> pa.Table:
    """See `QUARANTINE_SCHEMA`; sorted by column and row.

    Raises:
        DatasetError: a row is not in the plan.
    """
    rows = [
        (q.token, record.column, record.shard, q.row, q.code, q.reason)
        for record in sorted(records, key=_order)
        for q in record.quarantined
    ]
    where = plan.places([row[3] for row in rows])
    logs = plan.table["log"].take(pa.array(where)).to_pylist()
    full = [(token, log, *rest) for (token, *rest), log in zip(rows, logs, strict=True)]
    columns = [list(c) for c in zip(*full, strict=True)] or [[] for _ in QUARANTINE_SCHEMA]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, QUARANTINE_SCHEMA, strict=True)]
    return pa.table(arrays, schema=QUARANTINE_SCHEMA)
