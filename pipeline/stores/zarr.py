"""Zarr v3 arrays, one plan shard a file, written as a stream by one writer.

Every array has the sample on its first axis and ``shards x shard_size`` rows; row ``shard * shard_size + i`` is the
plan's. Rows that were quarantined, or that no sample uses, read as the fill value: NaN for floats (never a zero that
looks like a feature; bfloat16's too), 0 for integers, "" for text; ``<column>/valid`` tells them apart. The attribute
``encoding`` is there where numbers are codes, and says how values are made of them (`shards_schema.storage`).

Two layouts, both with crc32c, told apart by the array's own metadata:

- a sample of more than 4 KiB: the sharding codec, one inner chunk a sample, so that one sample is one small read:

      | chunk + crc32c | chunk + crc32c | ... | index: (offset, nbytes) uint64 x shard_size | crc32c of the index |

- smaller ones (poses, tokens, flags): one plain chunk of shard_size rows, so that a whole column is a few reads.

zarr-python makes the metadata and the tests hold each file to zarr-python's own, byte for byte; the files are written
here because a shard must not be held in memory three times over, and must pass through our own commit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from pipeline.stores.checksum import crc32c
from pipeline.stores.volume import FileWriter
from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.specs import TEXT, TargetSpec
from shards_schema.storage import BFLOAT16_NAN, rule

ROW_CHUNK_BYTES = 4096
"""Samples up to this size share one chunk a shard."""

CHUNK_BYTES = 1 << 30
"""Of a chunk of many rows, at most."""

CHECKSUM = 4
"""Bytes of the CRC-32C at the end of a chunk."""

_ENTRY = struct.Struct("<QQ")
_NO_ENTRY = b"\xff" * _ENTRY.size
_BLOCK = 1 << 20
"""Bytes of rows or fill that are written at once."""


def is_sharded(spec: TargetSpec) -> bool:
    """Whether each sample is an inner chunk of its own."""
    return spec.dtype != TEXT and _sample_bytes(spec) > ROW_CHUNK_BYTES


def array_documents(column: str, specs: tuple[TargetSpec, ...], shards: int, shard_size: int) -> dict[str, bytes]:
    """The `zarr.json` of the column's group and of each of its arrays, as path -> bytes."""
    made: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(made), path=column)
    for spec in specs:
        create_array(group, spec, shards, shard_size)
    root = f"{layout.ZARR}/zarr.json"  # zarr-python makes it along the way; ours has attributes
    return {path: document for path, document in _documents(made).items() if path != root}


