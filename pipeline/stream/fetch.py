"""From a token to tensors, some samples ahead of the trainer, in order.

Threads, not processes: reading a mapped tar, copying an array and decoding a JPEG all let go of the GIL, while a
1 MB sample that comes from another process is copied twice more. The look-ahead is bounded, the order is that of the
asks, a fault is raised where the trainer would have got the sample, and nothing is left running when the iteration
ends, however it ends.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.decode import decode_jpeg
from pipeline.reader import Dataset, Wanted
from shards_schema.errors import AbsentError, DatasetError, SampleError

Ask = TypeVar("Ask")
Got = TypeVar("Got")

Transform = Callable[[dict[str, Any]], Any]


def ahead(read: Callable[[Ask], Got], asks: Iterator[Ask], *, threads: int, depth: int) -> Iterator[Got]:
    """`map(read, asks)` with `depth` asks under way in `threads` threads (0: none, in the caller's)."""
    if threads == 0:
        yield from map(read, asks)
        return
    pool = ThreadPoolExecutor(threads, "shard-stream")
    waiting: deque[Future[Got]] = deque()
    try:
        waiting.extend(pool.submit(read, ask) for ask in islice(asks, depth))
        while waiting:
            got = waiting.popleft().result()
            waiting.extend(pool.submit(read, ask) for ask in islice(asks, 1))
            yield got
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Fetcher:
    """Reads samples of one dataset: the asked-for members of the asked-for columns and nothing else.

    Args:
        dataset: open for reading.
        targets: column -> names; None is every member of the column.
        transform: applied to each sample, in the thread that read it.

    Raises:
        AbsentError: the dataset has no such column or member.
        DatasetError: no columns are asked for.
    """

    def __init__(self, dataset: Dataset, targets: Wanted, transform: Transform | None) -> None:
        if not targets:
            raise DatasetError(f"{dataset.url}: no columns are asked for; there are {', '.join(dataset.columns)}")
        for column, names in targets.items():
            members = dataset.members(column)
            for name in names or ():
                if name not in members and f"{name}.npy" not in members:
                    raise AbsentError(
                        f"{dataset.url}: column {column} has no {name!r} in its tars; there are {', '.join(members)}"
                    )
        self.dataset, self.targets, self.transform = dataset, targets, transform

    def forked(self) -> Fetcher:
        """The same for a forked process."""
        return Fetcher(self.dataset.forked(), self.targets, self.transform)

    def read_all(self, tokens: Sequence[str], *, views: bool = False) -> list[Any]:
        """Some samples, in order; see `read`. Their bytes are asked of the disk together, before the first is decoded.

        Raises:
            DatasetError: one of them cannot be read; see `read`.
        """
        with contextlib.suppress(DatasetError):  # a hint; `read` meets the same fault, and says whose it is
            self.dataset.expect(tokens, self.targets)
        return [self.read(token, views=views) for token in tokens]

    def read(self, token: str, *, views: bool = False) -> Any:
        """One sample: ``{"token": token, column: {name: value}}``, transformed.

        Values: arrays as tensors with memory of their own, ``*.jpg`` as uint8 tensors [H, W, 3], ``json`` parsed, any
        other member as bytes.

        Args:
            token: of the sample.
            views: give arrays as read-only numpy views of the mapped tar, for a caller that copies them at once.

        Raises:
            DatasetError: the sample cannot be read. Whatever is raised has a note with shard and token.
        """
        try:
            sample: dict[str, Any] = {"token": token}
            for column, values in self.dataset.read(token, self.targets).items():
                sample[column] = {
                    name: _value(value, name, f"{column}/{token}.{name}", views) for name, value in values.items()
                }
            return sample if self.transform is None else self.transform(sample)
        except Exception as error:
            error.add_note(f"while reading {self._where(token)}")
            raise

    def _where(self, token: str) -> str:
        table = self.dataset.plan.table
        row = table["token"].index(token).as_py()
        shard = table["shard"][row].as_py() if row >= 0 else "none"
        return f"shard {shard}, token {token} of {self.dataset.url}"


def _value(value: Any, name: str, where: str, views: bool) -> Any:
    if isinstance(value, np.ndarray):
        return value if views else torch.from_numpy(value.copy())
    if name.endswith(".jpg"):
        try:
            image = decode_jpeg(bytes(value), where)
        except SampleError as error:
            raise DatasetError(f"{error.reason}; it was whole when it was committed: verify the dataset") from error
        return image if views else torch.from_numpy(image)
    return value
