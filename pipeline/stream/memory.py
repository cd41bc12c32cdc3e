"""Where the tensors of a batch lie: fresh memory, page-locked memory, or memory that an earlier batch gave back.

A fresh batch of 8 MB costs some 2000 page faults, which on a warm page cache is as much as reading it, and more in
threads, whose allocator returns large blocks to the kernel at once. So the batches that a stream makes in host memory
take turns in a few blocks. A block is taken again only when nothing refers to its tensor any more.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Empty = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Shape and dtype to a tensor that is not initialised."""

_SMALL = 1 << 16
"""Bytes; less than this is not worth keeping."""


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory as torch has it."""
    return torch.empty(shape, dtype=dtype)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Page-locked memory (torch keeps and reuses its blocks); needs CUDA."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Recycled:
    """Memory that comes back when its tensor, and every view of it, is gone. Safe in threads; for one process."""

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[NDArray[np.uint8]]] = defaultdict(deque)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory that was given back, or new memory where there is none of the size."""
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALL:
            return fresh(shape, dtype)
        free = self._free[room := _room(size)]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(room, np.uint8)
        lease = block[:size]  # the storage holds this array, and nobody else does: when it goes, the block is free
        weakref.finalize(lease, free.append, block).atexit = False
        return torch.from_numpy(lease).view(dtype).view(shape)


def _room(size: int) -> int:
    """`size` rounded up by at most an eighth, to one of few: ragged batches have a thousand sizes, each once."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step
