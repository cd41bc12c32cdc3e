"""A dataset's root, on a local disk or on any fsspec store, with one promise: a file is whole or it is not there.

Local: written under ``.tmp/``, fsynced, renamed into place, its folder fsynced; a crash leaves nothing but files in
``.tmp/``, which `sweep` removes. Object stores: spooled to local disk, then one upload, which shows when it is
complete. `create` is the only way to write, so every file gets its sha256 while its bytes pass; hashing runs in a
thread beside the writes (hashlib lets go of the GIL), which keeps a digested write near the speed of a plain one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards_schema import layout
from shards_schema.commit import FileDigest
from shards_schema.errors import MissingFileError

Buffer = bytes | memoryview
_FLUSH = 1 << 20
"""Bytes gathered before a write call: small members share one, large ones go out alone."""
_IOV_MAX = 512


class FileWriter:
    """A file under way. Buffers must not be changed after they were written.

    Attributes:
        position: bytes written so far.
    """

    def __init__(self, descriptor: int, *, digest: bool) -> None:
        self.position = 0
        self._descriptor = descriptor
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._hash = hashlib.sha256() if digest else None
        self._hasher = ThreadPoolExecutor(1, "sha256") if digest else None
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
        if self._hasher is not None:
            if self._hashing is not None:
                self._hashing.result()  # at most one block of buffers waits to be hashed
            self._hashing = self._hasher.submit(self._update, pending)
        views = [memoryview(buffer).cast("B") for buffer in pending if len(buffer)]
        while views:
            written = os.writev(self._descriptor, views[:_IOV_MAX])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def _update(self, buffers: list[Buffer]) -> None:
        assert self._hash is not None
        for buffer in buffers:
            self._hash.update(buffer)

    def finish(self) -> FileDigest:
        """Size and digest ("" where none was asked for) of all that was written; the file is not in place yet."""
        self._flush()
        if self._hashing is not None:
            self._hashing.result()
        if self._hash is None:
            return FileDigest(self.position, "")
        return FileDigest(self.position, self._hash.hexdigest())

    def close(self) -> None:
        """Stop the hashing thread."""
        if self._hasher is not None:
            self._hasher.shutdown()


class Volume:
    """The root of a dataset. Picklable; paths are relative to the root, with "/".

    Args:
        url: a local path, or any URL that fsspec knows (``s3://bucket/run``, ``memory://run``).
    """

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._root = str(Path(root).absolute()) if self._local else root.rstrip("/")
        self.url = self._root if self._local else url  # a worker may have another working directory

    def __reduce__(self) -> tuple[type[Volume], tuple[str]]:
        return type(self), (self.url,)

    @property
    def local_root(self) -> Path | None:
        """The root as a path, on a local disk; else None."""
        return Path(self._root) if self._local else None

    def path(self, name: str) -> str:
        """Where `name` lies, for people and for other libraries."""
        return f"{self._root}/{name}" if self._local else self._fs.unstrip_protocol(f"{self._root}/{name}")

    def exists(self, name: str) -> bool:
        """Whether the file is there (and so whole)."""
        return bool(self._fs.isfile(f"{self._root}/{name}"))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            MissingFileError: it is not there.
        """
        try:
            return int(self._fs.size(f"{self._root}/{name}"))
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.path(name)} is not there") from error

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            MissingFileError: it is not there.
        """
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"{self.path(name)} is not there") from error

    def open(self, name: str) -> IO[bytes]:
        """A file for reading, seekable.

        Raises:
            MissingFileError: it is not there.
        """
        try:
            file: IO[bytes] = self._fs.open(f"{self._root}/{name}", "rb")
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.path(name)} is not there") from error
        return file

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder (not below it), sorted; [] where there is no such folder."""
        return self._entries(folder, "file")

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted; [] where there is no such folder."""
        return self._entries(folder, "directory")

    def _entries(self, folder: str, kind: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            entries: list[dict[str, Any]] = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
        return sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == kind)

    def walk(self) -> list[str]:
        """Every file, as a path relative to the root, sorted."""
        self._fs.invalidate_cache()
        return sorted(str(path)[len(self._root) + 1 :] for path in self._fs.find(self._root))

    def put(self, name: str, data: bytes) -> FileDigest:
        """Write a small file whole."""
        with self.create(name) as file:
            file.write(data)
        return file.finish()

    @contextmanager
    def create(self, name: str, *, digest: bool = True) -> Iterator[FileWriter]:
        """Write a file; it is in place, whole and durable when the block ends, and not there if the block raises."""
        with self._create_local(name, digest) if self._local else self._create_remote(name, digest) as writer:
            yield writer

    @contextmanager
    def _create_local(self, name: str, digest: bool) -> Iterator[FileWriter]:
        final = Path(self._root, name)
        temp = Path(self._root, layout.TEMP, f"{name.replace('/', '%')}.{uuid.uuid4().hex[:12]}")
        temp.parent.mkdir(parents=True, exist_ok=True)
        _make_folder(final.parent)
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        writer = FileWriter(descriptor, digest=digest)
        try:
            try:
                yield writer
                writer.finish()
                os.fsync(descriptor)
            finally:
                writer.close()
                os.close(descriptor)
            os.replace(temp, final)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        _fsync_folder(final.parent)

    @contextmanager
    def _create_remote(self, name: str, digest: bool) -> Iterator[FileWriter]:
        with tempfile.NamedTemporaryFile(prefix="last-shards-") as spool:
            writer = FileWriter(spool.fileno(), digest=digest)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
            self._fs.put_file(spool.name, f"{self._root}/{name}")

    def sweep(self) -> int:
        """Remove what killed runs left under way; returns how many files that were. No run may be writing."""
        temp = Path(self._root, layout.TEMP)
        if not self._local or not temp.is_dir():
            return 0
        left = sum(1 for _ in temp.iterdir())
        shutil.rmtree(temp)
        return left


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable: a name is on disk when the folder that holds it was fsynced."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
