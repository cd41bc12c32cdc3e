"""The timing logs of a run, written beside the driver's loop: a PUT of 30 ms there would hold up a thousand workers.

A few threads write; at most `_WAITING` receipts wait for them, and the driver waits after that. A log that cannot be
written (the store's retries used up) ends the run at the next receipt or at the end, as a failed write did before.
"""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType

from pipeline.stores.volume import Volume
from pipeline.writing.task import ShardReceipt
from shards_schema import layout
from shards_schema.commit import FileDigest

_THREADS = 8
_WAITING = 256


class Timings:
    """``logs/<shard>.json`` of each receipt; a context manager, whose end waits for all of them."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._threads = ThreadPoolExecutor(_THREADS, "timings")
        self._waiting: deque[Future[FileDigest]] = deque()

    def put(self, receipt: ShardReceipt) -> None:
        """Hand a receipt over.

        Raises:
            OSError: an earlier one could not be written (`StoreError` where that is a store's fault).
        """
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= _WAITING):
            self._waiting.popleft().result()
        data = json.dumps(asdict(receipt)).encode()
        self._waiting.append(self._threads.submit(self._volume.put, layout.shard_log(receipt.shard), data))

    def __enter__(self) -> Timings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all; where the block ended well, raise what failed."""
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)
        while kind is None and self._waiting:
            self._waiting.popleft().result()
