"""The images of one shard, each read and decoded once, for everyone who wants it.

Scenes of a log overlap, and several columns want the same frame: each distinct file is one task in the decode pool,
in the order of first need, and its task makes at once the small form that each consumer wants (a teacher's input, the
student's JPEG). The full-size pixels live only inside that task; a small form lives until its last user took it. An
image that cannot be had is a `SampleError`, raised to each scene that asks for it and to no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from pipeline.decode import decode_jpeg
from shards_schema.errors import SampleError
from shards_schema.records import Image

Make = Callable[[bytes, Image], Any]
"""What a consumer makes of a file's bytes and its pixels; pure, called from many threads."""


class ShardImages:
    """Images by path and consumer. First `want` everything, then `start`, then `take` in any order.

    Args:
        read: path or URL -> bytes; raises `SampleError`.
        consumers: name -> `Make`.
    """

    def __init__(self, read: Callable[[str], bytes], consumers: Mapping[str, Make]) -> None:
        self._read = read
        self._consumers = consumers
        self._uses: dict[str, Counter[str]] = {}
        self._made: dict[str, Future[dict[str, Any]]] = {}
        self._decoded: Counter[str] = Counter()

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
        for path, uses in self._uses.items():
            self._made[path] = pool.submit(self._make, path, tuple(uses))

    def _make(self, path: str, consumers: tuple[str, ...]) -> dict[str, Any]:
        data = self._read(path)
        image = decode_jpeg(data, path)
        self._decoded[path] += 1
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

    def drop(self) -> None:
        """Forget what was not taken and cancel what has not begun."""
        for future in self._made.values():
            future.cancel()
        self._made.clear()


def read_image(path: str) -> bytes:
    """The bytes of an image file, local or on any fsspec store.

    Raises:
        SampleError: codes ``image_missing``, ``image_unreadable``.
    """
    import fsspec

    try:
        if "://" not in path:
            with open(path, "rb") as file:
                return file.read()
        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise SampleError("image_missing", f"{path}: no such file") from None
    except OSError as error:
        raise SampleError("image_unreadable", f"{path}: {error.strerror or error}") from error
