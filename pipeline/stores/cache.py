"""Whole files of remote datasets, kept on a local disk that all processes of a node share, up to so many bytes.

    <folder>/<sha256>        a file, whole, its digest checked once: on arrival
    <folder>/<sha256>.part   one on its way; as long as it will be from the start, locked by the process that fetches it
    <folder>/.room           locked while room is made

A file is known by the digest in its commit record, so a changed dataset is never served from here, and two datasets
with equal files share them. Only the rename makes a file count: what a killed process left is a ``.part`` that nobody
locks, and goes when room is next made. `max_bytes` bounds the files and the parts together at every moment, since
parts take their full size under the lock of ``.room``; what was used longest ago goes first. Readers take bytes with
`pread` and keep nothing open, so that what goes is gone. A file that finds no room is not kept, and is read from the
store in ranges.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from pipeline.stores import positioned
from pipeline.stores.disk import is_at
from shards_schema.commit import FileDigest
from shards_schema.errors import ConfigError, DigestError, ShardsError
from shards_schema.inputs.models import StrictModel

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    _LOCKS = False
else:
    _LOCKS = True

RESTORE = (
    "Restore it, or copy it again where this is a copy; what cannot be had again is made anew where its commit record "
    "is deleted and the job run again"
)
"""What to do about a committed file that is not what it was."""

_BLOCK = 1 << 23
_PART, _ROOM = ".part", ".room"


class CacheConfig(StrictModel):
    """Where shards are kept, and how much of them."""

    folder: str = Field(min_length=1)
    """On a local disk; made where it is not there. All processes of a node should name the same one."""
    max_bytes: int = Field(ge=1)
    """Of all files in it."""
    fetchers: int = Field(default=2, ge=1, le=256)
    """Threads of each process that fetch shards ahead."""


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file that a commit record names.

    Attributes:
        shard: of the record.
        path: in the dataset.
        digest: what it must be.
        where: it is, for messages.
    """

    shard: int
    path: str
    digest: FileDigest
    where: str


def changed(file: CommittedFile, found: str) -> DigestError:
    """In place of a file whose sha256 is not the recorded one."""
    return DigestError(
        f"{file.where}: sha256 {found}, its commit record says {file.digest.sha256}; the file was changed. {RESTORE}"
    )


Fetch = Callable[[CommittedFile, int, int], bytes]
"""(file, start, end) -> its bytes [start, end), from the store."""


