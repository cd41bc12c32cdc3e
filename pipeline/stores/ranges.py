"""Byte ranges of committed files: read or memory-mapped on a local disk, range requests or a local cache for any other.

A file is held against its commit record when it is first touched: size always (local), sha256 on demand. So a file
that is gone or cut is an error that names shard and file; whether the bytes of a range are those of the member that was
committed, the caller can tell by its checksum. A range is first opened, and then taken in the way that its user wants:
copied to where it will be used, or seen as it lies. A reader has at most `max_open` descriptors, and one for each
thread that reads just now, however many ranges and views are waiting: a range whose file was let go opens it again, and
a map needs no descriptor. (A file that is cut after it was mapped kills the process that looks at it, as with every
memory map; committed files are never edited.)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import operator
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.stores import positioned
from pipeline.stores.cache import RESTORE, CacheConfig, FileCache, Wanted
from pipeline.stores.disk import told_of_read
from pipeline.stores.volume import Buffer, Volume
from shards_schema.commit import FileDigest
from shards_schema.errors import DatasetError, DigestError, MissingFileError, StoreError

_BLOCK = 1 << 22
_LARGE = 1 << 16
"""Bytes of a range for which a question is cheaper than the hint."""

_size = operator.attrgetter("size")


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file that a commit record names: its shard, its path in the dataset, and what it must be."""

    shard: int
    path: str
    digest: FileDigest


class ByteRange(NamedTuple):
    """The bytes [start, start + size) of a file."""

    file: CommittedFile
    start: int
    size: int


class Span(Protocol):
    """The bytes of one range, found and not read yet; however they are taken, they may have changed by then."""

    size: int

    def first(self, count: int) -> bytes:
        """At most so many of the first bytes."""

    def into(self, target: NDArray[np.uint8], start: int) -> None:
        """Copy the bytes from `start` on into a contiguous array, which they must fill exactly."""

    def copy(self) -> bytes:
        """All of them, in memory of their own."""

    def view(self) -> Buffer:
        """All of them as they lie, read-only: of a local file a part of its map, with no copy."""


class _File:
    """A local file, open until nobody has this any more, and mapped when somebody wants to see it as it lies.

    Its reader has it, and the calls under way: whoever else kept it would keep a descriptor.
    """

    def __init__(self, descriptor: int, where: str, size: int) -> None:
        self.descriptor, self._where, self._size = descriptor, where, size
        weakref.finalize(self, os.close, descriptor).atexit = False

    def check_size(self) -> None:
        """Whether it is as long as it was committed; raises `DatasetError`."""
        _check_size(self._where, os.fstat(self.descriptor).st_size, self._size)

    def fill(self, target: memoryview, place: int) -> None:
        """Read the bytes from `place` on; raises `DatasetError` where there are not as many."""
        while target:
            try:
                count = positioned.read_into(self.descriptor, target, place)
            except OSError as error:
                raise StoreError(f"{self._where}: could not be read at byte {place}: {error.strerror}") from error
            if not count:
                self.check_size()
                raise DatasetError(f"{self._where}: ends at byte {place}, but has its size; try again")
            target, place = target[count:], place + count

    @cached_property
    def map(self) -> memoryview:
        """All of it, for as long as anybody looks at it."""
        with told_of_read(self._where):
            return positioned.mapped(self.descriptor, self._size)

    def is_cached(self, offset: int) -> bool:
        """See `positioned.is_cached`."""
        return positioned.is_cached(self.descriptor, offset)

    def expect(self, start: int, size: int) -> None:
        """See `positioned.expect`."""
        positioned.expect(self.descriptor, start, size)


class _FileSpan:
    """A range of a local file.

    It is read, not mapped, where it is copied anyway. That spares the page tables, a quarter of the time, and a file
    that is cut under us is an error then, and not the end of the process.
    """

    __slots__ = ("_file", "_reader", "_start", "size")

    def __init__(self, reader: RangeReader, file: CommittedFile, start: int, size: int) -> None:
        self._reader, self._file, self._start, self.size = reader, file, start, size

    def first(self, count: int) -> bytes:
        return self._read(min(count, self.size))

    def into(self, target: NDArray[np.uint8], start: int) -> None:
        self._reader.file(self._file).fill(target.data, self._start + start)

    def copy(self) -> bytes:
        return self._read(self.size)

    def _read(self, size: int) -> bytes:
        file = self._reader.file(self._file)
        with contextlib.suppress(OSError):
            data = positioned.read_at(file.descriptor, size, self._start)
            if len(data) == size:
                return data
        whole = bytearray(size)  # more than one call gives, or a fault, which is met again and told
        file.fill(memoryview(whole), self._start)
        return bytes(whole)

    def view(self) -> Buffer:
        return self._reader.file(self._file).map[self._start : self._start + self.size]


