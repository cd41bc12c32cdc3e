"""A process's way through an epoch: its share of the positions, read ahead, yielded in order.

The iterators know how far they are (`state_dict`, torchdata's protocol for the iterators of workers), so
StatefulDataLoader resumes to the batch; a plain DataLoader needs none of it, as the stream's own state is one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.stream import memory, split
from pipeline.stream.collate import pin
from pipeline.stream.fetch import Reading, ahead
from shards_schema.errors import MismatchError

if TYPE_CHECKING:
    from pipeline.stream.base import Place, Stream


class Walk:
    """From a stream's start to the end of its epoch, the part of this process (rank and DataLoader worker).

    Args:
        stream: whose start and split are taken.
        reading: the places of one item (a sample or a batch) to what is yielded; called in the reading threads.
        unit: places of an item; the last item of an epoch may have fewer.
        works: whether an item is more work than to copy it, which decides on threads where the config does not.
        drop_last: whether such an item is left out.
    """

    def __init__(self, stream: Stream, reading: Reading, *, unit: int, works: bool, drop_last: bool = False) -> None:
        info = get_worker_info()
        self._worker, self._workers = (0, 1) if info is None else (info.id, info.num_workers)
        self._stream, self._reading, self._unit, self._drop_last = stream, reading, unit, drop_last
        self._threads = stream.config.threads_for(works)
        self._begin(stream.epoch, stream.start, 0)
        if info is None:
            stream.count(0)
        else:
            stream.read_elsewhere()

    def _begin(self, epoch: int, start: int, taken: int) -> None:
        self._epoch, self._start, self._taken = epoch, start, taken
        self._items: Iterator[Any] | None = None

    def _asks(self) -> Iterator[Sequence[Place]]:
        stream, config = self._stream, self._stream.config
        count = split.share(stream.size - self._start, stream.world_size, config.uneven)
        runs = split.runs(count, config.batch_size, self._worker, self._workers)
        if self._drop_last:
            runs = (run for run in runs if len(run) == config.batch_size)
        return _places(stream, runs, self._epoch, self._start, self._unit)

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Any:
        if self._items is None:
            depth = max(self._threads, self._stream.config.prefetch // self._unit, 1)
            asks = islice(self._asks(), self._taken, None)
            self._items = ahead(*self._reading, asks, threads=self._threads, depth=depth)
        item = next(self._items)
        self._taken += 1
        self._stream.count(self._taken * self._unit)
        return item

    def close(self) -> None:
        """Stop the threads now; without it they stop when the iterator is let go."""
        if self._items is not None:
            self._items.close()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        """Where this process's part is; good for the same worker of as many."""
        return {"epoch": self._epoch, "start": self._start, "taken": self._taken, "workers": self._workers}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on there.

        Raises:
            MismatchError: the state is of another number of workers; the stream's own state knows no such limit.
        """
        if state["workers"] != self._workers:
            raise MismatchError(
                f"the state of a DataLoader worker, one of {state['workers']}; here are {self._workers}: keep their "
                "number, or keep stream.state_dict(), which holds for any"
            )
        self.close()
        self._begin(state["epoch"], state["start"], state["taken"])


def _places(stream: Stream, runs: Iterator[range], epoch: int, start: int, unit: int) -> Iterator[Sequence[Place]]:
    """Asks of `unit` places. No method: its frame must not hold the walk, which would then outlive its last user."""
    for run in runs:
        places = stream.locate(
            epoch, split.positions(run, start=start, rank=stream.rank, world=stream.world_size, size=stream.size)
        )
        for first in range(0, len(places), unit):
            yield places[first : first + unit]


class Batches(IterableDataset[Any]):
    """A stream in batches; see `Stream.batches`."""

    def __init__(
        self, stream: Stream, collate: Callable[[list[Any]], Any] | None, *, pin_memory: bool, drop_last: bool
    ) -> None:
        self.stream, self._collate, self._pin, self._drop_last = stream, collate, pin_memory, drop_last

    def __len__(self) -> int:
        """Batches that this rank takes in a whole epoch."""
        size = self.stream.config.batch_size
        return len(self.stream) // size if self._drop_last else -(-len(self.stream) // size)

    def set_epoch(self, epoch: int) -> None:
        """`Stream.set_epoch`, for those who look for it on a loader's dataset."""
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        # Our own collate copies each array itself; another's gets memory that it may keep.
        own = self._collate is None
        begin, finish = self.stream.reader(lazy=own)
        into = memory.pinned if self._pin else memory.Recycled()
        collate = self._collate or self.stream.collate.into(into)

        def batch(begun: Any) -> Any:
            made = collate(finish(begun))
            return pin(made) if self._pin and not own else made

        return Walk(
            self.stream,
            Reading(begin, batch),
            unit=self.stream.config.batch_size,
            works=self.stream.works or not own,
            drop_last=self._drop_last,
        )
