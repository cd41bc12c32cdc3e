"""The end of a worker's process: it is asked to, seen to be gone by its pid, and killed where it is not.

Ray ends its processes, as a rule. One that hangs while it ends (its main thread waits in a futex, deaf to every signal
that Python handles) is nobody's child any more, holds its memory and its GPU's, and the next run does not fit. So:

- a worker ends with its raylet, however that ends: the kernel kills it (`end_with_parent`). A local raylet ends with
  its driver in the same way, so nothing outlives a driver that was killed;
- a driver knows node, pid and time of birth of each of its workers, and looks for each at the end, on every node
  (`see_off`); for a Ray of its own it looks for all that Ray started (`cluster.session.session`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TIMEOUT = 5.0
"""Seconds for a process to be gone after Ray was told to end it."""
_FAR = 30.0
"""Seconds for another node to say that its workers are gone, beside that."""
_TICK = 0.02
_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of <linux/prctl.h>."""


@dataclass(frozen=True, slots=True, order=True)
class Process:
    """A process of this machine; `began` (ticks after boot) tells it from a later one that has its number."""

    pid: int
    began: int

    @property
    def alive(self) -> bool:
        """Whether it is there; a zombie is not."""
        found = _stat(self.pid)
        return found is not None and found[0] != "Z" and int(found[19]) == self.began

    @property
    def command(self) -> str:
        """Its command line; "" where it is gone."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
        except OSError:
            return ""


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat behind the name (0: state, 1: parent, 19: start); None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def this_process() -> Process:
    """The one that asks."""
    found = _stat(os.getpid())
    return Process(os.getpid(), int(found[19]) if found else 0)


def below(pid: int) -> list[Process]:
    """Every process that descends from `pid`, children before their own."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (found := _stat(int(entry.name))) is not None:
            children.setdefault(int(found[1]), []).append(Process(int(entry.name), int(found[19])))
    out = list(children.get(pid, []))
    for process in out:
        out += children.get(process.pid, [])
    return out


def end(processes: Iterable[Process], timeout: float = TIMEOUT) -> list[Process]:
    """Wait until processes of this machine are gone; those that are not in time are killed, and returned."""
    left = set(processes)
    deadline = time.monotonic() + timeout
    while (left := {p for p in left if p.alive}) and time.monotonic() < deadline:
        time.sleep(_TICK)
    killed = sorted(left)
    for process in killed:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except OSError:
            continue  # gone by itself, or of another user
    deadline = time.monotonic() + timeout
    while any(p.alive for p in killed) and time.monotonic() < deadline:
        time.sleep(_TICK)
    return killed


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it (a worker's raylet) ends, however that is.

    The kernel does it, so that it works also where this process has no thread left that would run Python.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent").start()
    if os.getppid() != parent:  # it ended meanwhile
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def see_off(workers: Mapping[str, Iterable[Process]], tell: Callable[[str], None]) -> None:
    """Wait until workers that Ray was told to end are gone, on every node that is there; kill those that are not.

    Args:
        workers: node id -> the processes there.
        tell: gets a line for each that had to be killed, and for each node that did not answer.
    """
    try:
        here = ray.get_runtime_context().get_node_id()
        hosts = {n["NodeID"]: n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]}  # type: ignore[no-untyped-call]
    except (RayError, ConnectionError, RuntimeError):  # Ray is gone: its nodes' workers have ended with it
        return
    asked = {
        node: _end.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(list(processes))
        for node, processes in workers.items()
        if node != here and node in hosts
    }
    killed = {here: end(workers.get(here, ()))}
    for node, answer in asked.items():
        try:
            killed[node] = ray.get(answer, timeout=TIMEOUT + _FAR)
        except (RayError, ConnectionError) as error:
            tell(f"host {hosts[node]} did not say whether its workers have ended ({type(error).__name__})")
    for node, processes in killed.items():
        for process in processes:
            tell(
                f"worker process {process.pid} on host {hosts.get(node, node)} had not ended {TIMEOUT:.0f} s after it "
                "was told to, and was killed"
            )


_end = ray.remote(num_cpus=0, max_retries=0)(end)
