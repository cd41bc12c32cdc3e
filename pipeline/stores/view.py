"""`targets.view`: every array of a dataset, by references to where its bytes lie already. Nothing is stored twice.

A Zarr v2 hierarchy, as fsspec's `ReferenceFileSystem` reads it, in the Parquet layout of `LazyReferenceMapper`. It is
a pure function of `column.json` and the commit records, and its paths are relative to the dataset:

    targets.view/.zmetadata                        the metadata of all arrays
    targets.view/<column>/<target>/refs.<n>.parq   path, offset, size of some chunks, one row a chunk
    targets.view/<column>/<target>/fill            a chunk of fill, which rows that were not written refer to

A target of more than 4 KiB has a chunk a sample: the bytes behind the `.npy` header of its tar member. A smaller has
a chunk a shard: its file in `targets.zarr`, but for the checksum at its end. No reader of a view sees a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.reference import LazyReferenceMapper
from zarr.abc.buffer import Buffer
from zarr.storage import FsspecStore, MemoryStore

from pipeline.stores.column import zarr_specs
from pipeline.stores.records import columns_of, committed, read_records
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import CHECKSUM, create_array, fill_row, is_sharded
from shards_schema import layout
from shards_schema.commit import CommitRecord
from shards_schema.errors import ConfigError
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import Plan
from shards_schema.specs import TargetSpec
from shards_schema.tables import to_parquet

_TABLE = 1 << 16
"""References of a table, about: those of whole shards."""


def refuse(manifest: ColumnManifest) -> None:
    """Refuse a column of which a view cannot show all: an array with a chunk a sample that is no member of the tar.

    Raises:
        ConfigError: it is named.
    """
    if manifest.column == layout.SAMPLES and (large := _large(manifest)):
        raise ConfigError(
            f"zarr: view cannot be: {manifest.column}/{large[0].name} has more than 4 KiB a sample and is in no tar; "
            "take zarr: true or false, or fewer frames"
        )


def write(volume: Volume, plan: Plan) -> None:
    """The view of all columns whose every shard is committed, from their records; its metadata last."""
    shards, size = plan.shards, plan.config.shard_size
    whole = [column for column in columns_of(volume) if committed(volume, column) == [*range(shards)]]
    manifests = []
    for column in whole:
        path = layout.column_json(column)
        manifests.append(manifest := ColumnManifest.from_bytes(volume.read(path), volume.path(path)))
        for name, data in fills(manifest).items():
            volume.put(name, data)
        for name, table in tables(manifest, shards, size, read_records(volume, column, range(shards))):
            volume.put(name, to_parquet(table))
    volume.put(layout.VIEW_METADATA, metadata(manifests, shards, size))


def metadata(manifests: Sequence[ColumnManifest], shards: int, shard_size: int) -> bytes:
    """`targets.view/.zmetadata`."""
    made: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(made), zarr_format=2)
    for manifest in sorted(manifests, key=lambda m: m.column):
        group = root.create_group(manifest.column)
        for spec in zarr_specs(manifest, True):
            create_array(group, spec, shards, shard_size, view=True)
    documents = {path: json.loads(document.to_bytes()) for path, document in sorted(made.items())}
    said = {"zarr_consolidated_format": 1, "record_size": _table_size(shard_size), "metadata": documents}
    return json.dumps(said, indent=1).encode()


def fills(manifest: ColumnManifest) -> dict[str, bytes]:
    """Path -> a chunk of fill, of each target that has a chunk a sample."""
    return {layout.view_fill(manifest.column, spec.name): fill_row(spec) for spec in _large(manifest)}


def tables(
    manifest: ColumnManifest, shards: int, shard_size: int, records: Iterable[CommitRecord]
) -> Iterator[tuple[str, pa.Table]]:
    """Path -> references, table by table; the records of some shards are in memory.

    Args:
        manifest: of the column.
        shards: of the plan.
        shard_size: rows of a shard.
        records: of every shard, in order; read once.
    """
    column, size = manifest.column, _table_size(shard_size)
    large, small = _large(manifest), zarr_specs(manifest, "view")
    files: dict[str, list[tuple[str, int]]] = {spec.name: [] for spec in small}
    for number, group in groupby(records, key=lambda record: record.shard * shard_size // size):
        some = list(group)
        for record in some:
            for spec in small:
                path = layout.zarr_chunk(column, spec.name, record.shard, 1 + len(spec.shape))
                files[spec.name].append((path, record.files[path].size - CHECKSUM))
        first = number * size
        rows = [np.array(record.rows, np.int64) - first for record in some]
        for spec in large:
            chunk = len(fill_row(spec))
            paths = np.zeros(min(size, shards * shard_size - first), np.int32)
            offsets = np.zeros(len(paths), np.int64)
            for i, record in enumerate(some):
                paths[rows[i]] = 1 + i
                offsets[rows[i]] = [m.offset + m.size - chunk for m in record.members.get(f"{spec.name}.npy", ())]
            names = [layout.view_fill(column, spec.name), *(layout.tar(column, record.shard) for record in some)]
            named = pa.DictionaryArray.from_arrays(pa.array(paths), pa.array(names))
            yield layout.view_table(column, spec.name, number), _table(named, offsets, np.full(len(paths), chunk))
    for name, chunks in files.items():
        for number, start in enumerate(range(0, len(chunks), size)):
            names_, sizes = zip(*chunks[start : start + size], strict=True)
            zeros = np.zeros(len(sizes), np.int64)
            yield layout.view_table(column, name, number), _table(pa.array(names_), zeros, np.array(sizes))


def opened(url: str) -> zarr.Group:
    """The view of a dataset, read-only, as zarr-python reads it."""
    files, root = fsspec.core.url_to_fs(url)
    references = fsspec.filesystem(
        "reference",
        fo=LazyReferenceMapper(f"{root}/{layout.VIEW}", fs=files, engine="pyarrow"),
        fs=DirFileSystem(root, fs=AsyncFileSystemWrapper(files, asynchronous=True), asynchronous=True),
        asynchronous=True,
    )
    return zarr.open_group(FsspecStore(references, read_only=True, path=""), mode="r", zarr_format=2)


def _large(manifest: ColumnManifest) -> list[TargetSpec]:
    """The targets that have a chunk a sample."""
    return [spec for spec in zarr_specs(manifest, True) if is_sharded(spec)]


def _table_size(shard_size: int) -> int:
    return shard_size * max(1, _TABLE // shard_size)


def _table(paths: Any, offsets: Any, sizes: Any) -> pa.Table:
    plain = paths if pa.types.is_dictionary(paths.type) else paths.dictionary_encode()
    return pa.table({"path": plain, "offset": offsets, "size": sizes})
