"""From a token to tensors, some samples ahead of the trainer, in order.

A read has two halves: to begin it finds the bytes and asks the disk for them, and does not wait; to finish it copies,
checks and decodes. With threads, both run in them, ahead of the trainer: threads, not processes, because copying an
array and decoding a JPEG let go of the GIL, while a 1 MB sample that comes from another process is copied twice more.
Without threads reads begin ahead, so that the disk works while the trainer does, and are finished when the trainer
asks: where nothing is decoded that is faster, as threads then only wait for each other and for the GIL.

Either way the look-ahead is bounded, the order is that of the asks, a fault is raised where the trainer would have got
the sample, and nothing is left running when the iteration ends, however it ends.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.reading.members import by_column, several
from pipeline.reading.opened import Found, Opened, Wanted
from pipeline.reading.reader import Dataset, opened
from pipeline.stores.decode import decode_jpeg
from pipeline.stores.remote import is_local
from pipeline.stores.threads import map_ahead
from shards_schema.errors import AbsentError, ConfigError, DatasetError, SampleError

Ask = TypeVar("Ask")
Begun = TypeVar("Begun")
Got = TypeVar("Got")

Transform = Callable[[dict[str, Any]], Any]


class Reading(NamedTuple):
    """The two halves of a read, as functions: `begin` of what is asked for, which does not fail, then `finish`."""

    begin: Callable[[Any], Any]
    finish: Callable[[Any], Any]


def ahead(
    begin: Callable[[Ask], Begun],
    finish: Callable[[Begun], Got],
    asks: Iterator[Ask],
    *,
    threads: int,
    depth: int,
) -> Iterator[Got]:
    """`finish(begin(ask))` of each ask, with at most `depth` of them under way in `threads` threads.

    With 0 threads at most `depth` are begun. Their number grows by one with each item, so that the first need not wait
    for the disk to be told of all.
    """
    if threads == 0:
        begun: deque[Begun] = deque(begin(ask) for ask in islice(asks, 1))
        while begun:
            begun.extend(begin(ask) for ask in islice(asks, min(2, depth + 1 - len(begun))))
            yield finish(begun.popleft())
        return
    yield from map_ahead(lambda ask: finish(begin(ask)), asks, threads=threads, depth=depth, name="shard-stream")


class Fetcher:
    """Reads samples of one dataset: the asked-for members of the asked-for columns and nothing else.

    Args:
        dataset: open for reading.
        targets: column -> names; None is every member of the column.
        transform: applied to each sample, in the thread that read it.

    Raises:
        AbsentError: the dataset has no such column or member.
        DatasetError: no columns are asked for.
        ConfigError: the dataset is not open.
    """

    def __init__(self, dataset: Dataset, targets: Wanted, transform: Transform | None) -> None:
        if not isinstance(dataset, Dataset):
            raise ConfigError(f"expected a dataset that is open, as Dataset({str(dataset)!r}) is, got {dataset!r}")
        if not by_column(targets):
            raise DatasetError(f"{dataset.url}: no columns are asked for; there are {', '.join(dataset.columns)}")
        for column, names in targets.items():
            members = dataset.members(column)
            for name in several(names or ()):
                if name not in members and f"{name}.npy" not in members:
                    raise AbsentError(
                        f"{dataset.url}: column {column} has no {name!r} in its tars; there are {', '.join(members)}"
                    )
        self.dataset, self.targets, self.transform = dataset, targets, transform
        self._process = os.getpid()

    @property
    def opened(self) -> Opened:
        """What is read through."""
        return opened(self.dataset)

    def here(self) -> Fetcher:
        """This one; in a forked process one that shares no lock, no file and no connection with who forked it."""
        if self._process == os.getpid():
            return self
        return Fetcher(copy.copy(self.dataset), self.targets, self.transform)

    def works(self) -> bool:
        """Whether a sample is more work than to copy it: a transform, a store to ask, images or targets to decode."""
        if self.transform is not None or not is_local(self.dataset.url):
            return True
        for column, names in self.targets.items():
            stored = self.dataset.columns[column].targets
            encoded = {spec.name for spec in stored if spec.encoding not in (None, "scale")}
            asked = self.dataset.members(column) if names is None else names
            if any(_is_image(name) or name.removesuffix(".npy") in encoded for name in asked):
                return True
        return False

    def begin(self, tokens: Sequence[str]) -> list[tuple[str, Found | None]]:
        """Find some samples and ask the disk for all their bytes. Nothing is raised: `finish` meets the same fault."""
        found: list[tuple[str, Found | None]] = [(token, self._found(token)) for token in tokens]
        with contextlib.suppress(DatasetError, OSError):
            for _, one in found:
                if one is not None:
                    self.opened.files.expect(one.members)
        return found

    def _found(self, token: str) -> Found | None:
        with contextlib.suppress(DatasetError, OSError):
            return self.opened.find(token, self.targets)
        return None

    def finish(self, begun: Sequence[tuple[str, Found | None]], *, lazy: bool = False) -> list[Any]:
        """The samples, in order; see `read`.

        Raises:
            DatasetError: one of them cannot be read; see `read`.
        """
        return [self.read(token, found=found, lazy=lazy) for token, found in begun]

    def read(self, token: str, *, found: Found | None = None, lazy: bool = False) -> Any:
        """One sample: ``{"token": token, column: {name: value}}``, transformed.

        Values: arrays as tensors with memory of their own, ``*.jpg`` as uint8 tensors [H, W, 3], ``json`` parsed, any
        other member as bytes. A transform gets these on every path.

        Args:
            token: of the sample.
            found: where it lies, for who knows.
            lazy: for `Collate`, which copies and checks each array itself: where there is no transform, give arrays as
                `Unread`, and images and decoded targets as numpy arrays.

        Raises:
            DatasetError: the sample cannot be read. Whatever is raised has a note with shard and token.
        """
        lazy = lazy and self.transform is None
        try:
            place = self.opened.find(token, self.targets) if found is None else found
            taken = self.opened.take(place, "unread" if lazy else "owned")
            sample: dict[str, Any] = {"token": token}
            for column, values in taken.items():
                sample[column] = {
                    name: _value(value, name, f"{column}/{token}.{name}", lazy) for name, value in values.items()
                }
            return sample if self.transform is None else self.transform(sample)
        except Exception as error:
            error.add_note(f"while reading {self._where(token)}")
            raise

    def _where(self, token: str) -> str:
        table = self.opened.plan.table
        row = table["token"].index(token).as_py()
        shard = table["shard"][row].as_py() if row >= 0 else "none"
        return f"shard {shard}, token {token} of {self.dataset.url}"


def _is_image(name: str) -> bool:
    return name.endswith(".jpg")


def _value(value: Any, name: str, where: str, lazy: bool) -> Any:
    if isinstance(value, np.ndarray):
        return value if lazy else torch.from_numpy(value)
    if _is_image(name):
        try:
            image = decode_jpeg(value, where)
        except SampleError as error:
            raise DatasetError(f"{error.reason}; it was whole when it was committed: verify the dataset") from error
        return image if lazy else torch.from_numpy(image)
    return value
