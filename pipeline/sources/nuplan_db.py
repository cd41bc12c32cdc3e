"""A nuPlan log opened for reading: one SQLite file, never written to, and every fault of it a `SampleError`.

The file is opened ``mode=ro&immutable=1``: no locks, no journal, no ``-shm`` beside it, so it may lie on a read-only
mount and be read by many processes at once. SQLite notices much of what can be wrong with a file only when a query
comes across it, and never that the last page is cut; so `open_log` first compares the file's size with the page count
in its header (https://www.sqlite.org/fileformat.html, section 1.3), and refuses a file whose journal was not folded in.

`LogDb.select` streams. `LogDb.among` gives the rows that belong to a set of tokens in one statement, with whatever
indices the file has: where the column has one SQLite looks each token up, else it scans the table once; it never
builds an index of its own. The tokens go into a temporary table, which is in memory and not in the file.

A log that is not on a local disk is copied into a temporary file first (SQLite needs to seek); a process keeps the last
few copies, since shard after shard may want the same log, and asks the store whether they still are what is there.

What says nothing of the log itself (a disk that fails, a store that does not answer, no descriptor left) is a
`StoreError`, after the attempts of `pipeline.stores.retry`.
"""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final
from urllib.parse import quote

from pipeline.sources.files import again, local_path
from pipeline.stores.disk import wrap_os_errors
from pipeline.stores.remote import is_local, store_of
from shards_schema.errors import SampleError, StoreError
from shards_schema.inputs.reading import judged

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER: Final = 100
_FAULTS: Final = (sqlite3.Error, UnicodeDecodeError)
"""The second is what sqlite3 raises when its own message quotes damaged text."""
_PASSING: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL})
"""What SQLite says of the disk, or of this process, and not of the file."""
_COPIES: Final = 4
"""Remote logs that a process keeps copies of; each has some 100 MB."""
_fetching = threading.Lock()
_TOKEN: Final = 8
"""Bytes of a token; the same 16 hex characters everywhere outside the file."""


@dataclass(frozen=True, slots=True)
class LogDb:
    """An open log.

    Attributes:
        connection: read-only.
        where: names the file in messages.
    """

    connection: sqlite3.Connection
    where: str

    def select(self, statement: str, arguments: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, as they come.

        Raises:
            SampleError: code ``log_unreadable``: a table or column is missing, or a page is damaged.
        """
        try:
            yield from self.connection.execute(statement, tuple(arguments))
        except _FAULTS as error:
            raise _fault(self.where, error) from None

    def among(self, tokens: Iterable[bytes], statement: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that joins ``wanted`` (one column, ``token``), which holds `tokens`.

        Raises:
            SampleError: see `select`.
        """
        try:
            self.connection.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (token BLOB PRIMARY KEY) WITHOUT ROWID")
            self.connection.execute("DELETE FROM wanted")
            self.connection.executemany("INSERT INTO wanted VALUES (?)", ((token,) for token in set(tokens) if token))
        except _FAULTS as error:
            raise _fault(self.where, error) from None
        yield from self.select(statement)


@contextmanager
def open_log(url: str, where: str) -> Generator[LogDb, None, None]:
    """The log at `url`, any that fsspec opens; `where` names it in messages.

    Raises:
        SampleError: code ``log_unreadable``: it is not there, is not an SQLite file, or is cut short.
        StoreError: the disk or the store failed too often.
    """
    with _local(url, where) as path:
        again(lambda: _check_file(path, where))
        try:
            connection = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise _fault(where, error) from None
        with closing(connection):
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA automatic_index = OFF")
            yield LogDb(connection, where)


def unreadable(where: str, reason: str) -> SampleError:
    """The error for a log as a whole."""
    return SampleError("log_unreadable", f"{where}: {reason}. Expected a whole nuPlan .db; fetch it again.")


def hexed(token: object, what: str) -> str:
    """A token of the file as its 16 hex characters.

    Raises:
        SampleError: code ``bad_frame``: it is not 8 bytes.
    """
    if not isinstance(token, bytes) or len(token) != _TOKEN:
        raise SampleError("bad_frame", f"{what} should be {_TOKEN} bytes, got {token!r:.60}")
    return token.hex()


def _fault(where: str, error: Exception) -> SampleError | StoreError:
    """What an error of `_FAULTS` says: something of the log, or of what it was read from."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in _PASSING and code != sqlite3.SQLITE_IOERR_SHORT_READ:
        return StoreError(
            f"read {where}: {error} (SQLite's {code}); the log is not given up for that: mend the cause and run the "
            "same command again"
        )
    return unreadable(where, f"{type(error).__name__}: {error}")


@contextmanager
def _local(url: str, where: str) -> Generator[str, None, None]:
    if is_local(url):
        yield local_path(url)
        return
    store = store_of(url)
    found = store.info(store.path_of(url))
    if found is None:
        raise unreadable(where, "no such file")
    with _fetching:
        copy = _copy(url, int(found["size"]), str(found))
    yield copy.name  # which is there for as long as this refers to it


@functools.lru_cache(_COPIES)
def _copy(url: str, size: int, known: str) -> IO[bytes]:
    """A temporary file with what is at a URL, of which the store tells `size` and `known`; it goes with its object."""
    store = store_of(url)
    with wrap_os_errors(f"{tempfile.gettempdir()} (for a copy of {url})"):
        copy = tempfile.NamedTemporaryFile(prefix="last-shards-", suffix=".db")  # noqa: SIM115 (it is what is given)
        with store.open(store.path_of(url), size) as file:
            shutil.copyfileobj(file, copy, 1 << 23)
        copy.flush()
    return copy


def _check_file(path: str, where: str) -> None:
    try:
        with judged(path), open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_HEADER)
        for suffix in ("-wal", "-journal"):
            if _size(path + suffix):
                raise unreadable(where, f"{path}{suffix} holds writes that are not in the file yet")
    except StoreError:
        raise
    except OSError as error:
        raise unreadable(where, f"{type(error).__name__}: {error.strerror}") from None
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise unreadable(where, f"not an SQLite file: its {size} bytes begin with {header[:16]!r}")
    page = int.from_bytes(header[16:18], "big")
    page = 65_536 if page == 1 else page
    # The count holds if the file was last written by an SQLite that keeps it (all since 2010).
    if header[24:28] == header[92:96] and size != (whole := int.from_bytes(header[28:32], "big") * page):
        raise unreadable(where, f"{size} bytes long, but its header says {whole}")


def _size(path: str) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        with judged(path, "look for"):
            return os.stat(path).st_size
    except FileNotFoundError:
        return 0
