"""Arrow tables to Parquet bytes and back: the same rows give the same bytes, written at once or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1 << 20
"""Rows of a row group: what `to_parquet` gives to one, and what `parquet_parts` holds in memory."""
_COMPRESSION = "zstd"


def to_parquet(table: pa.Table) -> bytes:
    """`table` as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=_COMPRESSION, row_group_size=ROW_GROUP)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class Parts:
    """A Parquet file under way, one row group in memory."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._groups = 0

    def add(self, rows: pa.Table) -> None:
        """Append rows, whose columns can be cast to the schema."""
        self._pending.append(rows)
        self._rows += rows.num_rows
        while self._rows >= ROW_GROUP:
            table = pa.concat_tables(self._pending)
            self._write(table.slice(0, ROW_GROUP))
            self._pending, self._rows = [table.slice(ROW_GROUP)], table.num_rows - ROW_GROUP

    def finish(self) -> None:
        """Write what is left; a table without rows has one row group, as from `to_parquet`."""
        if self._rows or not self._groups:
            plain = self._pending or [self._schema.empty_table()]
            self._write(pa.concat_tables(plain))
        self._pending = []

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(encoded(table, self._schema), row_group_size=ROW_GROUP)
        self._groups += 1


def encoded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` as `schema`, in one chunk; a dictionary has its values in the order in which they first occur."""
    table = table.combine_chunks()
    columns = [
        table[field.name].dictionary_encode().cast(field.type)
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(table[field.name].type)
        else table[field.name].cast(field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


@contextmanager
def parquet_parts(sink: Any, schema: pa.Schema) -> Iterator[Parts]:
    """A Parquet file, written row group by row group to anything that has `write(bytes)`.

    The bytes are those of `to_parquet` where all rows fit into one group; beyond that each group has its own
    dictionaries, and the bytes are still a function of the rows.
    """
    with pq.ParquetWriter(pa.PythonFile(_Sink(sink), mode="w"), schema, compression=_COMPRESSION) as writer:
        parts = Parts(writer, schema)
        yield parts
        parts.finish()


class _Sink:
    """What Arrow wants of a file, around what has only `write`."""

    closed = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def write(self, data: Any) -> int:
        self._inner.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """The owner of the file closes it."""


def from_parquet(data: bytes) -> pa.Table:
    """The table of a Parquet file; each column has one dictionary.

    Raises:
        ArrowInvalid, OSError, ValueError: it is damaged.
    """
    # Into memory of Arrow's own: its threads let go of Python bytes too late, and abort a process that ends then.
    own = pa.BufferOutputStream()
    own.write(data)
    return pq.ParquetFile(pa.BufferReader(own.getvalue())).read().unify_dictionaries()
