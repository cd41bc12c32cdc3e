"""What runs leave behind: the small job on a real local Ray, half of the runs interrupted at a random time.

Every second run ends by itself; the others get SIGINT, SIGTERM or SIGKILL (the driver alone, its Ray is not touched) at
a moment between their start and the time that an undisturbed one takes: while Python imports, while Ray starts, while
workers load, at work, while all of it is closed.

What a run leaves is found by its environment, which every process that it starts inherits and which stays what it was
when the process has lost its parents: so a worker that is nobody's child any more is counted too. Counted of each, a
second after the driver's end and after `linger` seconds: processes, and workers (``ray::``) among them; then files in
its temp folder, and files in /dev/shm that came meanwhile and are of no living process. (Ray's session folder, its
logs, lies apart and stays: that is Ray's own. After a SIGKILL so do ``.lock``, which holds nobody, and files under way
in the dataset, which the next run sweeps.) Exit code 1 when anything was left.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from reports.tables import table
from shards_schema.inputs.models import StrictModel
from tests.chaos.processes import MOST, Job, alive, command, kill
from tests.chaos.results import save
from tests.chaos.small import SmallJob, settings

MARK = "CHAOS_RUN"
SHARED = Path("/dev/shm")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


class Config(StrictModel):
    """Knobs."""

    runs: int = Field(default=50, ge=2)
    """How many; every second one is interrupted."""
    seed: int = 0
    """Of the moments."""
    linger: float = Field(default=240, gt=0)
    """Seconds after the driver's end in which its last process must be gone. (Ray's two agents look for their raylet
    every few seconds, and then ask its store, which is gone too, for a minute: they outlive a driver that was killed by
    twenty seconds on a quiet machine, and by more than sixty on a busy one.)"""
    data: str | None = None
    """A folder with the generated drive from an earlier session; None generates it anew."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run left.

    Attributes:
        how: "by itself", or the signal.
        at: seconds from the start to the signal.
        code: the driver's exit code.
        seconds: from the start to the driver's end.
        soon: processes a second after that.
        workers: of these, Ray's workers.
        last: seconds from the driver's end to that of the last process.
        killed: what the job said that it had to kill.
        left: processes after `linger` seconds, temp files, shared memory; in words. [] is what we want.
    """

    how: str
    at: float | None = None
    code: int | None = None
    seconds: float = 0.0
    soon: int = 0
    workers: int = 0
    last: float = 0.0
    killed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def marked(mark: str) -> list[int]:
    """Every living process that has `mark` in its environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes() and alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:  # gone, or of another user
            continue
    return found


def _mapped() -> set[str]:
    """Names of files in /dev/shm that a living process has mapped."""
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            names |= {line.rsplit("/", 1)[-1] for line in maps.read_text().splitlines() if f" {SHARED}/" in line}
        except OSError:
            continue
    return names


def _shared() -> set[str]:
    """Segments there; folders are other people's temp folders in memory."""
    return {path.name for path in SHARED.iterdir() if path.is_file()} if SHARED.is_dir() else set()


def observe(job: SmallJob, number: signal.Signals | None, moment: Callable[[Job], object], linger: float) -> Outcome:
    """One run of `job` into a folder of its own; what it left. `moment` waits until the signal is due."""
    outcome = Outcome(how="by itself" if number is None else number.name)
    mark, shared = uuid.uuid4().hex, _shared()
    out = job.folder / f"out{job.number()}"
    began = time.monotonic()
    run = job.start(out, **{MARK: mark})
    if number is not None:
        moment(run)
        outcome.at = time.monotonic() - began
        kill(run.process.pid, number)
    deadline = began + MOST
    while run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    outcome.code, outcome.seconds = run.process.poll(), time.monotonic() - began
    if outcome.code is None:
        outcome.left.append(f"the driver hung for {MOST:.0f} s")
    time.sleep(1)
    ended = began + outcome.seconds
    left = marked(mark)
    outcome.soon, outcome.workers = len(left), sum(command(pid).startswith("ray::T") for pid in left)
    while left and time.monotonic() < ended + linger:
        outcome.last = time.monotonic() - ended
        time.sleep(0.2)
        left = marked(mark)
    outcome.left += [f"process {pid} ({command(pid).strip()})" for pid in left]
    for pid in left:
        kill(pid, signal.SIGKILL)
    outcome.left += [f"temp file {path.name}" for path in job.temp.iterdir()]
    segments = _shared() - shared - _mapped()
    while segments and time.monotonic() < ended + linger:  # another run of this machine has some that it is just making
        time.sleep(0.2)
        segments &= _shared() - _mapped()
    outcome.left += [f"shared memory {name}" for name in sorted(segments)]
    outcome.killed = [line for line in run.said().splitlines() if "was killed" in line]
    expected = {None: (0,), signal.SIGINT: (0, 130, -2), signal.SIGTERM: (0, 143, -15), signal.SIGKILL: (0, -9)}
    if outcome.code not in expected[number]:
        outcome.left.append(f"exit {outcome.code}: {run.said()[-500:]}")
    for path in job.temp.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out, ignore_errors=True)
    return outcome


def _after(seconds: float, run: Job) -> None:
    """So long after the start, or at its end."""
    due = time.monotonic() + seconds
    while time.monotonic() < due and run.process.poll() is None:
        time.sleep(0.01)


def run(config: Config) -> int:
    """All runs, ``out/chaos/leavings.json``, the table; exit code 1 when anything was left."""
    random_ = random.Random(config.seed)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cl", dir="/tmp") as folder:  # short: Ray's sockets lie below it
        data = Path(folder) / "data" if config.data is None else Path(config.data)
        with SmallJob(Path(folder), settings(data, shard_size=2)) as job:
            if config.data is None:
                job.run(Path(folder) / "first")  # generates the drive
            for i in range(config.runs):
                number = None if i % 2 == 0 else SIGNALS[i // 2 % len(SIGNALS)]
                usual = statistics.median([o.seconds for o in outcomes if o.how == "by itself"] or [0.0])
                outcomes.append(observe(job, number, partial(_after, random_.uniform(0, usual)), config.linger))
                print(f"{i + 1} of {config.runs}: {_line(outcomes[-1])}", flush=True)
    save("leavings", {"config": config.model_dump(), "outcomes": [asdict(o) for o in outcomes]})
    print("\n" + table(*summary([asdict(o) for o in outcomes])))
    return int(any(o.left for o in outcomes))


def _line(o: Outcome) -> str:
    at = "" if o.at is None else f" at {o.at:.1f} s"
    return (
        f"{o.how}{at}: exit {o.code} after {o.seconds:.1f} s; a second later {o.soon} processes ({o.workers} workers), "
        f"the last {o.last:.1f} s; left {o.left or 'nothing'}{f'; {o.killed}' if o.killed else ''}"
    )


def summary(outcomes: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table: one row a way to end."""
    rows = []
    for how in dict.fromkeys(o["how"] for o in outcomes):
        of = [o for o in outcomes if o["how"] == how]
        codes = Counter(str(o["code"]) for o in of)
        rows.append(
            [
                how,
                str(len(of)),
                ", ".join(f"{n} x {code}" for code, n in codes.most_common()),
                str(sum(o["workers"] for o in of)),
                str(max(o["soon"] for o in of)),
                f"{max(o['last'] for o in of):.1f}",
                str(sum(len(o["killed"]) for o in of)),
                str(sum(len(o["left"]) for o in of)),
            ]
        )
    heads = ["end", "runs", "exit codes", "workers after 1 s", "processes after 1 s, most", "last one gone after, s"]
    return [*heads, "had to be killed", "left"], rows