class FileCache:
    """One process's view of the folder. Threads may share it; a forked process needs one of its own.

    Args:
        config: folder and size.
        fetch: how bytes come from the store.

    Raises:
        ConfigError: the folder cannot be made, or the system has no locks that processes share.
    """

    def __init__(self, config: CacheConfig, fetch: Fetch) -> None:
        if not _LOCKS:
            raise ConfigError("cache: processes share it by fcntl's locks, which this system does not have; give none")
        self._config, self._fetch = config, fetch
        self._folder = Path(config.folder).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache folder {self._folder}: {error.strerror}; give one on a local disk") from error
        self._ahead: queue.SimpleQueue[CommittedFile] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def read(self, wanted: CommittedFile, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Ranges (start, size) of a file, which is fetched first where it is not here.

        Returns:
            None when there is no room for it.

        Raises:
            DigestError: what the store sent is not what was committed.
            StoreError, FileNotFoundError: from `fetch`.
        """
        final = self._folder / wanted.digest.sha256
        for _ in range(8):  # another process may make room between our fetch and our open
            try:
                with open(final, "rb", buffering=0) as file:
                    os.utime(file.fileno())
                    found = [positioned.read_at(file.fileno(), size, start) for start, size in ranges]
            except FileNotFoundError:
                if not self._bring(wanted):
                    return None
                continue
            if all(len(data) == size for data, (_, size) in zip(found, ranges, strict=True)):
                return found
            final.unlink(missing_ok=True)  # cut by somebody else, or by a machine that crashed
        return None

    def ahead(self, wanted: Sequence[CommittedFile]) -> None:
        """Fetch files in the background, in this order; one that cannot be had is left to the reader to find out.

        Those that are here count as used now, so that what comes does not push them out.
        """
        with self._lock:
            for one in wanted:
                try:
                    os.utime(self._folder / one.digest.sha256)
                except FileNotFoundError:
                    if one.digest.sha256 not in self._asked:
                        self._asked.add(one.digest.sha256)
                        self._ahead.put(one)
            # daemons: an exit does not wait for a shard, and half of one never counts
            while len(self._threads) < self._config.fetchers:
                self._threads.append(threading.Thread(target=self._serve, name="shard-cache", daemon=True))
                self._threads[-1].start()

    def _serve(self) -> None:
        while True:
            wanted = self._ahead.get()
            with contextlib.suppress(OSError, ShardsError):
                self._bring(wanted)
            with self._lock:
                self._asked.discard(wanted.digest.sha256)

    def _bring(self, wanted: CommittedFile) -> bool:
        """Have the file here; False when there is no room. One process fetches, others wait for it."""
        final = self._folder / wanted.digest.sha256
        while not final.exists():
            with self._part(final) as descriptor:
                if descriptor is None or final.exists():  # who held the lock before us has brought it, or given up
                    continue
                if not self._reserve(descriptor, wanted.digest.size):
                    return False
                self._download(descriptor, wanted)
                os.utime(descriptor)
                with self._room():  # or who counts meanwhile would see it under neither name
                    os.rename(_part_of(final), final)
        return True

    def _download(self, descriptor: int, wanted: CommittedFile) -> None:
        """Fill a part from the store, block by block, and hold its digest against the recorded one."""
        for last in (False, True):  # once more, since a byte may have turned over on the way
            digest, size = hashlib.sha256(), wanted.digest.size
            with open(descriptor, "wb", closefd=False) as part:
                part.seek(0)
                for start in range(0, size, _BLOCK):
                    data = self._fetch(wanted, start, min(start + _BLOCK, size))
                    digest.update(data)
                    part.write(data)
            if digest.hexdigest() == wanted.digest.sha256:
                break
            if last:
                raise changed(wanted, digest.hexdigest())
        getattr(os, "fdatasync", os.fsync)(descriptor)  # a machine that crashes must not leave a name before the bytes

    @contextlib.contextmanager
    def _part(self, final: Path) -> Iterator[int | None]:
        """The part of a file, locked, and gone at the end of the block; None when it was another's until now."""
        path = _part_of(final)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor if is_at(descriptor, path) else None
        finally:
            if is_at(descriptor, path):  # and we hold its lock, so it is nobody else's
                path.unlink()
            os.close(descriptor)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Be the only one that changes how much is here."""
        with open(self._folder / _ROOM, "w") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            yield

    def _reserve(self, descriptor: int, size: int) -> bool:
        """Give a part its full size, having removed what was used longest ago."""
        if size > self._config.max_bytes:
            return False
        with self._room():
            os.ftruncate(descriptor, 0)  # what another left of it
            kept, used = self._held()
            for _, path, freed in sorted(kept):
                if used + size <= self._config.max_bytes:
                    break
                path.unlink(missing_ok=True)
                used -= freed
            if used + size > self._config.max_bytes:
                return False
            try:
                _allocate(descriptor, max(size, 1))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                os.ftruncate(descriptor, 0)
                return False
            return True

    def _held(self) -> tuple[list[tuple[int, Path, int]], int]:
        """(last use, path, size) of each whole file, and the bytes of all files; abandoned parts are removed."""
        kept: list[tuple[int, Path, int]] = []
        used = 0
        for entry in os.scandir(self._folder):
            if entry.name == _ROOM or (entry.name.endswith(_PART) and _abandoned(Path(entry.path))):
                continue
            with contextlib.suppress(FileNotFoundError):  # its process gave it up
                found = entry.stat()
                used += found.st_size
                if not entry.name.endswith(_PART):
                    kept.append((found.st_mtime_ns, Path(entry.path), found.st_size))
        return kept, used


def _allocate(descriptor: int, size: int) -> None:
    """Give an empty file its size: on disk where the system can, else as it is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _part_of(final: Path) -> Path:
    return final.with_name(final.name + _PART)


def _abandoned(path: Path) -> bool:
    """Remove a part that no process holds; whether it was one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(descriptor, path):
            path.unlink()
            return True
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    return False
