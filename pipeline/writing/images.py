"""The images of one shard, each read and decoded once, for everyone who wants it.

Scenes of a log overlap, and several columns want the same frame: each distinct file is one task in the decode pool,
in the order of first need, and its task makes at once the small form that each consumer wants (a teacher's input, the
student's JPEG). The full-size pixels live only inside that task; a small form lives until its last user took it. An
image that is not there or is no JPEG is a `SampleError`, raised to each scene that asks for it and to no other; a disk
or a store that refuses or keeps failing is a `StoreError`, which ends the shard: a bad hour quarantines nothing.

Remote images are fetched by threads of their own, many more than decode, since they wait and do not work:

    fetch threads (`StoreConfig.concurrency`) --> at most twice as many JPEGs waiting --> decode pool
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any

from pipeline.sources import files
from pipeline.stores.checksum import crc32c
from pipeline.stores.decode import decode_jpeg
from pipeline.stores.remote import is_local
from pipeline.stores.retry import store_config
from pipeline.writing.sandbox import SandboxedDecoder
from shards_schema.errors import SampleError, StoreError
from shards_schema.records import Image

MAX_BYTES = 256 << 20
"""Of an image file on a local disk; those of a camera have less than one."""

_NO_SUCH_FILE = ": no such file"

Make = Callable[[bytes, Image], Any]
"""What a consumer makes of a file's bytes and its pixels; pure, called from many threads."""

Seen = tuple[int, int]
"""Bytes of a file, and their CRC-32C."""


class ShardImages:
    """Images by path and consumer. First `want` everything, then `start`, then `take` in any order.

    Args:
        read: path or URL -> bytes; raises `SampleError`.
        consumers: name -> `Make`.
        sandbox: decode where a crash of libjpeg ends no more than its image (`pipeline.writing.sandbox`).
        decode: by what else than `decode_jpeg`. Where `sandbox` too, after libjpeg has survived the image: what uses a
            GPU cannot run in a process that was forked, so an image that crashes it alone is not found.

    Attributes:
        seen: path -> what was read of an image that is one.
    """

    def __init__(
        self,
        read: Callable[[str], bytes],
        consumers: Mapping[str, Make],
        *,
        sandbox: bool = False,
    ) -> None:
        self._read = read
        self._sandbox = SandboxedDecoder() if sandbox else None
        self._consumers = consumers
        self._uses: dict[str, Counter[str]] = {}
        self._made: dict[str, Future[dict[str, Any]]] = {}
        self._decoded: Counter[str] = Counter()
        self._fetchers: ThreadPoolExecutor | None = None
        self._dropped = False
        self.seen: dict[str, Seen] = {}

    @property
    def decodes(self) -> int:
        """Images decoded so far."""
        return self._decoded.total()

    @property
    def unique(self) -> int:
        """Distinct files asked for."""
        return len(self._uses)

    def want(self, consumer: str, path: str) -> None:
        """Announce one later `take`."""
        self._uses.setdefault(path, Counter())[consumer] += 1

    def start(self, pool: Executor) -> None:
        """Hand every file to the pool, in the order in which they were first wanted."""
        remote = [path for path in self._uses if not is_local(path)]
        fetched = self._fetch(remote) if remote else {}
        for path, uses in self._uses.items():
            self._made[path] = pool.submit(self._make, path, tuple(uses), fetched.get(path))

    def _fetch(self, paths: Sequence[str]) -> dict[str, Future[bytes]]:
        """Begin to read files, in this order; no more are under way or wait to be decoded than `_room` has places."""
        count = store_config().concurrency
        self._room = threading.Semaphore(2 * count)
        self._fetchers = ThreadPoolExecutor(min(count, len(paths)), "fetch")

        def fetch(path: str) -> bytes:
            self._room.acquire()
            if self._dropped:
                raise CancelledError
            return self._read(path)

        return {path: self._fetchers.submit(fetch, path) for path in paths}

    def _bytes(self, path: str, fetched: Future[bytes] | None) -> bytes:
        if fetched is None:
            return self._read(path)
        try:
            return fetched.result()
        finally:
            self._room.release()

    def _make(self, path: str, consumers: tuple[str, ...], fetched: Future[bytes] | None) -> dict[str, Any]:
        data = self._bytes(path, fetched)
        del fetched  # the bytes go with this task
        image = decode_jpeg(data, path) if self._sandbox is None else self._sandbox.decode(data, path)
        self._decoded[path] += 1
        self.seen[path] = len(data), crc32c(data)
        made: dict[str, Any] = {}
        for name in consumers:
            try:
                made[name] = self._consumers[name](data, image)
            except SampleError as error:  # this consumer cannot have the image; the others can
                made[name] = SampleError(error.code, f"{path}: {error.reason}")
        return made

    def take(self, consumer: str, path: str) -> Any:
        """What `consumer` made of the file; waits for it. The last taker frees it.

        Raises:
            SampleError: the file cannot be read or decoded, or the consumer refuses it.
        """
        made = self._made[path].result()
        value = made[consumer]
        uses = self._uses[path]
        uses[consumer] -= 1
        if not uses[consumer]:
            del made[consumer]
        if isinstance(value, SampleError):
            raise value
        return value

    def take_all(self, consumer: str, paths: Sequence[str]) -> list[Any]:
        """Take every image, also after one failed, so that each is freed; then raise the first failure."""
        taken: list[Any] = []
        first: SampleError | None = None
        for path in paths:
            try:
                taken.append(self.take(consumer, path))
            except SampleError as error:
                first = first or error
        if first is not None:
            raise first
        return taken

    def drop(self) -> None:
        """Forget what was not taken and cancel what has not begun."""
        self._dropped = True
        for future in self._made.values():
            future.cancel()
        if self._fetchers is not None:
            self._fetchers.shutdown(wait=False, cancel_futures=True)
            self._room.release(len(self._uses))  # nobody waits for a place any more
        if self._sandbox is not None:
            self._sandbox.close()
        self._made.clear()


def read_image(path: str, absent: Container[str] = ()) -> bytes:
    """The bytes of an image file, local or on any fsspec store.

    Args:
        path: or URL.
        absent: see `pipeline.sources.files.read`.

    Raises:
        SampleError: codes ``image_missing``, ``image_unreadable`` (no file but a folder, a pipe, a device; a name that
            no file can have), ``image_too_large``.
        StoreError: a cause that passes, or may: see `pipeline.sources.files`.
    """
    try:
        return files.read(path, most=MAX_BYTES, absent=absent)
    except FileNotFoundError:
        raise SampleError("image_missing", f"{path}{_NO_SUCH_FILE}") from None
    except StoreError:
        raise
    except ValueError as error:  # a NUL character
        raise SampleError("image_unreadable", f"{path!r}: {error}") from error
    except OSError as error:
        code = "image_too_large" if error.errno == errno.EFBIG else "image_unreadable"
        raise SampleError(code, f"{path}: {error.strerror or error}") from error


def missing_image(reason: str) -> str | None:
    """The path in the reason of an ``image_missing``; None in any other's."""
    return reason.removesuffix(_NO_SUCH_FILE) if reason.endswith(_NO_SUCH_FILE) else None
