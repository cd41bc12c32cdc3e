"""SIGTERM, as Slurm and Kubernetes send it some time before SIGKILL: a request to stop, that the work may heed.

The first SIGTERM inside `Preemption.heed` sets `asked` and nothing else; the work looks at it, begins nothing new, and
ends what is under way or gives it up. Any other one (a second, or the first where nothing heeds it: while planning,
while the dataset is finalised) leaves at once, through every `finally`. Either way the exit code is `EXIT`, as a shell
would have it of a process that SIGTERM ended, so that a batch script can tell "again" from "broken". SIGINT stays
Python's KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT = 128 + signal.SIGTERM
"""143."""


class Preemption:
    """The SIGTERMs of this process, from `watch` on.

    Attributes:
        asked: the work was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._heeded = False
        self._leaving = False

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.asked or not self._heeded:
            self._leaving = True
            raise SystemExit(EXIT)
        self.asked = True

    @contextmanager
    def heed(self) -> Iterator[None]:
        """While the block runs, the first SIGTERM only sets `asked`."""
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False


@contextmanager
def watch() -> Iterator[Preemption]:
    """Take SIGTERM over for the time of the block (in the main thread; elsewhere Python has no signals)."""
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    before = signal.signal(signal.SIGTERM, preemption._on_signal)
    try:
        yield preemption
    except BaseException:
        if preemption._leaving:  # libraries in between make other exits of ours; Ray's has code 1
            raise SystemExit(EXIT) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
