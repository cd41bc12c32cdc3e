"""A dataset's root, on a local disk or on any fsspec store, with one promise: a file is whole or it is not there.

Local: written under ``.tmp/``, fsynced, renamed into place, its folder fsynced; a crash leaves nothing but files in
``.tmp/``, which `sweep` removes. Object stores: spooled to local disk, then one upload, which shows when it is
complete, and is made again when it fails (`pipeline.stores.remote`). `create` is the only way to write, so every file
gets its sha256 while its bytes pass; hashing runs in a thread beside the writes (hashlib lets go of the GIL), which
keeps a digested write near the speed of a plain one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.stores.disk import fsync, gone, make_folder, wrap_os_errors, wrap_read_errors
from pipeline.stores.remote import RemoteStore, is_local, store_of
from shards_schema import layout
from shards_schema.commit import FileDigest
from shards_schema.errors import MissingFileError
from shards_schema.inputs.places import place

Buffer = bytes | memoryview
_FLUSH = 1 << 20
"""Bytes gathered before a write call: small members share one, large ones go out alone."""
_IOV_MAX = 512
_SWEEPS = 5

UNDER_WAY = re.compile(r".\.[0-9a-f]{12}\Z")
"""How the name of a file under way ends."""


class FileWriter:
    """A file under way. Buffers must not be changed after they were written.

    Attributes:
        position: bytes written so far.
    """

    def __init__(self, descriptor: int, *, name: str = "a file") -> None:
        self.position = 0
        self._descriptor, self._name = descriptor, name
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._hash = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "sha256")
        self._hashing: Future[None] | None = None

    def write(self, *buffers: Buffer) -> None:
        """Append buffers, in order."""
        for buffer in buffers:
            size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
            self._pending.append(buffer)
            self._pending_bytes += size
            self.position += size
        if self._pending_bytes >= _FLUSH or len(self._pending) >= _IOV_MAX:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if not pending:
            return
        if self._hashing is not None:
            self._hashing.result()  # at most one block of buffers waits to be hashed
        self._hashing = self._hasher.submit(self._update, pending)
        views = [memoryview(buffer).cast("B") for buffer in pending if len(buffer)]
        while views:
            with wrap_os_errors(self._name):
                written = os.writev(self._descriptor, views[:_IOV_MAX])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def _update(self, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            self._hash.update(buffer)

    def finish(self) -> FileDigest:
        """Size and digest of all that was written; the file is not in place yet."""
        self._flush()
        if self._hashing is not None:
            self._hashing.result()
        return FileDigest(self.position, self._hash.hexdigest())

    def close(self) -> None:
        """Stop the hashing thread."""
        self._hasher.shutdown()


class Volume:
    """The root of a dataset. Picklable; paths are relative to the root, with "/".

    A local root is made by `make` or with the first file, and never again: where it is gone after that (also for a
    copy of this volume in another process) every write fails, and makes nothing in its place.

    Args:
        url: a local path, or any URL that fsspec knows (``s3://bucket/run``, ``memory://run``).

    Raises:
        ConfigError: it is no path and no URL, the URL holds credentials, or no library here knows its protocol.
        StoreError: (any method) the store or the disk refused a request, or failed it too often.
    """

    def __init__(self, url: str) -> None:
        url = place(url)
        self._local = is_local(url)
        self._made = False
        if self._local:
            self._root = str(Path(LocalFileSystem._strip_protocol(url)).absolute())
            self.url = self._root  # a worker may have another working directory
        else:
            self._root = store_of(url).path_of(url).rstrip("/")
            self.url = url

    def __reduce__(self) -> tuple[type[Volume], tuple[str], dict[str, Any]]:
        return type(self), (self.url,), {"_made": self._made}

    @property
    def _store(self) -> RemoteStore:
        """The connection, of this process."""
        return store_of(self.url)

    @property
    def local_root(self) -> Path | None:
        """The root as a path, on a local disk; else None."""
        return Path(self._root) if self._local else None

    def path(self, name: str) -> str:
        """Where `name` lies, for people and for other libraries."""
        return f"{self._root}/{name}" if self._local else self._store.shown(f"{self._root}/{name}")

    def exists(self, name: str) -> bool:
        """Whether the file is there (and so whole)."""
        if self._local:
            path = self.path(name)
            try:
                with wrap_read_errors(path):
                    return stat.S_ISREG(os.stat(path).st_mode)
            except MissingFileError:
                return False
        info = self._store.info(f"{self._root}/{name}")
        return info is not None and info["type"] == "file"

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            MissingFileError: it is not there.
        """
        if not self._local:
            info = self._store.info(f"{self._root}/{name}")
            if info is None:
                raise MissingFileError(f"{self.path(name)} is not there")
            return int(info["size"])
        with wrap_read_errors(path := self.path(name)):
            return os.stat(path).st_size

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            MissingFileError: it is not there.
            StoreError: the store or the disk refused the request, or failed too often.
        """
        with wrap_read_errors(path := self.path(name)):
            if not self._local:
                return self._store.read(f"{self._root}/{name}")
            with open(path, "rb") as file:
                return file.read()

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        """The bytes of (name, start, end) each, of files on a remote store; an exception where they cannot be had."""
        return self._store.read_ranges([(f"{self._root}/{name}", start, end) for name, start, end in ranges])

    def open(self, name: str) -> BufferedIOBase:
        """A file for reading, seekable.

        Raises:
            MissingFileError: it is not there.
        """
        with wrap_read_errors(path := self.path(name)):
            return open(path, "rb") if self._local else self._store.open(f"{self._root}/{name}", self.size(name))

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder (not below it), sorted; [] where there is no such folder.

        A store may list late what was just written: a name that is not in the list may be there. `exists` knows.
        """
        return self._entries(folder, "file")

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted; [] where there is no such folder."""
        return self._entries(folder, "directory")

    def _entries(self, folder: str, kind: str) -> list[str]:
        if self._local:
            path = self.path(folder).rstrip("/")
            try:
                with wrap_read_errors(path), os.scandir(path) as entries:
                    return sorted(e.name for e in entries if (e.is_dir() if kind == "directory" else e.is_file()))
            except MissingFileError:
                return []
        found = self._store.entries(f"{self._root}/{folder}".rstrip("/"))
        return sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in found if e["type"] == kind)

    def walk(self) -> list[str]:
        """Every file, as a path relative to the root, sorted."""
        if self._local:
            with wrap_read_errors(self._root):
                walked = os.walk(self._root, onerror=_raise)
                under = [Path(folder, name) for folder, _, names in walked for name in names]
            return sorted(path.relative_to(self._root).as_posix() for path in under)
        return [path[len(self._root) + 1 :] for path in self._store.walk(self._root)]

    def make(self) -> None:
        """Make the root, durable as all that comes into it; nothing where the store has no folders.

        Raises:
            StoreError: it was made before, and is gone.
        """
        if not self._local:
            return
        with wrap_os_errors(self._root):
            if not self._made:
                make_folder(Path(self._root))
                self._made = True
            try:
                os.stat(self._root)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise gone(self._root) from error

    def put(self, name: str, data: bytes) -> FileDigest:
        """Write a small file whole."""
        with self.create(name) as file:
            file.write(data)
        return file.finish()

    def move(self, name: str, to: str) -> None:
        """Give a small file another name, in place of what has it; on a local disk in one step.

        Raises:
            MissingFileError: there is no such file.
        """
        if not self._local:
            self.put(to, self.read(name))
            self._store.remove(f"{self._root}/{name}")
            return
        old, new = Path(self._root, name), Path(self._root, to)
        with wrap_os_errors(str(new)):
            make_folder(new.parent, Path(self._root))
            there = old.is_file()
            if there:
                os.replace(old, new)
                fsync(new.parent)
                fsync(old.parent)
        if not there:
            raise MissingFileError(f"{old} is not there")

    @contextmanager
    def create(self, name: str) -> Iterator[FileWriter]:
        """Write a file; it is in place, whole and durable when the block ends, and not there if the block raises."""
        with self._create_local(name) if self._local else self._create_remote(name) as writer:
            yield writer

    @contextmanager
    def _create_local(self, name: str) -> Iterator[FileWriter]:
        final = Path(self._root, name)
        temp = Path(self._root, layout.TEMP, f"{name.replace('/', '%')}.{uuid.uuid4().hex[:12]}")
        self.make()
        with wrap_os_errors(str(final)):
            temp.parent.mkdir(exist_ok=True)
            make_folder(final.parent, Path(self._root))
            descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        writer = FileWriter(descriptor, name=str(final))
        try:
            try:
                yield writer
                writer.finish()
                with wrap_os_errors(str(final)):
                    os.fsync(descriptor)
            finally:
                writer.close()
                with wrap_os_errors(str(final)):  # network disks say here that a write failed
                    os.close(descriptor)
            with wrap_os_errors(str(final)):
                os.replace(temp, final)
        except BaseException:
            with suppress(OSError):  # on a disk that went read-only it stays until the next `sweep`
                temp.unlink()
            raise
        with wrap_os_errors(str(final)):
            fsync(final.parent)

    @contextmanager
    def _create_remote(self, name: str) -> Iterator[FileWriter]:
        with tempfile.NamedTemporaryFile(prefix="last-shards-") as spool:
            writer = FileWriter(spool.fileno(), name=spool.name)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
            self._store.put_file(spool.name, f"{self._root}/{name}")

    def sweep(self) -> int:
        """Remove what killed runs left under way; returns how many files that were. No run may be writing, but for the
        last breaths of a killed one's workers: what they begin meanwhile is removed too, or left for the next sweep.

        Local: files in ``.tmp/``. S3: uploads in parts that were never completed; they show nowhere, but are paid for.
        """
        if not self._local:
            return self._store.abort_uploads(self._root)
        temp = Path(self._root, layout.TEMP)
        if not temp.is_dir():
            return 0
        count = 0
        with wrap_os_errors(str(temp)):
            for _ in range(_SWEEPS):
                for left in temp.iterdir():
                    left.unlink(missing_ok=True)
                    count += 1
                try:
                    temp.rmdir()
                    break
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
        return count


def _raise(error: OSError) -> None:
    raise error
