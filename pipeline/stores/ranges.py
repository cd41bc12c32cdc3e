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

import errno
import hashlib
import operator
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from io import BufferedIOBase
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.stores import positioned
from pipeline.stores.cache import RESTORE, CacheConfig, CommittedFile, FileCache, changed
from pipeline.stores.disk import wrap_read_errors
from pipeline.stores.volume import Buffer, Volume
from shards_schema.errors import DatasetError, MissingFileError

_LARGE = 1 << 16
"""Bytes of a range for which a question is cheaper than the hint."""

_size = operator.attrgetter("size")


class Located(NamedTuple):
    """A member of one sample: its file, its name there, which bytes [offset, offset + size), and their CRC-32C."""

    file: CommittedFile
    name: str
    offset: int
    size: int
    crc32c: int


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

    def __init__(self, descriptor: int, file: CommittedFile) -> None:
        self.descriptor, self._file = descriptor, file
        weakref.finalize(self, os.close, descriptor).atexit = False

    def check_size(self) -> None:
        """Whether it is as long as it was committed; raises `DatasetError`."""
        _check_size(self._file, os.fstat(self.descriptor).st_size)

    def read(self, place: int, size: int) -> bytes:
        """The bytes from `place` on; raises `DatasetError` where there are not as many."""
        try:
            data = positioned.read_at(self.descriptor, size, place)
        except OSError:
            with wrap_read_errors(self._file.where):
                raise
        self._check_end(place + len(data), place + size)
        return data

    def fill(self, target: memoryview, place: int) -> None:
        """The same, into `target`."""
        with wrap_read_errors(self._file.where):
            count = positioned.read_into(self.descriptor, target, place)
        self._check_end(place + count, place + len(target))

    def _check_end(self, found: int, expected: int) -> None:
        if found != expected:
            self.check_size()
            raise DatasetError(f"{self._file.where}: ends at byte {found}, but has its size; try again")

    @cached_property
    def map(self) -> memoryview:
        """All of it, for as long as anybody looks at it."""
        with wrap_read_errors(self._file.where):
            return positioned.mapped(self.descriptor, self._file.digest.size)

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

    def __init__(self, reader: RangeReader, member: Located) -> None:
        self._reader, self._file, self._start, self.size = reader, member.file, member.offset, member.size

    def first(self, count: int) -> bytes:
        return self._reader.file(self._file).read(self._start, min(count, self.size))

    def into(self, target: NDArray[np.uint8], start: int) -> None:
        self._reader.file(self._file).fill(target.data, self._start + start)

    def copy(self) -> bytes:
        return self.first(self.size)

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
        self._cache = FileCache(cache, self._request) if cache is not None and not self._local else None
        self._check_digests, self._max_open = check_digests, max(1, max_open)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._checked: set[str] = set()

    def open(self, members: Sequence[Located]) -> Sequence[Span]:
        """The members, in order: of a local disk to be read, of a store or a cache fetched all at once.

        Raises:
            MissingFileError: a file is not there.
            DigestError: a file's sha256 is not the recorded one (only where digests are checked).
            DatasetError: a file does not have the recorded size.
        """
        if self._local:
            for m in members:
                self._file(m.file)
            return [_FileSpan(self, m) for m in members]
        found = self._cached(members)
        left = [m for m in members if m not in found]
        for file in dict.fromkeys(m.file for m in left):
            self._check_remote(file)
        found.update(zip(left, self._requested([(m.file, m.offset, m.offset + m.size) for m in left]), strict=True))
        return [_Fetched(found[m]) for m in members]

    def _cached(self, members: Sequence[Located]) -> dict[Located, bytes]:
        found: dict[Located, bytes] = {}
        if self._cache is None:
            return found
        for file in dict.fromkeys(m.file for m in members):
            own = [m for m in members if m.file == file]
            try:
                kept = self._cache.read(file, [(m.offset, m.size) for m in own])
            except FileNotFoundError as error:
                raise _missing(file) from error
            if kept is not None:
                found.update(zip(own, kept, strict=True))
        return found

    def _requested(self, ranges: Sequence[tuple[CommittedFile, int, int]]) -> list[bytes]:
        out: list[bytes] = []
        found = self._volume.read_ranges([(file.path, start, end) for file, start, end in ranges])
        for data, (file, start, end) in zip(found, ranges, strict=True):
            if isinstance(data, Exception) or len(data) != end - start:
                raise self._remote_fault(file, data, end - start)
            out.append(data)
        return out

    def _request(self, file: CommittedFile, start: int, end: int) -> bytes:
        return self._requested([(file, start, end)])[0]

    def bring(self, files: Sequence[CommittedFile]) -> None:
        """Begin to fetch files into the cache, in this order, and do not wait; nothing without a cache."""
        if self._cache is not None:
            self._cache.ahead(files)

    def expect(self, members: Sequence[Located]) -> None:
        """Begin to read members of local files into the page cache, and do not wait; raises what `open` would.

        The kernel looks up every page of what it is told to expect, half as much work as to copy them. So where the
        middle of the largest is there (its ends may have come with a neighbour), all are taken to be there: give
        members that are read together, such as those of one sample.
        """
        if not self._local or not members:
            return
        largest = max(members, key=_size)
        if largest.size >= _LARGE and self._file(largest.file).is_cached(largest.offset + largest.size // 2):
            return
        for m in members:
            self._file(m.file).expect(m.offset, m.size)

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
                with wrap_read_errors(path := self._volume.path(file.path)):
                    descriptor = self._descriptor(path)
            except MissingFileError as error:
                raise _missing(file) from error
            opened = _File(descriptor, file)
            opened.check_size()
            if self._check_digests:
                with open(descriptor, "rb", closefd=False) as whole, wrap_read_errors(path):
                    self._check_digest(file, whole)
            self._open[file.path] = opened
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return opened

    def _descriptor(self, path: str) -> int:
        """Of a file; where the process may have no more of them, in the place of the one that waited longest."""
        while True:
            try:
                return os.open(path, positioned.READ)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self._open.popitem(last=False)

    def _check_remote(self, file: CommittedFile) -> None:
        if not self._check_digests:
            return
        with self._lock:
            try:
                with self._volume.open(file.path) as whole:
                    self._check_digest(file, whole)
            except FileNotFoundError as error:
                raise _missing(file) from error

    def _remote_fault(self, file: CommittedFile, got: bytes | Exception, size: int) -> Exception:
        """What a failed request means: the file is gone, it was cut, or the store failed us (with its own error).

        A server that knows no ranges (``python -m http.server``) sends the file from its beginning.
        """
        try:
            _check_size(file, self._volume.size(file.path))
        except FileNotFoundError:
            return _missing(file)
        except DatasetError as error:
            return error
        if isinstance(got, Exception):
            return got
        if len(got) > size:
            return DatasetError(
                f"{file.where}: asked for {size} bytes, the server sent {len(got)}: it does not know byte "
                "ranges; copy the dataset to a local disk, or serve it by something that does (nginx, an object store)"
            )
        return DatasetError(f"{file.where}: the store sent {len(got)} bytes of a range of {size}; try again")

    def _check_digest(self, file: CommittedFile, whole: BufferedIOBase) -> None:
        """Hold a file against its record, once."""
        if file.path in self._checked:
            return
        found = hashlib.file_digest(whole, "sha256").hexdigest()
        _check_size(file, whole.tell())
        if found != file.digest.sha256:
            raise changed(file, found)
        self._checked.add(file.path)


def _missing(file: CommittedFile) -> MissingFileError:
    return MissingFileError(f"{file.where} is not there, but its commit record is. {RESTORE}")


def _check_size(file: CommittedFile, found: int) -> None:
    if found != file.digest.size:
        raise DatasetError(
            f"{file.where}: {found} bytes, its commit record says {file.digest.size}; the file was cut or changed. "
            f"{RESTORE}"
        )
