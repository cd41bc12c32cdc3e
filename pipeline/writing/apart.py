"""Teachers that read no image and have no phases, in processes of their own, beside a device that must not wait.

Such a teacher (`pdm`) is Python for tens of milliseconds a scene. In a thread of the worker it is one core at most, and
holds the interpreter while another thread wants to launch a network. So each thread here has a process:

    a column's thread --a batch's scenes--> one of N threads --pipe--> its process: `Teacher.compute` --targets--> back

A process is this module, run by itself; it gets the teachers as they are shipped to a worker, and as many of torch's
threads as the worker has, so that a target's bits do not know where they were made. It ends when the worker does, in
whatever way: its end of the pipe is then closed.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from pipeline.writing.sandbox import begun, ended
from shards_schema.errors import ShardsError
from shards_schema.records import Scene
from teachers.base import PhasedTeacher, Targets, Teacher, TeacherInput, needs_of


class ApartError(ShardsError, RuntimeError):
    """A process that computed ended before it was done: the machine's trouble."""


def takes(teacher: Teacher) -> bool:
    """Whether it may run so: no phases, and what it says that it needs has no images."""
    needs = needs_of(teacher)
    return not isinstance(teacher, PhasedTeacher) and needs is not None and not needs.images


class Processes:
    """Some processes that compute; each is started when it is first needed.

    Args:
        teachers: that `takes` takes.
        count: of processes.
        threads: torch's, of each; None for as many as this process has.
    """

    def __init__(self, teachers: Sequence[Teacher], count: int, threads: int | None = None) -> None:
        self.names = frozenset(teacher.name for teacher in teachers)
        self._teachers = pickle.dumps((list(teachers), threads or torch.get_num_threads()))
        self._own = threading.local()
        self._all: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._threads = ThreadPoolExecutor(count, "apart")

    def submit(self, name: str, scenes: Sequence[Scene]) -> Future[Callable[[], tuple[list[Targets], float]]]:
        """Have the teacher `name` compute a batch: what gives its targets, and the seconds that it took."""
        return self._threads.submit(self._compute, name, scenes)

    def _compute(self, name: str, scenes: Sequence[Scene]) -> Callable[[], tuple[list[Targets], float]]:
        if getattr(self._own, "process", None) is None:
            self._own.process = child, talk = begun(__name__)
            self._all.append(self._own.process)
            talk.send_bytes(self._teachers)
        child, talk = self._own.process
        try:
            talk.send((name, scenes))
            made, seconds = talk.recv()
        except (EOFError, ConnectionError) as error:
            self._own.process = None
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)  # who talks no more has ended, or does in a moment: by what is worth telling
            code = ended(child, talk)
            raise ApartError(
                f"column {name}: the process that computed {len(scenes)} scenes ended with {code}; is this machine out "
                "of memory, or does somebody end its processes? mend that and run the same command again"
            ) from error
        if isinstance(made, BaseException):
            raise made
        return lambda: (made, seconds)

    def close(self) -> None:
        """End the processes, now."""
        for child, talk in self._all:
            ended(child, talk)
        self._threads.shutdown(cancel_futures=True)


def serve(talk: Connection) -> None:
    """Compute what is asked, until nobody is there to ask."""
    teachers, threads = pickle.loads(talk.recv_bytes())
    torch.set_num_threads(threads)
    known: dict[str, Teacher] = {teacher.name: teacher for teacher in teachers}
    for teacher in teachers:
        teacher.load("cpu")
    while True:
        name, scenes = talk.recv()
        began = time.perf_counter()
        made: Any
        try:
            made = known[name].compute([TeacherInput(scene, np.zeros((0,), np.uint8)) for scene in scenes])
        except Exception as error:
            made = _sendable(error)
        talk.send((made, time.perf_counter() - began))


def _sendable(error: Exception) -> Exception:
    """It, if it survives the way; else its words."""
    with suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return ShardsError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        serve(Connection(int(sys.argv[1])))