class _Fetched:
    """Bytes that a store or a cache has sent."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def first(self, count: int) -> bytes:
        return self._data[:count]

    def into(self, target: NDArray[np.uint8], start: int) -> None:
        np.copyto(target, np.frombuffer(self._data, np.uint8, offset=start))

    def copy(self) -> bytes:
        return self._data

    def view(self) -> Buffer:
        return self._data


class RangeReader:
    """Reads ranges of the files at `url`. Threads may share one; a forked process needs one of its own.

    Args:
        url: the dataset.
        check_digests: hash each file at its first touch.
        max_open: local files that stay open.
        cache: where files of a remote dataset are kept whole; None is range requests, each time. A local dataset has
            no use for it.
    """

    def __init__(self, url: str, *, check_digests: bool, max_open: int, cache: CacheConfig | None = None) -> None:
        self._volume = Volume(url)
        self._local = self._volume.local_root is not None
        self._cache = FileCache(cache) if cache is not None and not self._local else None
        self._check_digests, self._max_open = check_digests, max(1, max_open)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._checked: set[str] = set()

    def open(self, ranges: Sequence[ByteRange]) -> Sequence[Span]:
        """The ranges, in order: of a local disk to be read, of a store or a cache fetched all at once.

        Raises:
            MissingFileError: a file is not there.
            DigestError: a file's sha256 is not the recorded one (only where digests are checked).
            DatasetError: a file does not have the recorded size.
        """
        if self._local:
            for r in ranges:
                self._file(r.file)
            return [_FileSpan(self, r.file, r.start, r.size) for r in ranges]
        if self._cache is None:
            return [_Fetched(data) for data in self._requested(ranges)]
        out: dict[ByteRange, bytes] = {}
        for file in {r.file.path: r.file for r in ranges}.values():
            own = [r for r in ranges if r.file == file]
            try:
                found = self._cache.read(self._cacheable(file), [(r.start, r.size) for r in own])
            except FileNotFoundError as error:
                raise self._missing(file) from error
            out.update(zip(own, self._requested(own) if found is None else found, strict=True))
        return [_Fetched(out[r]) for r in ranges]

    def _requested(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        for file in {r.file.path: r.file for r in ranges}.values():
            self._check_remote(file)
        found = self._volume.read_ranges([(r.file.path, r.start, r.start + r.size) for r in ranges])
        out: list[bytes] = []
        for data, range_ in zip(found, ranges, strict=True):
            if isinstance(data, Exception) or len(data) != range_.size:
                raise self._remote_fault(range_.file, data, range_.size)
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
                raise self._remote_fault(file, data, end - start)
            return data

        return Wanted(file.digest, self._where(file), fetch)

    def expect(self, ranges: Sequence[ByteRange]) -> None:
        """Begin to read ranges of local files into the page cache, and do not wait; raises what `open` would.

        The kernel looks up every page of what it is told to expect, half as much work as to copy them. So where the
        middle of the largest range is there (its ends may have come with a neighbour), all are taken to be there: give
        ranges that are read together, such as those of one sample.
        """
        if not self._local or not ranges:
            return
        largest = max(ranges, key=_size)
        if largest.size >= _LARGE and self._file(largest.file).is_cached(largest.start + largest.size // 2):
            return
        for r in ranges:
            self._file(r.file).expect(r.start, r.size)

    def file(self, file: CommittedFile) -> _File:
        """A local file, for a range of it: still open, or open again. To be used and let go of.

        Raises:
            MissingFileError, DigestError, DatasetError, StoreError: see `open`.
        """
        return self._open.get(file.path) or self._file(file)

    def _file(self, file: CommittedFile) -> _File:
        with self._lock:
            if file.path in self._open:
                self._open.move_to_end(file.path)
                return self._open[file.path]
            try:
                with told_of_read(path := self._volume.path(file.path)):
                    descriptor = self._descriptor(path)
            except MissingFileError as error:
                raise self._missing(file) from error
            opened = _File(descriptor, self._where(file), file.digest.size)
            opened.check_size()
            if self._check_digests and file.path not in self._checked:
                self._check_digest(file, hashlib.sha256(opened.map).hexdigest())
            self._open[file.path] = opened
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return opened

    def _descriptor(self, path: str) -> int:
        """Of a file; where the process may have no more of them, in the place of the one that waited longest."""
        while True:
            try:
                return positioned.open_file(path)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self._open.popitem(last=False)

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
            _check_size(self._where(file), size, file.digest.size)
            self._check_digest(file, digest.hexdigest())

    def _remote_fault(self, file: CommittedFile, got: bytes | Exception, size: int) -> Exception:
        """What a failed request means: the file is gone, it was cut, or the store failed us (with its own error).

        A server that knows no ranges (``python -m http.server``) sends the file from its beginning.
        """
        try:
            _check_size(self._where(file), self._volume.size(file.path), file.digest.size)
        except FileNotFoundError:
            return self._missing(file)
        except DatasetError as error:
            return error
        if isinstance(got, Exception):
            return got
        if len(got) > size:
            return DatasetError(
                f"{self._where(file)}: asked for {size} bytes, the server sent {len(got)}: it does not know byte "
                "ranges; copy the dataset to a local disk, or serve it by something that does (nginx, an object store)"
            )
        return DatasetError(f"{self._where(file)}: the store sent {len(got)} bytes of a range of {size}; try again")

    def _check_digest(self, file: CommittedFile, found: str) -> None:
        if found != file.digest.sha256:
            raise DigestError(
                f"{self._where(file)}: sha256 {found}, its commit record says {file.digest.sha256}; the file was "
                f"changed. {RESTORE}"
            )
        self._checked.add(file.path)

    def _missing(self, file: CommittedFile) -> MissingFileError:
        return MissingFileError(f"{self._where(file)} is not there, but its commit record is. {RESTORE}")

    def _where(self, file: CommittedFile) -> str:
        return f"shard {file.shard}, {self._volume.path(file.path)}"


def _check_size(where: str, found: int, committed: int) -> None:
    if found != committed:
        raise DatasetError(
            f"{where}: {found} bytes, its commit record says {committed}; the file was cut or changed. {RESTORE}"
        )
