"""Values of a log that anyone may have written: looked at without being believed, and shown without being unfolded.

A pickle of a hundred bytes can hold a list of thirty levels, each holding the one below twice: a gigabyte as soon as
something walks it (`repr`, `str`, `numpy.asarray`), though it takes no room until then. Or one that is nested deeper
than Python recurses. So nothing here goes further into a value than the form that it should have: `floats` counts
before it converts, `shown` ends after a few levels, `text` takes nothing but a string.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards_schema.errors import SampleError
from shards_schema.poses import Float64, as_float64

LARGEST: Final = 1e9
"""No metre, pixel, m/s or degree of a log is larger; what is would overflow further on."""
_INT64: Final = 1 << 63
_NUMBER: Final = (bool, int, float, np.bool_, np.integer, np.floating)


class _Short(reprlib.Repr):
    """`repr` of three levels and a few items each, whatever the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 80
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 6

    def repr_ndarray(self, x: NDArray[Any], level: int) -> str:
        if x.size > 32:
            return f"array of {x.dtype}, shape {list(x.shape)}"
        return self.repr_list(x.tolist(), level) if x.ndim else repr(x.item())

    repr__Array = repr_ndarray  # noqa: N815 (reprlib goes by the name of the class)

    def repr_instance(self, x: Any, level: int) -> str:
        return (
            super().repr_instance(x, level)
            if isinstance(x, str | bool | float | complex | np.generic | None)
            else f"a {type(x).__name__}"
        )


def shown(value: object, limit: int = 80) -> str:
    """`value` for a message: at most `limit` printable characters, found in a bounded time.

    Half a surrogate pair, which no UTF-8 document could hold, is escaped as Python does.
    """
    return _Short().repr(value)[:limit].encode("ascii", "backslashreplace").decode()


def floats(values: Any, shape: tuple[int, ...], code: str, what: str, *, unknown: bool = False) -> Float64:
    """`values` (numbers, sequences of them, an array) as finite float64 of `shape`, none beyond `LARGEST`.

    With `unknown`, what is not finite becomes NaN.

    Raises:
        SampleError: code `code`: another shape, not numbers, not finite, too large; the message begins with `what`.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise SampleError(code, f"{what}: expected numbers, got {values.dtype}")
    elif (fault := _fault(values, shape)) is not None:
        raise SampleError(code, f"{what}: expected shape {list(shape)}, got {fault}")
    try:
        if unknown:
            known = np.asarray(values, dtype=np.float64)
            values = np.where(np.isfinite(known), known, 0.0)
        array = as_float64(values, shape, what)
    except (TypeError, ValueError, OverflowError) as error:
        text = str(error)
        raise SampleError(code, text if text.startswith(what) else f"{what}: {text}") from None
    if array.size and np.abs(array).max() > LARGEST:
        raise SampleError(code, f"{what}: {np.abs(array).max():.3g} is larger than anything of a log may be")
    return np.where(np.isfinite(known), array, np.nan) if unknown else array


def _fault(values: object, shape: tuple[int, ...]) -> str | None:
    """What is wrong with nested sequences of numbers that should have `shape`; looks no deeper than that."""
    if not shape:
        return None if isinstance(values, _NUMBER) else shown(values)
    if not isinstance(values, list | tuple | np.ndarray):
        return shown(values)
    if isinstance(values, np.ndarray):
        return None if values.shape == shape and values.dtype.kind in "biuf" else shown(values)
    if len(values) != shape[0]:
        return f"[{len(values)}]: {shown(values)}"
    return next((fault for value in values if (fault := _fault(value, shape[1:])) is not None), None)


def text(value: object, code: str, what: str) -> str:
    """`value`, which must be a string that UTF-8 can hold and a file name may: no half surrogate pair, no NUL.

    Raises:
        SampleError: code `code`.
    """
    if not isinstance(value, str):
        raise SampleError(code, f"{what}: expected text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SampleError(code, f"{what}: no Unicode text: {shown(value)}") from None
    if "\0" in value:
        raise SampleError(code, f"{what}: a NUL character in {shown(value)}")
    return str(value)


def integer(value: object, code: str, what: str) -> int:
    """`value`, which must be an integer of 64 bits (numpy's too, but no bool).

    Raises:
        SampleError: code `code`.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
        return int(value)
    raise SampleError(code, f"{what} should be an integer of 64 bits, got {shown(value)}")


def items(value: object, code: str, what: str) -> Sequence[Any]:
    """`value`, which must be a list, a tuple or an array.

    Raises:
        SampleError: code `code`.
    """
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        out: list[Any] = list(value)
        return out
    raise SampleError(code, f"{what} should be a list, got {shown(value)}")
