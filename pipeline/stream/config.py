"""The recipe of a stream: order, split, batches, threads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.stream import order, split


class StreamConfig(BaseModel):
    """How a stream is ordered, dealt and read.

    Attributes:
        shuffle: ``none``, ``global`` or ``window``; see `pipeline.stream.order`.
        window: shards that are mixed with each other, and so open at a time in each lane (``window`` only).
        lanes: stretches of shards that are read side by side; a multiple of ranks x workers (``window`` only).
        seed: of the order.
        uneven: when ranks do not divide the samples, ``drop`` the rest or ``pad`` it from the epoch's beginning.
        batch_size: of one rank; DataLoader workers take whole batches in turn.
        global_batch: samples of an optimiser step over all ranks; kept in the state, where another one is refused.
            None is no such check.
        threads: that read and decode, in each process; 0 is none, in the caller's own.
        prefetch: samples that are read ahead, in each process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shuffle: order.Mode = "global"
    window: int = Field(default=8, ge=1)
    lanes: int = Field(default=1, ge=1)
    seed: int = 0
    uneven: split.Uneven = "drop"
    batch_size: int = Field(default=1, ge=1)
    global_batch: int | None = Field(default=None, ge=1)
    threads: int = Field(default=2, ge=0)
    prefetch: int = Field(default=32, ge=1)

    def order_state(self) -> dict[str, Any]:
        """What of this decides the order."""
        keep = {"shuffle", "seed"} | ({"window", "lanes"} if self.shuffle == "window" else set())
        return self.model_dump(mode="json", include=keep)
