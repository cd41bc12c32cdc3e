"""A process's end: waited for, killed where it does not come, and tied to that of the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import ends
from cluster.ends import Process

ROOT = Path(__file__).parents[2]
DEAF = (
    "import signal, sys, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\n"
    "print('up', flush=True)\ntime.sleep(600)"
)


@pytest.fixture
def deaf() -> Iterator[Process]:
    """A process that heeds neither SIGINT nor SIGTERM."""
    child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    (found,) = [p for p in ends.below(os.getpid()) if p.pid == child.pid]
    yield found
    child.kill()
    child.wait()


def test_one_that_does_not_end_is_killed_and_named(deaf: Process) -> None:
    assert deaf.alive
    os.kill(deaf.pid, signal.SIGTERM)
    assert ends.end([deaf], timeout=0.2) == [deaf]
    assert not deaf.alive


def test_a_later_process_of_the_same_number_is_left_alone(deaf: Process) -> None:
    assert ends.end([replace(deaf, began=deaf.began - 1)], timeout=0.2) == []
    assert deaf.alive


def test_one_that_ends_in_time_is_not_named() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    (found,) = [p for p in ends.below(os.getpid()) if p.pid == child.pid]
    assert ends.end([found], timeout=30) == []
    assert child.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part")
def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """Whatever it does: this one waits in C, deaf to all that can be caught, when its parent is killed."""
    worker = f"from cluster.ends import end_with_parent\nend_with_parent()\n{DEAF}"
    parent = (
        f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {worker!r}]).pid, flush=True)\ninput()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    said = {child.stdout.readline().strip(), child.stdout.readline().strip()}
    (found,) = [p for p in ends.below(child.pid) if str(p.pid) in said]
    assert found.alive
    child.kill()
    child.communicate()
    while found.alive:  # pytest's timeout ends it
        time.sleep(0.02)
