"""What a failed read of a local source file says: something of the file, or of the disk, the network, this process.

A sample that is quarantined stays so, so only what no waiting changes may be held against it:

- the file is not there, and its folder is (`FileNotFoundError`);
- it is no file, or its name can be none: a folder, a loop of links, a name that is too long (another `OSError`).

Everything else passes, and is a `StoreError`, which ends the shard and quarantines nothing: no descriptor left (EMFILE,
ENFILE), a disk or a network that fails (EIO, ESTALE, ETIMEDOUT), a right that is missing (EACCES), and a file that is
gone with its folder, as after an unmount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from shards_schema.errors import StoreError

_OF_THE_FILE = frozenset({errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO})


@contextmanager
def judged(path: str | os.PathLike[str], deed: str = "read") -> Iterator[None]:
    """Let out what the block's errors say of the file at `path`, and turn the rest into a `StoreError`.

    Raises:
        FileNotFoundError: it is not there, and its folder is.
        OSError: it can never be read.
        StoreError: a cause that passes.
    """
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        folder = os.path.dirname(os.path.realpath(path))
        if _is_folder(folder):
            raise
        raise _passing(path, deed, f"its folder {folder} is not there, or cannot be looked into") from error
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            raise
        raise _passing(path, deed, error.strerror or str(error)) from error


def read_local(path: str | os.PathLike[str], *, most: int | None = None) -> bytes:
    """All bytes of a regular file.

    Args:
        path: on a local or mounted disk.
        most: bytes that it may have.

    Raises:
        ValueError: the path holds a NUL character.
        FileNotFoundError, StoreError: see `judged`.
        OSError: likewise; no regular file (EINVAL), or more than `most` bytes (EFBIG).
    """
    with judged(path):
        # not to wait for somebody to write into a pipe
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and (most is None or found.st_size <= most):
                return file.read()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no regular file (a pipe, a socket or a device)")
    raise OSError(errno.EFBIG, f"{found.st_size} bytes, at most {most} are read")


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def _passing(path: str | os.PathLike[str], deed: str, why: str) -> StoreError:
    return StoreError(
        f"{deed} {os.fspath(path)}: {why}; nothing is held against the sample: mend the cause and run the same command "
        "again"
    )
