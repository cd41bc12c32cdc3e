"""Reading the pickles of a dataset without running what they ask for.

A pickle is a program. `load_pickle` takes the small part of that language which plain data needs - containers,
numbers, strings, numpy arrays and scalars of numbers and strings - and refuses the rest before it is run:

1. `pickles.walk` walks the opcodes once without running any. What no log needs is refused here:
   persistent ids, the extension registry, ``NEWOBJ``, ``INST``, ``OBJ``, out-of-band buffers, the text opcodes of
   protocols 0 and 1. So are a memo place above the file's size and lengths beyond its end.
2. The C unpickler then runs it with a `find_class` that looks (module, name) up in a table. No entry of the table is
   a real class or function of another module: each is a small object of this file that checks its arguments, holds
   no state that a ``BUILD`` could set, and cannot make an object array. Copies are charged against a budget.

Guarantee: no code but this file's, the unpickler's and numpy's array constructor runs, and memory stays within a
small multiple of the file's size. Not promised: a bound on time (nested tuples as dict keys take as long as they
like). Trade-off: the same work takes 1.9 times as long as `pickle.loads` (5 times for protocol 2, which OpenScene does
not write), and since the garbage collector rests meanwhile, as long as that on a log of 5 MB. Object arrays, datetimes
and records are refused, as are sets of protocols 2 and 3.
"""

from __future__ import annotations

import pickle
import re
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from pickles.walk import RefusedError, Walk
from shards_schema.errors import SampleError, UnsafePickleError
from shards_schema.inputs.disguises import disguise

_COPIES: Final = 4
"""Bytes that may be copied, per byte of the file; each honest array is in the file once and copied once."""

_WALK: Final = Walk()
_PLAIN: Final = re.compile(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][0-9]{1,6}")


def load_pickle(data: bytes | BinaryIO, where: str) -> Any:
    """The plain data in a pickle of protocol 2 or later (numpy 1 or 2, both spellings of its modules).

    Arrays are `numpy.ndarray`s; those that were not contiguous when written come as a subclass that adds nothing.

    Args:
        data: the bytes, or a binary file to read them from.
        where: names the pickle in messages, e.g. the log's path.

    Raises:
        UnsafePickleError: code ``unsafe_pickle``: it asks for something that is not on the list.
        SampleError: code ``log_unreadable``: it is cut short, or not a pickle.
    """
    raw = data if isinstance(data, bytes) else data.read()
    try:
        return _WALK.load(raw, lambda file: _Unpickler(file, len(raw)))
    except RefusedError as error:
        raise UnsafePickleError(
            "unsafe_pickle",
            f"{where} asks for {error}: not on the list of what a log of plain data may hold; nothing of it was run. "
            "Find out who wrote this file",
        ) from None
    except Exception as error:  # bytes that are no pickle can fail in any way: see pickle.UnpicklingError
        raise SampleError(
            "log_unreadable",
            f"{where} ({len(raw)} bytes) is not a whole pickle: "
            + (disguise(raw) or f"{type(error).__name__}: {error}; fetch it again"),
        ) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file)
        budget = _Budget(size)
        self._table = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): _DTYPE,
            ("collections", "OrderedDict"): _ORDERED_DICT,
            ("_codecs", "encode"): _Encode(budget),
            ("builtins", "bytes"): _EMPTY_BYTES,
            ("__builtin__", "bytes"): _EMPTY_BYTES,
        }
        for core in ("numpy.core", "numpy._core"):
            self._table[f"{core}.multiarray", "_reconstruct"] = _Reconstruct(budget)
            self._table[f"{core}.multiarray", "scalar"] = _SCALAR
            self._table[f"{core}.numeric", "_frombuffer"] = _FromBuffer(budget)

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for ``module.name``; the whole of both must match, so a dotted name never does."""
        try:
            return self._table[module, name]
        except KeyError:
            raise RefusedError(f"{module}.{name}") from None


class _Budget:
    """What one load may still copy."""

    __slots__ = ("left", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = _COPIES * size

    def charge(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise RefusedError(f"more than {_COPIES} times its own size ({self.size} bytes) in copies")


class _StandIn:
    """What `find_class` gives in the place of a class or function: BUILD cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise RefusedError(f"a change of {type(self).__name__.strip('_')}")


