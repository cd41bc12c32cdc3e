"""Any fsspec store but the local disk, asked with retries and with answers that mean what they say.

fsspec's own conveniences are not safe for a pipeline: `isfile` and `exists` call every failure "no" (and a run that
takes a 503 for "there is no dataset.json" writes another one), listings are kept and grow stale, and each library
retries by rules of its own. So: no listing cache, no retries beneath ours, and "not there" only where the store said
404. Credentials come from the environment or fsspec's config; a URL that holds any is refused, since URLs are written
into records, reports and errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import BufferedIOBase
from typing import Any

import fsspec
from fsspec.config import conf
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import get_protocol

from pipeline.stores.parts import PartsUpload
from pipeline.stores.retry import (
    ENVIRONMENT,
    describe,
    retrying,
    status_of,
    store_config,
    transient,
    without_credentials,
)
from shards_schema.errors import ConfigError, StoreError

_S3 = ("s3", "s3a")
_AT_IN_HOST = ("abfs", "abfss", "wasb", "wasbs")
"""Azure's ``container@account.host``: an @ that parts no credentials."""
_BLOCK = 1 << 23
_SLOWEST = 1 << 20
"""Bytes a second; an upload that is slower counts as hung."""


def is_local(url: str) -> bool:
    """Whether a path or URL is on this machine's disks."""
    return "::" not in url and get_protocol(url) in ("file", "local")


def refuse_credentials(url: str) -> None:
    """Refuse a URL that holds a user, a password, or anything behind a ``?``.

    Raises:
        ConfigError: it does; the message does not repeat them.
    """
    for link in url.split("::"):
        protocol, there, rest = link.partition("://")
        if not there:
            continue
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        if (at and (":" in user or protocol not in _AT_IN_HOST)) or "?" in rest:
            raise ConfigError(
                f"{without_credentials(link)}: the URL holds a user, a password or a query, which records would show: "
                "give credentials in the environment (AWS_..., GOOGLE_..., HF_TOKEN) or in fsspec's config"
            )