def root_document(attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The `zarr.json` of the root group."""
    made: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(made), attributes=dict(attributes))
    return _documents(made)


def refuse_chunks(column: str, specs: tuple[TargetSpec, ...], shard_size: int) -> None:
    """Refuse a shard size whose chunks of many rows nobody could read: whoever wants one row decodes a whole one.

    Raises:
        ConfigError: with the largest shard size that would do.
    """
    row = {spec.name: 0 if is_sharded(spec) or spec.dtype == TEXT else _sample_bytes(spec) for spec in specs}
    name = max(row, key=row.__getitem__, default="")
    if name and row[name] * shard_size > CHUNK_BYTES:
        raise ConfigError(
            f"plan.shard_size: with {shard_size} rows a chunk of {layout.zarr_array(column, name)} has "
            f"{row[name] * shard_size / 1e9:.1f} GB ({row[name]} bytes a row), and a reader of one row decodes all; "
            f"at most {CHUNK_BYTES // row[name]} rows, or zarr: false"
        )


def create_array(
    group: zarr.Group, spec: TargetSpec, shards: int, shard_size: int, *, view: bool = False
) -> zarr.Array[Any]:
    """The array of a target in an open group: the one place that says how targets lie in Zarr.

    Args:
        group: open; of Zarr v2 for a view.
        spec: of the target.
        shards: of the plan.
        shard_size: rows of a shard.
        view: chunks as `pipeline.stores.view` refers to them: the bare values of a sample or of a shard.
    """
    shape = spec.fixed_shape
    sharded = is_sharded(spec)
    attributes: dict[str, Any] = {"units": spec.unit, "long_name": spec.meaning}
    if (how := rule(spec)) is not None:
        attributes["encoding"] = how
    if view:
        attributes["_ARRAY_DIMENSIONS"] = ["sample", *spec.dims]  # where xarray looks for them in Zarr v2
    return group.create_array(
        spec.name,
        shape=(shards * shard_size, *shape),
        chunks=(1 if sharded else shard_size, *shape),
        shards=(shard_size, *shape) if sharded and not view else None,
        dtype=str if spec.dtype == TEXT else spec.dtype,
        fill_value=_fill(spec),
        compressors=None if view else [Crc32cCodec()],
        dimension_names=None if view else ["sample", *spec.dims],
        attributes=attributes,
    )


def _documents(made: Mapping[str, Buffer]) -> dict[str, bytes]:
    return {f"{layout.ZARR}/{path}": document.to_bytes() for path, document in made.items()}


class ZarrShardWriter:
    """One array's rows of one plan shard, into a file that someone else opened.

    Memory goes by the rows that are written, not by `shard_size`: fill is written in blocks, as it comes.
    """

    def __init__(self, file: FileWriter, spec: TargetSpec, shard_size: int) -> None:
        self._file = file
        self._spec = spec
        self._shard_size = shard_size
        self._sharded = is_sharded(spec)
        self._cells: dict[int, bytes] = {}
        """Slot -> what stands there in the index, or in the chunk of all rows."""

    def add(self, slot: int, value: NDArray[Any] | str) -> None:
        """Write the row `slot` (0 <= slot < shard_size) of the shard; each slot at most once."""
        if self._sharded:
            assert not isinstance(value, str)
            data = np.ascontiguousarray(value).data.cast("B")
            self._cells[slot] = _ENTRY.pack(self._file.position, len(data) + 4)
            self._file.write(data, struct.pack("<I", crc32c(data)))
        else:
            self._cells[slot] = _row(self._spec, value)

    def finish(self) -> None:
        """Write what stands at the end: the index, or the chunk of all rows."""
        block, checksum = bytearray(), 0
        for piece in chain(self._pieces(), [b""]):
            block += piece
            if len(block) >= _BLOCK or not piece:
                self._file.write(data := bytes(block))
                checksum = crc32c(data, checksum) if data else checksum
                block.clear()
        self._file.write(struct.pack("<I", checksum))

    def _pieces(self) -> Iterator[bytes]:
        fill = _NO_ENTRY if self._sharded else fill_row(self._spec)
        most = max(1, _BLOCK // len(fill))
        if self._spec.dtype == TEXT:
            yield struct.pack("<I", self._shard_size)  # as VLenUTF8 begins
        end = 0
        for slot in (*sorted(self._cells), self._shard_size):
            while end < slot:
                some = min(slot - end, most)
                yield fill * some
                end += some
            if slot in self._cells:
                yield self._cells[slot]
                end = slot + 1


def fill_row(spec: TargetSpec) -> bytes:
    """A row that was not written, as it stands in a chunk of many."""
    return _row(spec, _fill(spec))


def _row(spec: TargetSpec, value: Any) -> bytes:
    """A row as it stands in a chunk of many."""
    if spec.dtype == TEXT:
        text = str(value).encode()
        return struct.pack("<I", len(text)) + text
    return np.broadcast_to(np.asarray(value, dtype=spec.dtype), spec.fixed_shape).tobytes()


def _fill(spec: TargetSpec) -> Any:
    if spec.dtype == TEXT:
        return ""
    if spec.encoding == "bfloat16":
        return BFLOAT16_NAN
    return np.nan if np.dtype(spec.dtype).kind == "f" else 0


def _sample_bytes(spec: TargetSpec) -> int:
    return int(np.prod(spec.fixed_shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
