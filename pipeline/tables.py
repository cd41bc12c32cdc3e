"""Arrow tables to Parquet bytes and back: the same rows give the same bytes."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table) -> bytes:
    """`table` as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(data: bytes) -> pa.Table:
    """The table of a Parquet file.

    Raises:
        ArrowInvalid, OSError, ValueError: it is damaged.
    """
    # Into memory of Arrow's own: its threads let go of Python bytes too late, and abort a process that ends then.
    own = pa.BufferOutputStream()
    own.write(data)
    return pq.ParquetFile(pa.BufferReader(own.getvalue())).read()
