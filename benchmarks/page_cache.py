"""The page cache: drop a folder's files from it, and see that they are gone."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def drop(folder: Path) -> None:
    """Drop a folder's files from the page cache.

    Raises:
        RuntimeError: they stayed, so that a cold rate would be a lie.
    """
    stayed = total = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                cached = _cached(file.fileno())
            stayed, total = stayed + int(cached.sum()), total + len(cached)
    if stayed > 0.02 * total:
        raise RuntimeError(f"{folder}: {stayed} of {total} pages are still in the page cache")


def _cached(descriptor: int) -> NDArray[np.bool_]:
    """Which pages of a file are in the page cache (mincore)."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        arguments = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        failed = ctypes.CDLL(None, use_errno=True).mincore(*arguments)
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return (pages & 1).astype(bool)
