"""Reading at a place of an open file, from many threads at once, by what the system has for it.

Linux has all of it. macOS has no way to ask whether a page is cached, nor to say what will be read; Windows has no read
that leaves the file's own position alone, so that reads of one process take turns there. The bytes are the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import weakref

import numpy as np
from numpy.ctypeslib import as_array
from numpy.typing import NDArray

READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""How a file is opened whose places are read."""
_turns = threading.Lock()
_LINUX = sys.platform == "linux"


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """The `size` bytes from `place` on, fewer where the file ends."""
    data: bytes = _pread(descriptor, size, place)
    while len(data) < size and (more := _pread(descriptor, size - len(data), place + len(data))):
        data += more
    return data


def _seek_and_read(descriptor: int, size: int, place: int) -> bytes:
    with _turns:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.read(descriptor, size)


_pread = getattr(os, "pread", _seek_and_read)


def read_into(descriptor: int, target: memoryview, place: int) -> int:
    """Fill `target` with the bytes from `place` on; how many there were, fewer where the file ends."""
    if not hasattr(os, "preadv"):
        data = read_at(descriptor, len(target), place)
        target[: len(data)] = data
        return len(data)
    done = 0
    while done < len(target) and (count := os.preadv(descriptor, [target[done:]], place + done)):
        done += count
    return done


def is_cached(descriptor: int, place: int) -> bool:
    """Whether a byte is in the page cache: a read that must not wait finds it. False where nobody can tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT))
    except OSError:  # it is not; or the file system cannot tell
        return False


def expect(descriptor: int, start: int, size: int) -> None:
    """Have the kernel begin to read a range: a hint, which a system need not have, and a file system may refuse."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)


def mapped(descriptor: int, size: int) -> memoryview:
    """A file as memory, read-only, for as long as anybody looks at it.

    On Linux it needs no descriptor: Python's own mmap keeps one for each map (but for `trackfd`, from 3.13 on).

    Raises:
        OSError: what the system says.
    """
    if not _LINUX:
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
    address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(code := ctypes.get_errno(), os.strerror(code))
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _LIBC.munmap, address, size).atexit = False
    whole: NDArray[np.uint8] = as_array(memory)
    return whole.data.toreadonly()


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


if _LINUX:
    _LIBC = _libc()  # here, and not at the first file: nothing is loaded or imported while data is read
