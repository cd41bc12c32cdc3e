"""Byte ranges of committed files: memory-mapped on a local disk, range requests or a local cache for any other store.

A file is held against its commit record when it is first touched: size always (local), sha256 on demand. So a file
that is gone or cut is an error that names shard and file; whether the bytes of a range are those of the member that was
committed, the caller can tell by its checksum. Local ranges are views of the map, with no copy; a
view keeps its map alive, so the oldest of too many maps can be let go at any time. (A file that is cut after it was
mapped kills the process that reads it, as with every memory map; committed files are never edited.)
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.stores.cache import CacheConfig, FileCache, Wanted
from pipeline.stores.volume import Volume
from shards_schema.commit import FileDigest
from shards_schema.errors import DatasetError, DigestError, MissingFileError

_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file that a commit record names: its shard, its path in the dataset, and what it must be."""

    shard: int
    path: str
    digest: FileDigest


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes [start, start + size) of a file."""

    file: CommittedFile
    start: int
    size: int


class RangeReader:
    """Reads ranges of the files at `url`. Threads may share one; a forked process needs one of its own.

    Args:
        url: the dataset.
        check_digests: hash each file at its first touch.
        max_open: local files that stay mapped.
        cache: where files of a remote dataset are kept whole; None is range requests, each time. A local dataset has
            no use for it.
    """

    def __init__(self, url: str, *, check_digests: bool, max_open: int, cache: CacheConfig | None = None) -> None:
        self._volume = Volume(url)
        self._local = self._volume.local_root is not None
        self._cache = FileCache(cache) if cache is not None and not self._local else None
        self._check_digests, self._max_open = check_digests, max(1, max_open)
        self._lock = threading.Lock()
        self._maps: OrderedDict[str, memoryview] = OrderedDict()
        self._checked: set[str] = set()

    def read(self, ranges: Sequence[ByteRange]) -> list[memoryview | bytes]:
        """The bytes of each range, in order.

        Raises:
            MissingFileError: a file is not there.
            DigestError: a file's sha256 is not the recorded one (only where digests are checked).
            DatasetError: a file does not have the recorded size.
        """
        if self._local:
            return [self._map(r.file)[r.start : r.start + r.size] for r in ranges]
        if self._cache is None:
            return self._requested(ranges)
        out: dict[ByteRange, memoryview | bytes] = {}
        for file in {r.file.path: r.file for r in ranges}.values():
            own = [r for r in ranges if r.file == file]
            try:
                found = self._cache.read(self._cacheable(file), [(r.start, r.size) for r in own])
            except FileNotFoundError as error:
                raise self._missing(file) from error
            out.update(zip(own, self._requested(own) if found is None else found, strict=True))
        return [out[r] for r in ranges]

    def _requested(self, ranges: Sequence[ByteRange]) -> list[memoryview | bytes]:
        for file in {r.file.path: r.file for r in ranges}.values():
            self._check_remote(file)
        found = self._volume.read_ranges([(r.file.path, r.start, r.start + r.size) for r in ranges])
        out: list[memoryview | bytes] = []
        for data, range_ in zip(found, ranges, strict=True):
            if isinstance(data, Exception) or len(data) != range_.size:
                raise self._remote_fault(range_.file, data)
            out.append(data)
        return out

    def bring(self, files: Sequence[CommittedFile]) -> None:
        """Begin to fetch files into the cache, in this order, and do not wait; nothing without a cache."""
        if self._cache is not None:
            self._cache.ahead([self._cacheable(file) for file in files])

    def _cacheable(self, file: CommittedFile) -> Wanted:
        def fetch(start: int, end: int) -> bytes:
            (data,) = self._volume.read_ranges([(file.path, start, end)])
            if isinstance(data, Exception) or len(data) != end - start:
                raise self._remote_fault(file, data)
            return data

        return Wanted(file.digest, self._where(file), fetch)

    def expect(self, ranges: Sequence[ByteRange]) -> None:
        """Begin to read ranges of local files into the page cache, and do not wait; raises what `read` would."""
        for r in ranges if self._local else ():
            first = r.start - r.start % mmap.PAGESIZE
            mapped = cast(mmap.mmap, self._map(r.file).obj)
            mapped.madvise(mmap.MADV_WILLNEED, first, r.start + r.size - first)

    def _map(self, file: CommittedFile) -> memoryview:
        with self._lock:
            if file.path in self._maps:
                self._maps.move_to_end(file.path)
                return self._maps[file.path]
            try:
                with open(self._volume.path(file.path), "rb") as opened:
                    self._check_size(file, opened.seek(0, 2))
                    view = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            except FileNotFoundError as error:
                raise self._missing(file) from error
            if self._check_digests and file.path not in self._checked:
                self._check_digest(file, hashlib.sha256(view).hexdigest())
            self._maps[file.path] = view
            while len(self._maps) > self._max_open:
                self._maps.popitem(last=False)
            return view

    def _check_remote(self, file: CommittedFile) -> None:
        if not self._check_digests:
            return
        with self._lock:
            if file.path in self._checked:
                return
            digest, size = hashlib.sha256(), 0
            try:
                with self._volume.open(file.path) as opened:
                    while block := opened.read(_BLOCK):
                        digest.update(block)
                        size += len(block)
            except FileNotFoundError as error:
                raise self._missing(file) from error
            self._check_size(file, size)
            self._check_digest(file, digest.hexdigest())

    def _remote_fault(self, file: CommittedFile, got: bytes | Exception) -> Exception:
        """What a failed request means: the file is gone, it was cut, or the store failed us (with its own error)."""
        try:
            self._check_size(file, self._volume.size(file.path))
        except FileNotFoundError:
            return self._missing(file)
        except DatasetError as error:
            return error
        if isinstance(got, Exception):
            return got
        return DatasetError(f"{self._where(file)}: the store sent {len(got)} bytes of a longer range; try again")

    def _check_size(self, file: CommittedFile, found: int) -> None:
        if found != file.digest.size:
            raise DatasetError(
                f"{self._where(file)}: {found} bytes, its commit record says {file.digest.size}; the file was cut or "
                "changed. Delete the record and run the job again"
            )

    def _check_digest(self, file: CommittedFile, found: str) -> None:
        if found != file.digest.sha256:
            raise DigestError(
                f"{self._where(file)}: sha256 {found}, its commit record says {file.digest.sha256}; the file was "
                "changed. Delete the record and run the job again"
            )
        self._checked.add(file.path)

    def _missing(self, file: CommittedFile) -> MissingFileError:
        return MissingFileError(
            f"{self._where(file)} is not there, but its commit record is. Delete the record and run the job again"
        )

    def _where(self, file: CommittedFile) -> str:
        return f"shard {file.shard}, {self._volume.path(file.path)}"
