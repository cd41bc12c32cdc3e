"""Held-out samples, read when they are asked for, so that a run holds a few batches of them and not all.

Each evaluation reads them anew. The ranks share the batches, so each reads its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from pipeline.stores.threads import map_ahead
from trainer import distributed
from trainer.batch import Batch, collate
from trainer.data import ExampleMaker
from trainer.students.base import Student

AHEAD = 2
"""Threads that read batches before they are due; twice as many batches wait at most."""


class HeldOut(Sequence[Batch]):
    """Samples in batches on the CPU, in their order; a batch is read each time that it is asked for.

    Args:
        maker: reads them.
        tokens: of the samples.
        size: samples a batch; the last one may be smaller.
    """

    def __init__(self, maker: ExampleMaker, tokens: Sequence[str], size: int) -> None:
        self._maker, self._tokens, self._size = maker, tokens, size

    def __len__(self) -> int:
        return -(-len(self._tokens) // self._size)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> list[Batch]: ...
    def __getitem__(self, at: int | slice) -> Batch | list[Batch]:
        places = range(len(self))[at]
        return self._read(places) if isinstance(places, int) else [self._read(place) for place in places]

    def _read(self, place: int) -> Batch:
        return collate([self._maker.read(token) for token in self._part(place)])

    def _part(self, place: int) -> Sequence[str]:
        return self._tokens[place * self._size : (place + 1) * self._size]

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
