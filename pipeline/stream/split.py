"""Who takes which position of a global order: ranks one sample in turn, the workers of a rank one batch in turn.

    rank r of R takes positions start + r, start + r + R, ...     -> n of them, the same n on every rank
    worker w of W takes the n in runs of `batch`: runs w, w + W, ... -> the batches of one process, in the same order

After every rank has taken k samples, the first k * R positions are gone and no other: one number says where a run is,
and any other number of ranks or workers goes on from it. DataLoader asks its workers in turn, so batches come in the
order of a single process as long as its batch size is `batch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from pipeline.stream.order import Indices

Uneven = Literal["drop", "pad"]


def share(left: int, world: int, uneven: Uneven) -> int:
    """Samples that each rank takes of `left` positions: the rest is dropped, or made up from the epoch's beginning."""
    return left // world if uneven == "drop" else -(-left // world)


def runs(count: int, batch: int, worker: int, workers: int) -> Iterator[range]:
    """The runs of a rank's `count` samples that a worker takes, each of at most `batch` places of the rank."""
    for first in range(worker * batch, count, workers * batch):
        yield range(first, min(first + batch, count))


def positions(places: range, *, start: int, rank: int, world: int, size: int) -> Indices:
    """Positions of the global order (of `size` samples) for some places of a rank; padding wraps to its beginning."""
    return (start + rank + np.arange(places.start, places.stop, dtype=np.int64) * world) % max(size, 1)
