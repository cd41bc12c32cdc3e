"""The teacher's thread: calls are made one at a time, and those of the oldest shard first.

Serving the shards evenly would bring them to their ends together, and then nobody has work for the teacher while they
commit and the next ones decode. The oldest first keeps them a shard apart, which also keeps short what a kill
destroys; a younger one only fills the gaps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from queue import PriorityQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Turns:
    """A queue and its thread."""

    def __init__(self, name: str) -> None:
        self._order = count()
        self._queue: PriorityQueue[tuple[float, int, Future[Any], Callable[[], Any]]] = PriorityQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, ticket: int, call: Callable[[], Result]) -> Future[Result]:
        """Have `call` made when none with a smaller ticket waits; those with one ticket keep their order."""
        future: Future[Result] = Future()
        self._queue.put((ticket, next(self._order), future, call))
        return future

    def _serve(self) -> None:
        while True:
            ticket, _, future, call = self._queue.get()
            if ticket == float("inf"):
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call  # or the last batch would be kept until the next one comes

    def close(self) -> None:
        """Stop the thread, when what was submitted is done."""
        self._queue.put((float("inf"), next(self._order), Future(), lambda: None))
        self._thread.join()
