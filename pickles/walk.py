"""A walk over the opcodes of a pickle that runs none of them, and a form of it that is then run as it was walked.

CPython's unpickler allocates before it reads: 16 bytes for each memo place up to the highest one named, as much as a
byte array announces. And it does not always run the bytes in the order in which they stand: where a frame ends within
an opcode, or begins within another frame, it drops what is left in its buffer and goes on elsewhere, so that a walk and
a run see two different programs. `Walk.check` refuses the first, and `one_frame` takes the second away: within a single
frame that holds everything there is nothing to drop, and a frame inside it either changes nothing or ends the load.
(It also spares a call for each opcode of protocols 2 and 3, which have no frames: twice the speed.)
"""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, Final

OPCODES: Final = {op.name: ord(op.code) for op in pickletools.opcodes}
_NAMES: Final = {code: name for name, code in OPCODES.items()}
_PREFIXED: Final = {
    OPCODES[name]: width
    for width, names in {
        1: "SHORT_BINUNICODE SHORT_BINBYTES LONG1",
        4: "BINUNICODE BINBYTES LONG4",
        8: "BINUNICODE8 BINBYTES8 BYTEARRAY8",
    }.items()
    for name in names.split()
}
"""Opcodes whose argument is a little-endian length of that many bytes, then so many bytes."""
_STOP, _GLOBAL, _LONG_BINPUT = OPCODES["STOP"], OPCODES["GLOBAL"], OPCODES["LONG_BINPUT"]

_PLAIN: Final = {
    0: "MARK POP POP_MARK NONE NEWTRUE NEWFALSE EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET REDUCE BUILD MEMOIZE STACK_GLOBAL",
    1: "BININT1 BINGET BINPUT PROTO",
    2: "BININT2",
    4: "BININT LONG_BINGET",
    8: "BINFLOAT FRAME",
}
"""What plain data needs: size of the argument -> names of opcodes. Neither persistent ids nor the extension registry,
which would go past `find_class`, nor protocols 0 and 1."""


class RefusedError(Exception):
    """What was asked for."""


class Walk:
    """The opcodes that a kind of pickle may hold.

    Those of plain data, STOP, GLOBAL, LONG_BINPUT up to the pickle's size, and those with a length.

    Args:
        more: names of others that have no argument.
    """

    def __init__(self, *more: str) -> None:
        allowed = {**_PLAIN, 0: " ".join((_PLAIN[0], *more))}
        classes = {size: _class(names) for size, names in allowed.items()}
        runs = b"|".join(codes + b"." * size for size, codes in classes.items())
        # memo places below 2^20 (16 MB) are LONG_BINPUTs that need no look of their own
        self._run = re.compile(b"(?:" + runs + rb"|r..[\x00-\x0f]\x00)*+", re.DOTALL)
        self._cut = re.compile(b"|".join(classes.values()), re.DOTALL)

    def check(self, data: bytes) -> None:
        """Walk `data` up to STOP.

        Raises:
            RefusedError: an opcode that is not allowed, or a memo place beyond the pickle's size.
            EOFError: it is cut short, or announces more than it has.
            pickle.UnpicklingError: a byte that is no opcode.
        """
        match, prefixed, end, at = self._run.match, _PREFIXED, len(data), 0
        while True:
            at = match(data, at).end()  # type: ignore[union-attr]  # it always matches, at least nothing
            if at >= end:
                raise EOFError("it ends before its STOP opcode")
            code = data[at]
            if width := prefixed.get(code):
                body = at + 1 + width
                at = body + int.from_bytes(data[at + 1 : body], "little")
                if at > end:
                    raise EOFError(f"its last string or array should go on to byte {at}")
            elif code == _STOP:
                return
            elif code == _GLOBAL:
                for _ in range(2):  # the module, and the name
                    at = data.find(b"\n", at) + 1
                    if at == 0:
                        raise EOFError("it ends within the name of a class")
            elif code == _LONG_BINPUT:
                if (index := int.from_bytes(data[at + 1 : at + 5], "little")) > end:
                    raise RefusedError(f"memo place {index} in a pickle of {end} bytes")
                at += 5
            elif self._cut.match(data, at):
                raise EOFError("it ends within an opcode")
            elif code in _NAMES:
                raise RefusedError(f"opcode {_NAMES[code]} at byte {at}")
            else:
                raise pickle.UnpicklingError(f"no opcode is 0x{code:02x}, at byte {at}")

    def load(self, data: bytes, unpickler: Callable[[BinaryIO], pickle.Unpickler]) -> Any:
        """Walk `data`, then run it. The garbage collector rests meanwhile.

        It would look for cycles again and again among objects that all stay: half of the time of a 5 MB log.

        Raises:
            RefusedError, EOFError, pickle.UnpicklingError: see `check`; and what the unpickler raises.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            self.check(data)
            return unpickler(one_frame(data)).load()
        finally:
            if collecting:
                gc.enable()


def one_frame(data: bytes) -> io.BytesIO:
    """`data` as a file for `pickle.Unpickler`, in a frame of its own."""
    return io.BytesIO(b"".join((bytes([OPCODES["FRAME"]]), len(data).to_bytes(8, "little"), data)))


def _class(names: str) -> bytes:
    return b"[" + b"".join(re.escape(bytes([OPCODES[name]])) for name in names.split()) + b"]"
