"""What is held against each task: the attempts that were charged to it, where, and what it is suspected of.

Rules 1, 2 and 6 of `cluster.dispatch`, as far as they are about tasks: one that dies beside others is suspected and not
charged, and is tried alone next; one that goes with its node is excused, up to a number of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_EXCUSED = 30
"""How many workers may go with their nodes under one task before it is suspected of taking the nodes with it."""


class Attempts:
    """The book.

    Args:
        limit: charges with which a task has failed.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._charges: Counter[int] = Counter()
        self._excused: Counter[int] = Counter()
        self.reasons: dict[int, str] = {}
        """Task -> what was last said of it."""
        self.alone: set[int] = set()
        """Tasks that must have a worker for themselves."""
        self.sandbox: set[int] = set()
        """Tasks that were in a worker that died, and may have been why."""
        self.tried: dict[int, set[int]] = {}
        """Task -> the seats where it was charged."""

    def suspects(self, running: Sequence[int], *, charge: bool) -> list[int]:
        """Those of the tasks in a worker that is gone which may have been why; all of them, unless they are excused."""
        if not charge:
            self._excused.update(running)
        suspects = [task for task in running if charge or self._excused[task] > _EXCUSED]
        self.sandbox.update(suspects)
        return suspects

    def bisect(self, task: int, reason: str) -> None:
        """It was one of several suspects."""
        self.reasons[task] = reason
        self.alone.add(task)

    def charge(self, task: int, seat: int, reason: str) -> bool:
        """Count an attempt against a task; whether that was its last."""
        self._charges[task] += 1
        self.reasons[task] = reason
        self.tried.setdefault(task, set()).add(seat)
        return self._charges[task] >= self._limit

    def done(self, task: int) -> None:
        """Nothing is held against it any more."""
        self.tried.pop(task, None)
        self.alone.discard(task)
        self.sandbox.discard(task)