class _Name(_StandIn):
    """``numpy.ndarray``, which pickles only ever pass on to ``_reconstruct``."""

    __slots__ = ()


class _EmptyBytes(_StandIn):
    """``bytes()``, as protocol 2 writes b""."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _OrderedDict(_StandIn):
    """``OrderedDict()``; the items follow by SETITEMS, into a dict, which keeps their order too."""

    __slots__ = ()

    def __call__(self) -> dict[Any, Any]:
        return {}


class _Encode(_StandIn):
    """``_codecs.encode(text, "latin1")``, as protocol 2 writes bytes."""

    __slots__ = ("_budget",)

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1" or not isinstance(text, str):
            raise RefusedError(f"_codecs.encode with encoding {encoding!r}")
        self._budget.charge(len(text))
        return text.encode("latin1")


class _Dtype:
    """A dtype under construction. Not a real one: ``numpy.dtype.__setstate__`` trusts what it is given."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, subarray, names, fields, size or -1, alignment or -1, flags)
        if state[2:5] != (None, None, None) or state[5] not in (-1, self.dtype.itemsize) or state[1] not in "<>=|":
            raise RefusedError(f"a numpy dtype with state {state!r:.80}")
        if state[1] != "|":
            self.dtype = self.dtype.newbyteorder(state[1])


class _DtypeMaker(_StandIn):
    """``numpy.dtype("f8", False, True)`` for numbers, bools and strings."""

    __slots__ = ()

    def __call__(self, kind: str, align: object = False, copy: object = True) -> _Dtype:
        if not isinstance(kind, str) or not _PLAIN.fullmatch(kind):
            raise RefusedError(f"numpy dtype {kind!r:.40}")
        return _Dtype(np.dtype(kind))


class _FromBuffer(_StandIn):
    """``_frombuffer(bytes, dtype, shape, order)``: an array on the bytes of the pickle, without a copy."""

    __slots__ = ("_budget",)

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    def __call__(
        self, buffer: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: Any, axes: Any = None
    ) -> NDArray[Any]:
        array = np.frombuffer(buffer, dtype.dtype)
        if not array.size and max(shape, default=0) > self._budget.size:
            raise RefusedError(f"an empty array of shape {shape}")
        if axes is not None:
            return array.reshape(shape).transpose(axes)
        return array.reshape(shape, order=order)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array under construction, and then simply an array; it pickles as a plain one."""

    __slots__ = ("_budget",)
    _budget: _Budget

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, fortran, raw = state
        if not isinstance(raw, bytes):
            raise RefusedError("a numpy array of objects")
        self._budget.charge(len(raw))
        if not raw and max(shape, default=0) > self._budget.size:
            raise RefusedError(f"an empty array of shape {shape}")
        super().__setstate__((version, shape, dtype.dtype, fortran, raw))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


class _Reconstruct(_StandIn):
    """``_reconstruct(ndarray, (0,), b"b")``: an empty array, which BUILD then fills."""

    __slots__ = ("_budget",)

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget

    def __call__(self, subtype: object, shape: object, kind: object) -> NDArray[Any]:
        if subtype is not _NDARRAY:
            raise RefusedError("a numpy array of another class than ndarray")
        array = _Array((0,), np.int8)
        array._budget = self._budget
        return array


class _Scalar(_StandIn):
    """``scalar(dtype, bytes)``: a numpy scalar."""

    __slots__ = ()

    def __call__(self, dtype: _Dtype, raw: bytes) -> Any:
        if len(raw) != dtype.dtype.itemsize:
            raise ValueError(f"a numpy scalar of {dtype.dtype} with {len(raw)} bytes")
        return np.frombuffer(raw, dtype.dtype)[0] if raw else dtype.dtype.type()


_NDARRAY: Final = _Name()
_DTYPE: Final = _DtypeMaker()
_ORDERED_DICT: Final = _OrderedDict()
_EMPTY_BYTES: Final = _EmptyBytes()
_SCALAR: Final = _Scalar()
