"""A job as a process of its own, with all that it starts: found by /proc, watched, signalled, and killed at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from glob import glob
from pathlib import Path

from shards_schema import layout

ROOT = Path(__file__).parents[2]
MOST = 300.0
"""Seconds after which a run counts as hung."""


class Job:
    """A job under way, in a session and with a temp folder of its own.

    Args:
        command: what is run, ``out=`` left out.
        out: where the dataset goes.
        log: the file that gets what it prints.
        temp: its temp folder.
        ray: Ray's.
        environment: on top of the process's own.
    """

    def __init__(self, command: list[str], out: Path, log: Path, temp: Path, ray: Path, **environment: str) -> None:
        self.out, self.log = out, log
        own = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        own |= {"TMPDIR": str(temp), "RAY_TMPDIR": str(ray), "OMP_NUM_THREADS": "1", **environment}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, f"out={out}"],
                cwd=ROOT,
                env=own,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_ctrl_c,
            )
        self.family: set[int] = set()

    def committed(self) -> int:
        """Commit records that are there."""
        return len(records(self.out))

    def reach(self, number: int) -> None:
        """Wait until so many records are there."""
        deadline = time.monotonic() + MOST
        while self.committed() < number:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the job ended or hung before record {number}:\n{self.said()[-2000:]}")
            time.sleep(0.01)
        self.family |= set(descendants(self.process.pid))

    def hear(self, text: str) -> None:
        """Wait until it has printed `text`."""
        deadline = time.monotonic() + MOST
        while text not in self.said():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the job ended or hung before it said {text!r}:\n{self.said()[-2000:]}")
            time.sleep(0.02)

    def find(self, name: str) -> int:
        """The pid of a descendant whose command begins with, or names, `name`."""
        for pid in descendants(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if command.startswith(name) or f"/{name}" in command.split("\0")[0]:
                return pid
        raise RuntimeError(f"no {name} is running below the job")

    def end(self, most: float = MOST) -> int | None:
        """Wait for the exit code; None, and everything is killed, when it hangs."""
        deadline = time.monotonic() + most
        while self.process.poll() is None and time.monotonic() < deadline:
            self.family |= set(descendants(self.process.pid))
            time.sleep(0.1)
        if self.process.poll() is None:
            self.kill()
            return None
        return self.process.returncode

    def kill(self) -> None:
        """All of it at once, as the end of a machine does."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            kill(pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")


def _heed_ctrl_c() -> None:
    """A shell that starts us in the background has us, and all that we start, pass over SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def records(out: Path) -> dict[str, tuple[int, int]]:
    """Commit records: path -> inode and time of the last change."""
    found = {}
    for name in glob("*/*.json", root_dir=out):  # (pathlib's raises where a folder goes meanwhile)
        path = out / name
        if path.stem.isdecimal() and path.parent.name != layout.LOGS:
            try:
                stat = path.stat()
            except OSError:
                continue
            found[name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, by /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    below = list(parents.get(pid, []))
    for child in below:
        below += parents.get(child, [])
    return below


def kill(pid: int, number: int) -> None:
    """A signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command(pid: int) -> str:
    """The beginning of its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80]
    except OSError:
        return "gone"
