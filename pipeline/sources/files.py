"""The files of a source, on a local disk or on any fsspec store: read, looked for, listed, with one meaning.

"It is not there" is said only where somebody looked and it was not: a disk that fails for a moment, a store that does
not answer, a folder that went away are a `StoreError`, after the attempts of `pipeline.stores.retry`. Of a local disk
`shards_schema.inputs.reading` says which is which.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container
from typing import TypeVar

from pipeline.stores import retry
from pipeline.stores.remote import is_local, store_of
from pipeline.stores.retry import store_config
from shards_schema.errors import SampleError, StoreError
from shards_schema.inputs.documents import LOG_BYTES
from shards_schema.inputs.reading import judged, read_local

_Result = TypeVar("_Result")


def read(url: str, *, most: int | None = None, absent: Container[str] = ()) -> bytes:
    """All bytes of a file.

    Args:
        url: a local path, or any URL that fsspec opens.
        most: bytes that a local one may have.
        absent: local files that were not there when the run began: if their folder is not there, nothing went away.

    Raises:
        FileNotFoundError: it is not there: the store says so, or its folder does, or it is one of `absent`.
        OSError: it can never be read: a folder, a pipe, more than `most` bytes.
        ValueError: a local path with a NUL character.
        StoreError: the disk or the store refused, or failed too often.
    """
    if not is_local(url):
        store = store_of(url)
        return store.read(store.path_of(url))
    path = local_path(url)

    def look() -> bytes:
        try:
            return read_local(path, most=most)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError) and url in absent:
                raise error.__cause__ from None
            raise

    return again(look)


def read_log(url: str, where: str) -> bytes:
    """All bytes of a log, or of another pickle of records, that messages call `where`.

    Raises:
        SampleError: code ``log_unreadable``: it is not there, or can never be read.
        StoreError: the disk or the store refused, or failed too often.
    """
    try:
        return read(url, most=LOG_BYTES)
    except StoreError:
        raise
    except FileNotFoundError:
        raise SampleError("log_unreadable", f"{where}: FileNotFoundError: no such file") from None
    except OSError as error:
        raise SampleError("log_unreadable", f"{where}: {type(error).__name__}: {error.strerror}") from None


def exists(url: str) -> bool:
    """Whether there is such a file, in a folder that there is.

    Raises:
        StoreError: that cannot be found out, or the folder of a local file is not there either.
    """
    if not is_local(url):
        store = store_of(url)
        found = store.info(store.path_of(url))
        return found is not None and found["type"] == "file"
    path = local_path(url)

    def look() -> bool:
        with judged(path, "look for"):
            return stat.S_ISREG(os.stat(path).st_mode)

    try:
        return again(look)
    except StoreError:
        raise
    except (OSError, ValueError):  # not there, or no name that a file may have
        return False


def names(folder: str) -> set[str]:
    """Names of the files and folders in a folder or below a prefix; empty where there is none.

    Args:
        folder: a local path, or any URL that fsspec opens.

    Raises:
        StoreError: that cannot be found out.
    """
    if not is_local(folder):
        store = store_of(folder)
        return {str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in store.entries(store.path_of(folder))}
    path = local_path(folder)

    def look() -> set[str]:
        try:
            with judged(path, "list"):
                return set(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a NUL in the name
            return set()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # nor is the folder around it there
                return set()
            raise

    return again(look)


class Listing:
    """Which files there are below a folder or URL; each folder is listed once.

    Args:
        root: the folder; without one, paths are whole.
    """

    def __init__(self, root: str = "") -> None:
        self._root = f"{root}/" if root else ""
        self._listed: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        """Whether `path`, relative to the root, is there.

        Raises:
            StoreError: that cannot be found out.
        """
        folder, _, name = path.rpartition("/")
        return name in self.names(folder)

    def names(self, folder: str) -> set[str]:
        """What is in a folder, relative to the root; see `names`."""
        if folder not in self._listed:
            self._listed[folder] = names(f"{self._root}{folder}")
        return self._listed[folder]


def local_path(url: str) -> str:
    """The path of a local URL."""
    return url.split("://", 1)[1] if url.startswith(("file://", "local://")) else url


def again(look: Callable[[], _Result]) -> _Result:
    """What `look` finds on a local disk, asked again while that fails for a moment.

    Raises:
        StoreError: it failed too often.
    """
    return retry.again(look, store_config(), lambda error: isinstance(error, StoreError))
