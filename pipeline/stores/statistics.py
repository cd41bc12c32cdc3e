"""Channel statistics on disk: sums a shard, and their merger a column, as Parquet.

    <column>/000000.stats.parquet    target, channel, count, mean, squares, min, max    written with the shard
    <column>/statistics.parquet      target, channel, count, mean, std, min, max        merged when a run closes

They are of the values as a reader gets them (after storage), of samples that were written. The second is a pure
function of the first ones in shard order, so that runs that are equal have equal bytes here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.stores.threads import map_ahead
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.codecs import load_npy
from shards_schema.commit import CommitRecord
from shards_schema.errors import DatasetError
from shards_schema.manifests import ColumnManifest
from shards_schema.statistics import ChannelStatistics, measured
from shards_schema.storage import decode, parts
from shards_schema.tables import encoded, from_parquet, to_parquet

_THREADS = 16

_KEYS = [("target", pa.dictionary(pa.int32(), pa.string())), ("channel", pa.int32()), ("count", pa.int64())]
SHARD_SCHEMA = pa.schema([*_KEYS, *((name, pa.float64()) for name in ("mean", "squares", "min", "max"))])
COLUMN_SCHEMA = pa.schema([*_KEYS, *((name, pa.float64()) for name in ("mean", "std", "min", "max"))])

Statistics = dict[str, ChannelStatistics]
"""By target; one without a single sample is absent."""


class Collector:
    """The statistics of a shard under way.

    Args:
        manifest: of the column.
    """

    def __init__(self, manifest: ColumnManifest) -> None:
        self._axes = {spec.name: spec.channel_axis for spec in measured(manifest.targets)}
        self.statistics: Statistics = {}

    def add(self, values: Mapping[str, NDArray[Any]]) -> None:
        """One sample's arrays, as a reader gets them; those of targets without statistics are passed over."""
        for name, axis in self._axes.items():
            assert axis is not None
            merge(self.statistics, {name: ChannelStatistics.of(values[name], axis)})


def merge(into: Statistics, more: Mapping[str, ChannelStatistics]) -> None:
    """Add the statistics of other samples."""
    for name, part in more.items():
        into[name] = into[name].merged(part) if name in into else part


def shard_bytes(statistics: Statistics) -> bytes:
    """`<shard>.stats.parquet`."""
    return to_parquet(_table(statistics, SHARD_SCHEMA))


def column_table(statistics: Statistics) -> pa.Table:
    """`statistics.parquet` as a table."""
    return _table(statistics, COLUMN_SCHEMA)


def read_shard(volume: Volume, column: str, shard: int) -> Statistics:
    """The statistics of a committed shard.

    Raises:
        MissingFileError: it has none.
        DatasetError: the file is damaged.
    """
    path = layout.shard_statistics(column, shard)
    return parse(volume.read(path), volume.path(path))


def parse(data: bytes, where: str) -> Statistics:
    """The statistics of a file of either kind.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        table = from_parquet(data)
        names = table["target"].combine_chunks().to_numpy(zero_copy_only=False)
        values = {name: np.asarray(table[name]) for name in table.column_names[2:]}
    except Exception as error:  # pyarrow raises many kinds; each of them is this fault
        raise DatasetError(f"{where}: cannot be read ({error}); the file is damaged") from error
    out: Statistics = {}
    for name in dict.fromkeys(names.tolist()):
        rows = {key: value[names == name] for key, value in values.items()}
        count = int(rows["count"][0])
        squares = rows["squares"] if "squares" in rows else rows["std"] ** 2 * count
        out[str(name)] = ChannelStatistics(count, rows["mean"], squares, rows["min"], rows["max"])
    return out


def write(volume: Volume, column: str, shards: Iterable[int]) -> None:
    """Merge the statistics of committed shards, in the order given, into `statistics.parquet`; a few are in memory.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    total: Statistics = {}
    for part in map_ahead(lambda shard: read_shard(volume, column, shard), shards, threads=_THREADS):
        merge(total, part)
    volume.put(layout.statistics(column), to_parquet(column_table(total)))


def recomputed(record: CommitRecord, manifest: ColumnManifest, tar: bytes) -> Statistics:
    """The statistics of a shard, from its tar."""
    data = memoryview(tar)
    specs = {spec.name: spec for spec in manifest.targets}
    wanted = [specs[spec.name] for spec in measured(manifest.targets)]
    collector = Collector(manifest)
    for i in range(record.written):
        values = {}
        for spec in wanted:
            places = {part: record.members[f"{part}.npy"][i] for part in parts(spec)}
            stored = {part: load_npy(data[m.offset : m.offset + m.size], part) for part, m in places.items()}
            values[spec.name] = decode(spec, stored)
        collector.add(values)
    return collector.statistics


def agree(a: Statistics, b: Statistics) -> bool:
    """Equal but for the order in which another machine may have added."""

    def near(x: ChannelStatistics, y: ChannelStatistics) -> bool:
        scale = np.abs(x.max) + np.abs(x.min)
        return (
            x.count == y.count
            and np.array_equal(x.min, y.min)
            and np.array_equal(x.max, y.max)
            and bool((np.abs(x.mean - y.mean) <= 1e-12 * scale).all())
            and bool((np.abs(x.squares - y.squares) <= 1e-9 * x.squares + 1e-24 * x.count * scale**2).all())
        )

    return a.keys() == b.keys() and all(len(a[k].mean) == len(b[k].mean) and near(a[k], b[k]) for k in a)


def _table(statistics: Statistics, schema: pa.Schema) -> pa.Table:
    tables = [_rows(name, part, schema) for name, part in statistics.items()]
    return encoded(pa.concat_tables(tables), schema) if tables else schema.empty_table()


def _rows(name: str, part: ChannelStatistics, schema: pa.Schema) -> pa.Table:
    channels = len(part.mean)
    return pa.table(
        {
            "target": pa.repeat(name, channels),
            "channel": np.arange(channels, dtype=np.int32),
            "count": np.full(channels, part.count, np.int64),
            **{field: getattr(part, field) for field in schema.names[3:]},
        }
    )
