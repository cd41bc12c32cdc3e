"""Held-out samples, read when they are asked for, so that a run holds a few batches of them and not all.

Each evaluation reads them anew. The ranks share the batches, so each reads its own share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

import torch

from pipeline.stores.threads import map_ahead
from trainer import distributed
from trainer.batch import Batch, Example, collate
from trainer.data import ExampleMaker
from trainer.students.base import Student

AHEAD = 2
"""Threads that read batches before they are due; twice as many batches wait at most."""


Item = TypeVar("Item")
Result = TypeVar("Result")


class HeldBatches(Sequence[Batch], Generic[Item]):
    """Examples in batches on the CPU, in their order; a batch is read each time that it is asked for.

    Args:
        read: makes one.
        items: what they are made of.
        size: examples a batch; the last one may be smaller.
    """

    def __init__(self, read: Callable[[Item], Example], items: Sequence[Item], size: int) -> None:
        self._read, self._items, self._size = read, items, size

    def __len__(self) -> int:
        return -(-len(self._items) // self._size)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> list[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | list[Batch]:
        places = range(len(self))[at]
        return self._batch(places) if isinstance(places, int) else [self._batch(place) for place in places]

    def _batch(self, place: int) -> Batch:
        return collate([self._read(item) for item in self._part(place)])

    def _part(self, place: int) -> Sequence[Item]:
        return self._items[place * self._size : (place + 1) * self._size]


class HeldOut(HeldBatches[str]):
    """Held-out samples by their tokens."""

    def __init__(self, maker: ExampleMaker, tokens: Sequence[str], size: int) -> None:
        super().__init__(maker.read, tokens, size)
        self._maker = maker

    def blind(self) -> list[Batch]:
        """All of them without images and targets: no image is opened, and a sample is some hundred bytes."""
        return [self._maker.blind(self._part(place)) for place in range(len(self))]


def shared(batches: Sequence[Batch], student: Student) -> Iterator[tuple[int, Batch, bool]]:
    """This rank's batches, read and prepared ahead: (place among all, batch on the CPU, whether it counts).

    As many on every rank, since FSDP needs every rank in each pass: where a rank has none left, the last one comes
    again and does not count.
    """
    world, last = distributed.world_size(), len(batches) - 1
    places = range(distributed.rank(), -(-len(batches) // world) * world, world)
    read = map_ahead(lambda place: student.prepare(batches[min(place, last)]), places, threads=AHEAD)
    for place, batch in zip(places, read, strict=True):
        yield place, batch, place <= last


@torch.no_grad()
def each(
    student: Student, batches: Sequence[Batch], device: torch.device, do: Callable[[int, Batch], Result]
) -> list[Result]:
    """What `do` makes of each batch (its place among all, the batch on the device), on every rank, in their order.

    The ranks share the batches (`shared`). The student is in eval mode meanwhile, and is left as it was.
    """
    training = student.training
    student.eval()
    own: list[tuple[int, Result]] = []
    for place, prepared, counts in shared(batches, student):
        found = do(place, prepared.to(device))
        if counts:
            own.append((place, found))
    student.train(training)
    distributed.reshard(student)
    every = sorted((row for rows in distributed.gathered(own) for row in rows), key=lambda row: row[0])
    return [found for _, found in every]
