"""Byte codecs: the same values always become the same bytes.

JSON documents (`dataset.json`, `column.json`, commit records) are *sealed*: the last key, ``sha256``, is the digest of
the canonical JSON (sorted keys, no spaces) of all the others, so that a flipped byte is found when the document is
read. Arrays are `.npy` version 1.0, C order, no pickles. Tar members have mode 0644 and no time, user or group.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards_schema.errors import DatasetError, DigestError
from shards_schema.inputs.documents import UnreadableError, parse_json

TAR_BLOCK = 512
TAR_END = bytes(2 * TAR_BLOCK)
"""Two zero blocks end a tar; a file without them was cut."""

_SEAL = "sha256"

_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>|][biufcSU]\d+)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>|\d+,|\d+(?:, \d+)+)\), \} *\n",
    re.DOTALL,
)


def canonical_json(obj: Any) -> bytes:
    """JSON with sorted keys and no spaces; NaN and infinity are refused (ValueError)."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def digest_of(obj: Any) -> str:
    """sha256 of `canonical_json(obj)`, hexadecimal."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def seal(obj: Mapping[str, Any], *, compact: bool = False) -> bytes:
    """A sealed document: `obj` as JSON with its digest as the last key, ending in a newline.

    Args:
        obj: JSON values; must not have a key ``sha256`` at the top.
        compact: one line, for documents with thousands of numbers; else indented for people.
    """
    document = {**obj, _SEAL: digest_of(obj)}
    if compact:
        text = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    else:
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    return text.encode() + b"\n"


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The inverse of `seal`, without the digest key.

    Raises:
        DigestError: the digest is absent or is not that of the rest.
        DatasetError: not JSON, or not an object.
    """
    try:
        document = parse_json(data)
    except UnreadableError as error:
        raise DatasetError(f"{where} {error}; the file is damaged") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{where}: expected a JSON object, got {type(document).__name__}")
    recorded = document.pop(_SEAL, None)
    try:
        found = digest_of(document)
    except (
        ValueError,
        RecursionError,
    ) as error:  # NaN, a lone surrogate, or too deep
        raise DigestError(f"{where}: damaged ({error})") from error
    if recorded != found:
        raise DigestError(f"{where}: its seal says sha256 {recorded}, its content has {found}; the file was changed")
    return document


def seal_of(data: bytes) -> str:
    """The digest that a sealed document carries (not checked)."""
    return str(json.loads(data)[_SEAL])


def npy_bytes(array: NDArray[Any]) -> bytes:
    """`array` as a `.npy` file, version 1.0, C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def load_npy(data: bytes | memoryview, where: str) -> NDArray[Any]:
    """The array of a `.npy` file of version 1.0 in C order, read-only and without a copy of its values.

    Raises:
        DatasetError: not such a `.npy`, a pickled one, or shorter or longer than its header says.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, dtype = _npy_header(bytes(data[:start]))
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: not a .npy array ({error})") from error
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise DatasetError(f"{where}: expected {dtype} {list(shape)}, got {len(data) - start} bytes")
    array: NDArray[Any] = np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)
    return array


@functools.lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype. A dataset has a handful of headers and reads each a million times.

    numpy's own parser asks Python's compiler, which in CPython 3.11 fails at random when threads call it at once
    ("AST constructor recursion depth mismatch").
    """
    found = _NPY_HEADER.fullmatch(header)
    if found is None:
        raise ValueError("expected a header of version 1.0, C order, of a plain dtype")
    shape = tuple(int(size) for size in found["shape"].replace(b",", b" ").split())
    return shape, np.dtype(found["dtype"].decode())


def tar_header(name: str, size: int) -> bytes:
    """The header block of a member: ustar, mode 0644, no time, no owner. Names have at most 100 characters."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def tar_padding(size: int) -> bytes:
    """The zeros after `size` bytes of a member, up to the next block."""
    return bytes(-size % TAR_BLOCK)
