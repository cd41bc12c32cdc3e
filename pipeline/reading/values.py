"""From the bytes of a member to its value, held against its checksum before anybody has it.

    member             value                                   checksum of
    .npy               a read-only view of the file, no copy   the mapped file (or the bytes that a store sent)
    .npy, `Unread`     read once, to where its user wants it   that copy, while it is still in the cache
    .npy, encoded      decoded to float32                      the mapped file
    json, any other    parsed; bytes                           the copy

To check the copy is the faster way (main memory is read once, and by a plain copy), and the surer one: what was
checked is what is used, whatever becomes of the file. But shape and dtype of an array must be known before it is
copied, so they are only ever taken from a header that stood in a member whose checksum was right: the first of each
kind is read once more for that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.cache import RESTORE, CacheConfig
from pipeline.stores.checksum import crc32c
from pipeline.stores.ranges import Located, Span
from pipeline.stores.volume import Buffer
from shards_schema.codecs import load_npy
from shards_schema.errors import DatasetError, DigestError

_KINDS_KEPT = 1024
"""More kinds of arrays than a dataset has, but for long ragged axes."""
_HEADER = 128
"""Bytes of a `.npy` header, but for arrays of very many axes."""


class _Kind(NamedTuple):
    """What a header says that a checksum has vouched for, and that of the header alone."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    crc32c: int


class Unread:
    """An array that is not a value yet: neither read nor checked. It keeps its file open while it lives.

    Attributes:
        shape: as of a member that was checked.
        dtype: likewise.
    """

    __slots__ = ("_expected", "_fault", "_kind", "_span", "dtype", "shape")

    def __init__(self, span: Span, kind: _Kind, expected: int | None, fault: Callable[[int], DigestError]) -> None:
        self._span, self._kind, self._expected, self._fault = span, kind, expected, fault
        self.shape, self.dtype = kind.shape, kind.dtype

    def into(self, target: NDArray[Any]) -> None:
        """Read the values, and check what was read.

        Args:
            target: of this shape; where it is contiguous and of this dtype, there is no other copy.

        Raises:
            TypeError: `target` is of another kind of numbers.
            DigestError: the file was changed; what `target` holds now is worth nothing.
            DatasetError: it was cut.
        """
        if target.shape != self.shape or target.dtype != self.dtype or not target.flags.c_contiguous:
            np.copyto(target, self.owned())
            return
        copied = target.reshape(-1).view(np.uint8)
        self._span.into(copied, self._kind.start)
        if self._expected is not None and (found := crc32c(copied, self._kind.crc32c)) != self._expected:
            raise self._fault(found)

    def owned(self) -> NDArray[Any]:
        """The values in memory of their own, checked.

        Raises:
            DigestError, DatasetError: see `into`.
        """
        array = np.empty(self.shape, self.dtype)
        self.into(array)
        return array


class Values:
    """Makes the values of one dataset. Safe to share between threads.

    Args:
        cache: where copies of its files may lie, for messages.
        checked: whether members are held against their checksums.
    """

    def __init__(self, cache: CacheConfig | None, *, checked: bool) -> None:
        self._cache, self._checked = cache, checked
        self._kinds: dict[tuple[bytes, int], _Kind] = {}

    def array(self, span: Span, member: Located, token: str) -> NDArray[Any]:
        """A read-only array of the bytes as they lie.

        Raises:
            DigestError, DatasetError: they are not what was committed.
        """
        return self._array(span.view(), member, token)

    def _array(self, data: Buffer, member: Located, token: str) -> NDArray[Any]:
        self._check(data, member, token)
        return load_npy(data, _where(member, token))

    def unread(self, span: Span, member: Located, token: str) -> Unread:
        """The same, to be read to where it is wanted.

        Raises:
            DigestError, DatasetError: the header is not what was committed.
        """
        header = span.first(_HEADER)
        if len(header) >= _HEADER and (start := _start(header)) != _HEADER:
            header = span.first(start)
        kind = self._kinds.get((header, span.size))
        if kind is None:
            kind = self._checked_kind(span.copy(), member, token)
        return Unread(span, kind, member.crc32c if self._checked else None, partial(self._fault, member, token))

    def _checked_kind(self, data: bytes, member: Located, token: str) -> _Kind:
        array = self._array(data, member, token)
        start = _start(data)
        kind = _Kind(array.shape, array.dtype, start, crc32c(data[:start]))
        if len(self._kinds) < _KINDS_KEPT:
            self._kinds[data[:start], len(data)] = kind
        return kind

    def other(self, span: Span, member: Located, token: str) -> Any:
        """Parsed JSON, or bytes.

        Raises:
            DigestError, DatasetError: they are not what was committed.
        """
        owned = span.copy()
        self._check(owned, member, token)
        if member.name == "json" or member.name.endswith(".json"):
            try:
                return json.loads(owned)
            except ValueError as error:
                where = _where(member, token)
                raise DatasetError(f"{where}: not JSON ({error}); the file was changed") from error
        return owned

    def _check(self, data: Buffer, member: Located, token: str) -> None:
        if self._checked and (found := crc32c(data)) != member.crc32c:
            raise self._fault(member, token, found)

    def _fault(self, member: Located, token: str, found: int) -> DigestError:
        file, copy = member.file, ""
        if self._cache is not None:
            copy = f" If it is only the copy {self._cache.folder}/{file.digest.sha256} that was, delete that."
        return DigestError(
            f"{_where(member, token)}: CRC-32C {found:08x}, its commit record says {member.crc32c:08x}; the file was "
            f"changed. {RESTORE}; `make verify` lists all that is damaged.{copy}"
        )


def _start(header: bytes) -> int:
    """Where the values of a .npy file of version 1.0 begin."""
    return 10 + int.from_bytes(header[8:10], "little")


def _where(member: Located, token: str) -> str:
    return f"{member.file.where}: {token}.{member.name}"