class RemoteStore:
    """One connection to one store. Threads may share it; paths are the store's own (``bucket/run/x``).

    Args:
        url: of anything in the store.
    """

    def __init__(self, url: str) -> None:
        refuse_credentials(url)
        self.config = store_config()
        self._url = url
        self.fs = self._connect()
        protocol = self.fs.protocol
        self._is_s3 = "s3" in ((protocol,) if isinstance(protocol, str) else protocol)

    def _connect(self) -> Any:
        """A file system that asks once, and keeps no listings."""
        config, options = self.config, {}
        protocol = get_protocol(self._url)
        if "::" not in self._url and protocol in _S3:
            options = {
                "use_listings_cache": False,
                "max_concurrency": 1,  # with more there is a HEAD before each GET
                "config_kwargs": {
                    "connect_timeout": config.connect_timeout,
                    "read_timeout": config.read_timeout,
                    "max_pool_connections": 2 * config.concurrency,
                    **conf.get(protocol, {}).get("config_kwargs", {}),
                    "retries": {"mode": "standard", "total_max_attempts": 1},
                },
            }
        try:
            fs, _ = fsspec.core.url_to_fs(self._url, **options)
        except ImportError as error:
            raise ConfigError(f"{self._url}: {error}") from error
        except ValueError as error:  # no such protocol
            raise ConfigError(f"{self._url}: {without_credentials(str(error))}") from error
        if options:
            fs.retries = 1  # s3fs's own, above botocore's
        return fs

    def path_of(self, url: str) -> str:
        """What the store calls the place that a URL names."""
        return str(self.fs._strip_protocol(url) if "::" not in url else fsspec.core.url_to_fs(url)[1])

    def shown(self, path: str) -> str:
        """A path as a URL, for messages."""
        return str(self.fs.unstrip_protocol(path))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes [start, end) of a file, or all of it.

        Raises:
            FileNotFoundError: it is not there.
            StoreError: the store refused or failed.
        """
        ranged = {} if start is None else {"start": start, "end": end}
        return retrying(lambda: bytes(self.fs.cat_file(path, **ranged)), f"read {self.shown(path)}", self.config)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        """The bytes of (path, start, end) each, asked for together; what did not come is asked for again by itself.

        Returns:
            In order; in the place of a range that cannot be had, the exception that `read` raises.
        """
        paths, starts, ends = [r[0] for r in ranges], [r[1] for r in ranges], [r[2] for r in ranges]
        limits = {"batch_size": self.config.concurrency} if self.fs.async_impl else {}
        try:
            found: list[bytes | Exception] = list(self.fs.cat_ranges(paths, starts, ends, on_error="return", **limits))
        except OSError as error:
            if not transient(error):
                raise
            found = [error] * len(ranges)
        for i, (path, start, end) in enumerate(ranges):
            if isinstance(data := found[i], Exception) or len(data) != end - start:
                try:
                    found[i] = self.read(path, start, end)
                except (OSError, StoreError) as error:
                    found[i] = error
        return found

    def info(self, path: str) -> dict[str, Any] | None:
        """What the store knows of a file or folder; None where there is none."""
        try:
            found: dict[str, Any] = retrying(lambda: self.fs.info(path), f"look for {self.shown(path)}", self.config)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    def entries(self, folder: str) -> list[dict[str, Any]]:
        """The files and folders in a folder; [] where there is none."""

        def ask() -> list[dict[str, Any]]:
            self.fs.invalidate_cache()
            return list(self.fs.ls(folder, detail=True))

        try:
            return retrying(ask, f"list {self.shown(folder)}", self.config)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, folder: str) -> list[str]:
        """Every file below a folder, sorted."""

        def ask() -> list[str]:
            self.fs.invalidate_cache()
            return sorted(str(path) for path in self.fs.find(folder))

        return retrying(ask, f"list {self.shown(folder)}", self.config)

    def put_file(self, local: str, path: str) -> None:
        """Upload a file; it shows when it is complete, under S3 by one PUT up to `single_put_mb`.

        Raises:
            StoreError: the store refused or failed; nothing new shows under this name.
        """
        what, size, options = f"write {self.shown(path)}", os.path.getsize(local), dict[str, Any]()
        if self.fs.async_impl:  # a read timeout does not see a server that never takes the body
            options["timeout"] = self.config.connect_timeout + self.config.read_timeout + size / _SLOWEST
        if self._is_s3:
            single = self.config.single_put_mb << 20
            if size >= single:
                return PartsUpload(self.fs, self.config).put(local, path, what)
            options["chunksize"] = single  # s3fs sends less than two chunks at once
        try:
            retrying(lambda: self.fs.put_file(local, path, **options), what, self.config)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"{what}: {describe(error)}: there is no such bucket or folder") from error
        return None

    def etag(self, path: str) -> str | None:
        """The version of an object, for `write`; None where there is none, or the store has no such writes."""
        found = self.info(path) if self._is_s3 else None
        return None if found is None else str(found["ETag"])

    def write(self, path: str, data: bytes, *, new: bool = False, over: str | None = None) -> None:
        """Write a small object by one PUT.

        Args:
            path: of the object.
            data: all of it.
            new: only where there is none (atomic on S3 and GCS).
            over: only where there is this version (`etag`).

        Raises:
            FileExistsError: there is one, or another version; after a retry it may be this very one.
            FileNotFoundError: there is none to be written over.
            StoreError: the store refused or failed.
        """
        only = {"mode": "create"} if new else {"IfMatch": over} if over is not None else {}
        try:
            retrying(lambda: self.fs.pipe_file(path, data, **only), f"write {self.shown(path)}", self.config)
        except OSError as error:
            if only and status_of(error) == 412:  # precondition failed
                raise FileExistsError(self.shown(path)) from error
            raise

    def remove(self, path: str) -> None:
        """Remove an object, if it is there.

        Raises:
            StoreError: the store refused or failed.
        """
        try:
            retrying(lambda: self.fs.rm_file(path), f"remove {self.shown(path)}", self.config)
        except FileNotFoundError:
            return

    def open(self, path: str, size: int) -> BufferedIOBase:
        """A file for reading, by requests of some 8 MiB that are retried one by one."""
        return _File(self, path, size)

    def abort_uploads(self, folder: str) -> int:
        """Abort uploads in parts that killed processes began below a folder (S3); returns how many."""
        if not self._is_s3:
            return 0
        try:
            return PartsUpload(self.fs, self.config).abort_all(folder, f"abort uploads below {self.shown(folder)}")
        except OSError:  # housekeeping, which not every store knows and not every key may do
            return 0


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """A remote file, whose bytes come by `RemoteStore.read`."""

    def __init__(self, store: RemoteStore, path: str, size: int) -> None:
        self._store = store
        super().__init__(store.fs, path, "rb", _BLOCK, size=size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._store.read(self.path, start, end)


_stores: dict[tuple[str | int, ...], RemoteStore] = {}


def store_of(url: str) -> RemoteStore:
    """This process's connection to the store of a URL, made once (and again after a fork)."""
    if "::" in url:
        return RemoteStore(url)  # fsspec keeps those that are alike
    protocol, _, rest = url.partition("://")
    key = (protocol, rest.split("/", 1)[0], os.environ.get(ENVIRONMENT, ""), os.getpid())
    return _stores[key] if key in _stores else _stores.setdefault(key, RemoteStore(url))
