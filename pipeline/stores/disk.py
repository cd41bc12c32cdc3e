"""A local disk: what it says of reads and writes, in sentences, and folders that last."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards_schema.errors import MissingFileError, StoreError


@contextmanager
def wrap_os_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says of a write into a sentence for a person.

    Raises:
        StoreError: `path` could not be written (disk full, read-only, failing, not allowed).
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        what = f"{path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what += " (the disk, or this user's share of it, is full)"
        raise StoreError(
            f"{what}; nothing unfinished counts and what was committed stays: mend the cause and run the same command "
            "again"
        ) from error


@contextmanager
def wrap_read_errors(path: str) -> Iterator[None]:
    """The same of a read: what is not there, and what could not be looked at, are two things.

    Raises:
        MissingFileError: `path` is not there.
        StoreError: it could not be read (a disk that fails, a right that lacks, too many open files, a stale handle).
    """
    try:
        yield
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path} is not there") from error
    except OSError as error:
        what = f"{path}: could not be read: {error.strerror or error}"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            what += " (`ulimit -n` raises the limit)"
        raise StoreError(
            f"{what}; that says nothing of what it holds: mend the cause and run the same command again"
        ) from error


def gone(root: str, what: str = "") -> StoreError:
    """In place of what a run would write into a folder that is not there any more."""
    return StoreError(
        f"{root} was moved, removed or unmounted while a run was writing there{what and f' ({what})'}; nothing is made "
        "anew in its place: bring it back, and run the same command again"
    )


def is_at(descriptor: int, path: str | Path) -> bool:
    """Whether `path` names the open file; False where there is none."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Make a folder and its parents, each durable: a name is on disk when the folder that holds it was fsynced.

    `root` is there already, or must not be made.
    """
    if folder != root and not folder.is_dir():
        make_folder(folder.parent, root)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
