"""A thread of a worker's teachers: calls are made one at a time, and those of the oldest shard first.

A call may return while the device is still at work on what it began. So before the next one is chosen, `room` waits
until the device can use it: chosen earlier, it would stand in the device's queue, which knows no older and younger.

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


class DeviceQueue:
    """A queue and its thread.

    Args:
        name: of the thread.
        room: called in the thread before it chooses a call; must not raise.
    """

    def __init__(self, name: str, room: Callable[[], None] = lambda: None) -> None:
        self._order = count()
        self._room = room
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
            self._room()
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
