"""A local disk: what it says of reads and writes, in sentences; folders that last, and files that are whole."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shards_schema.errors import MissingFileError, ShardsError, StoreError


@contextmanager
def wrap_os_errors(path: str) -> Iterator[None]:
    """Turn what the operating system says of a write into a sentence for a person.

    Raises:
        StoreError: `path` could not be written (disk full, read-only, failing, not allowed).
    """
    try:
        yield
    except ShardsError:  # some of ours are OSErrors too: what is not there, what another run holds
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
        fsync(folder.parent)


def open_folder(folder: Path) -> None:
    """See, before the work, that its results will have a place: the folder is made, and can be written to.

    Raises:
        StoreError: it cannot.
    """
    with wrap_os_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def fsync(path: Path | str) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object], *, draft: Path | None = None) -> None:
    """Write a file that is no dataset's: it is whole and durable, or what it was before.

    Args:
        path: of the file; its folder is made.
        write: gets the place of a draft.
        draft: this place, on the same disk; None is beside `path`.

    Raises:
        StoreError: it could not be written (the disk is full, the folder may not be written to, ...).
    """
    draft = draft or path.with_name(f".{path.name}.{os.getpid()}")
    with wrap_os_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(draft)
            fsync(draft)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise
        fsync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """A file of these bytes; see `replace_file`."""
    replace_file(path, lambda draft: draft.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """A file of this text, as UTF-8; see `replace_file`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """A file of this value, as JSON; see `replace_file`."""
    write_text(path, json.dumps(value, indent=1) + "\n")
