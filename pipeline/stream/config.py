"""The recipe of a stream: order, split, batches, threads. Only speed depends on the last two fields."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.stream import order, split
from shards_schema.inputs.models import StrictModel

_WORKING_THREADS = 2


class StreamConfig(StrictModel):
    """How a stream is ordered, dealt and read."""

    shuffle: order.Mode = "global"
    """``none``, ``global`` or ``window``; see `pipeline.stream.order`."""
    window: int = Field(default=8, ge=1, le=1 << 20)
    """Shards that are mixed with each other, and so open at a time in each lane (``window`` only)."""
    lanes: int = Field(default=1, ge=1, le=1 << 20)
    """Stretches of shards that are read side by side; a multiple of ranks x workers (``window`` only)."""
    seed: int = 0
    """Of the order."""
    uneven: split.Uneven = "drop"
    """When ranks do not divide the samples, ``drop`` the rest or ``pad`` it from the epoch's beginning."""
    batch_size: int = Field(default=1, ge=1, le=1 << 20)
    """Of one rank; DataLoader workers take whole batches in turn."""
    global_batch: int | None = Field(default=None, ge=1)
    """Samples of an optimiser step over all ranks; kept in the state, where another one is refused. None is no such
    check."""
    threads: int | None = Field(default=None, ge=0, le=1024)
    """That read and decode, in each process; 0 is none, in the caller's own. None is 0 where arrays, JSON and bytes are
    copied from a local disk and nothing else is to do, which is faster than any number of threads, and 2 where images
    or targets are decoded, a store is asked, or a transform or collate of yours is called."""
    prefetch: int = Field(default=32, ge=1, le=1 << 20)
    """Samples that are read ahead, in each process; without threads, that the disk is told to expect."""

    def threads_for(self, works: bool) -> int:
        """`threads`, or what None is where a sample is more work than to copy it (`works`), or is not."""
        if self.threads is not None:
            return self.threads
        return _WORKING_THREADS if works else 0

    def order_state(self) -> dict[str, Any]:
        """What of this decides the order."""
        keep = {"shuffle", "seed"} | ({"window", "lanes"} if self.shuffle == "window" else set())
        return self.model_dump(mode="json", include=keep)
