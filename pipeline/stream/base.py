"""What every stream has: a start, a share of the positions from there to the epoch's end, a state that is one number.

A `Walk` is one process's way through that share, read ahead and yielded in order. It knows how far it is (`state_dict`,
torchdata's protocol for the iterators of workers), so StatefulDataLoader resumes to the batch; a plain DataLoader needs
none of it, as the stream's own state is one number.

Iterating is a pure function of the start (epoch, position) that `set_epoch` and `load_state_dict` set, so it may happen
in any process: a trainer's own, or those of DataLoader. How far the trainer has come is counted beside it, with
`advance`, because only the trainer knows what it has used of what was read ahead. The start lives in shared memory, so
persistent workers see it move.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.stream import order, split
from pipeline.stream.collate import Collate, pin
from pipeline.stream.config import StreamConfig
from pipeline.stream.fetch import Reading, ahead
from shards_schema.errors import ConfigError, MismatchError
from shards_schema.inputs.models import validated

STATE_VERSION = 1

Place = tuple[int, int]
"""Which dataset of a stream, and which sample of it (index in plan order)."""


class Stream(IterableDataset[Any], ABC):
    """The part of `ShardStream` and `Mixture` that does not know what a sample is.

    Args:
        config: see `StreamConfig`; its fields in a mapping will do.
        size: samples of the global order of an epoch, over all ranks.
        rank: of this process; None asks torch.distributed, then the environment (torchrun's RANK), then it is 0.
        world_size: likewise.

    Raises:
        ConfigError: rank and world size do not fit, or an epoch would be empty.
    """

    def __init__(
        self, config: StreamConfig | Mapping[str, Any] | None, size: int, rank: int | None, world_size: int | None
    ) -> None:
        self.config, self.size = validated(StreamConfig, config or {}, "stream: "), size
        self.rank, self.world_size = _world(rank, world_size)
        if not split.share(size, self.world_size, self.config.uneven):
            raise ConfigError(f"{size} samples for {self.world_size} ranks: none would get one; use fewer ranks")
        # epoch, position, whether another process has begun to read
        self._shared = torch.zeros(3, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._advanced: int | None = None
        self._yielded = 0

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of the sample set: all that the order is made from, but seed and mode."""

    @abstractmethod
    def locate(self, epoch: int, positions: order.Indices) -> list[Place]:
        """What stands at some positions of the global order of an epoch."""

    @abstractmethod
    def reader(self, *, lazy: bool) -> Reading:
        """Reads samples, places to a list in order, for the process that asks; `lazy` as in `Fetcher.read`."""

    @property
    @abstractmethod
    def works(self) -> bool:
        """See `Fetcher.works`."""

    @property
    @abstractmethod
    def collate(self) -> Collate:
        """Makes batches of what this stream yields (without a transform that changes its form)."""

    def __len__(self) -> int:
        """Samples that this rank takes in a whole epoch."""
        return split.share(self.size, self.world_size, self.config.uneven)

    def __iter__(self) -> Iterator[Any]:
        """This process's samples, from the start to the end of the epoch."""
        begin, finish = self.reader(lazy=False)
        return Walk(self, Reading(begin, lambda begun: finish(begun)[0]), unit=1, works=self.works)

    def batches(
        self,
        collate: Callable[[list[Any]], Any] | None = None,
        *,
        pin_memory: bool = False,
        drop_last: bool = False,
    ) -> Batches:
        """The same samples in batches of `config.batch_size`, made in the reading threads, where there are any.

        Args:
            collate: a list of samples to a batch; None is `collate` of the stream, which then copies arrays once, from
                the file into the batch, and checks them there.
            pin_memory: put tensors into page-locked memory, where there is CUDA.
            drop_last: leave out a last batch that is short.

        Raises:
            ConfigError: with `drop_last` an epoch would have no batch.
        """
        made = Batches(self, collate, pin_memory=pin_memory and torch.cuda.is_available(), drop_last=drop_last)
        if not len(made):
            raise ConfigError(
                f"drop_last=True leaves no batch: each of {self.world_size} ranks has {len(self)} samples an epoch, "
                f"batch_size is {self.config.batch_size}; take a smaller batch_size, fewer ranks, or drop_last=False"
            )
        return made

    @property
    def epoch(self) -> int:
        """The epoch that is read."""
        return int(self._shared[0])

    @property
    def start(self) -> int:
        """The position of this epoch that iterating begins at."""
        return int(self._shared[1])

    @property
    def position(self) -> int:
        """Samples of this epoch's global order that the trainer has used, over all ranks.

        Raises:
            RuntimeError: nobody has counted: DataLoader workers read, and `advance` was never called.
        """
        if get_worker_info() is not None:
            return self.start
        if self._advanced is None and self._shared[2]:
            raise RuntimeError(
                "DataLoader workers read this stream, ahead of the trainer, so where the trainer is cannot be told "
                "from here: call stream.advance(samples over all ranks) after each step, or use torchdata's "
                "StatefulDataLoader and its state_dict"
            )
        return self.after(self._yielded * self.world_size if self._advanced is None else self._advanced)

    def after(self, taken: int) -> int:
        """The position after `taken` samples over all ranks from the start; what would be dropped counts as used."""
        position = min(self.start + taken, self.size)
        return position if split.share(self.size - position, self.world_size, self.config.uneven) else self.size

    def advance(self, samples: int) -> None:
        """Count samples that the trainer has used since the start, over all ranks; call it after each step."""
        self._advanced = (self._advanced or 0) + samples

    def count(self, yielded: int) -> None:
        """For iterators: samples that this process's own iteration has yielded since the start."""
        self._yielded = yielded

    def read_elsewhere(self) -> None:
        """For iterators: a worker process reads this stream, so that nobody can count here."""
        self._shared[2] = 1

    def set_epoch(self, epoch: int) -> None:
        """Start at the beginning of an epoch; in the epoch where the stream stands already, change nothing.

        So `for epoch in range(stream.epoch, epochs): stream.set_epoch(epoch)` finishes a resumed epoch first.
        """
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Start anywhere.

        Raises:
            ConfigError: there is no such place.
        """
        if epoch < 0 or not 0 <= position <= self.size:
            raise ConfigError(f"no position {position} of epoch {epoch}: an epoch has {self.size} samples")
        self._shared[0], self._shared[1], self._shared[2] = epoch, position, 0
        self._advanced, self._yielded = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: plain JSON, the same on every rank.

        Raises:
            RuntimeError: see `position`.
        """
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "position": self.position,
            "digest": self.digest,
            "order": self.config.order_state(),
            "global_batch": self.config.global_batch,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, any_batch: bool = False) -> None:
        """Start where a run stopped; the numbers of ranks, workers and threads may differ from that run's.

        Args:
            state: from `state_dict`.
            any_batch: accept another `global_batch`.

        Raises:
            MismatchError: the state is of other samples, another order or another global batch; both are named.
        """
        own = {"version": STATE_VERSION, "digest": self.digest, "order": self.config.order_state()}
        for what, value in own.items():
            if state.get(what) != value:
                raise MismatchError(
                    f"stream state: {what} is {state.get(what)}, this stream has {value}; they are orders of different "
                    "samples, so there is nowhere to go on from: open the dataset, columns and config of that run"
                )
        theirs, ours = state.get("global_batch"), self.config.global_batch
        if not any_batch and None not in (theirs, ours) and theirs != ours:
            raise MismatchError(
                f"stream state: global_batch is {theirs}, this stream has {ours}; set batch_size x ranks x "
                "accumulation so that they agree, or pass any_batch=True to resume with other batches of the same order"
            )
        self.seek(int(state["epoch"]), int(state["position"]))


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
        collate = self._collate or replace(self.stream.collate, pinned=self._pin)

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


def _world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ConfigError(f"give rank and world_size or neither, got {rank} and {world_size}")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} of {world_size} ranks: expected 0 <= rank < world_size")
    return rank, world_size
