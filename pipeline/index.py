"""`index.parquet` and `quarantine.parquet`: what the commit records say, as tables.

A pure function of the records: safe to rebuild at any time, and never the truth (a record is). Sorted, so that the
same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.plan import Plan
from pipeline.stores.volume import Volume
from pipeline.tables import to_parquet
from shards_schema import layout
from shards_schema.commit import CommitRecord

INDEX_SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("column", pa.dictionary(pa.int32(), pa.string())),
        ("member", pa.dictionary(pa.int32(), pa.string())),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
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


def write(volume: Volume, records: Sequence[CommitRecord], plan: Plan) -> None:
    """Write both tables."""
    volume.put(layout.INDEX, to_parquet(index_table(records)))
    volume.put(layout.QUARANTINE, to_parquet(quarantine_table(records, plan)))


def index_table(records: Sequence[CommitRecord]) -> pa.Table:
    """See `INDEX_SCHEMA`; sorted by column, shard, member, row."""
    columns: list[list[object]] = [[] for _ in INDEX_SCHEMA]
    for record in sorted(records, key=lambda r: (r.column, r.shard)):
        for member, places in sorted(record.members.items()):
            n = len(places)
            parts: tuple[Sequence[object], ...] = (
                record.tokens,
                [record.column] * n,
                [member] * n,
                [record.shard] * n,
                record.rows,
                [offset for offset, _ in places],
                [size for _, size in places],
            )
            for column, part in zip(columns, parts, strict=True):
                column.extend(part)
    return _table(columns, INDEX_SCHEMA)


def quarantine_table(records: Sequence[CommitRecord], plan: Plan) -> pa.Table:
    """See `QUARANTINE_SCHEMA`; sorted by column and row."""
    logs = dict(zip(plan.table["row"].to_pylist(), plan.table["log"].to_pylist(), strict=True))
    rows = [
        (q.token, logs[q.row], record.column, record.shard, q.row, q.code, q.reason)
        for record in sorted(records, key=lambda r: (r.column, r.shard))
        for q in record.quarantined
    ]
    return _table([list(c) for c in zip(*rows, strict=True)] or [[] for _ in QUARANTINE_SCHEMA], QUARANTINE_SCHEMA)


def _table(columns: list[list[object]], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
