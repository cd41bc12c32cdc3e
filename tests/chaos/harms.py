"""What `tests.chaos.jobs` does to a job, and what must become of it: one scenario a kind of harm."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shards_schema import layout
from tests.chaos.processes import Job, command, kill, records
from tests.chaos.room import Room, shim


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one scenario; see the module.

    Attributes:
        at: commit records that were there when it was struck, at least.
        target: the command of the process that got a signal.
        how: how the disturbed run ended, in words.
        wrong: everything that should not be; [] is what we want.
    """

    scenario: str
    at: int
    target: str = ""
    how: str = ""
    resumed: bool = False
    begun: int = 0
    rewritten: int = 0
    lost: int = 0
    duplicated: int = 0
    leftover: int = 0
    left: int = 0
    seconds: float = 0.0
    skipped: str = ""
    wrong: list[str] = field(default_factory=list)


Harm = Callable[[Room, Job, random.Random, Outcome], None]


def _signal(name: str | None, number: int) -> Harm:
    def harm(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
        pid = job.process.pid if name is None else job.find(name)
        outcome.target = command(pid)
        outcome.begun = len(begun(job.out)) if name is not None else 0
        kill(pid, number)

    return harm


def _stop(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
    """An actor hangs for good: it must be replaced without anybody's help."""
    actor = job.find("ray::TeacherActor")
    outcome.target, outcome.begun = command(actor), len(begun(job.out))
    kill(actor, signal.SIGSTOP)
    deadline = time.monotonic() + room.timeout
    while time.monotonic() < deadline and job.process.poll() is None:
        time.sleep(0.2)
        if not Path(f"/proc/{actor}").exists():
            return
    if job.process.poll() is None:
        outcome.wrong.append(f"a hung actor was not replaced within {room.timeout:.0f} s")
        kill(actor, signal.SIGKILL)


def _second(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
    """Somebody starts the same command again while it runs; the first is suspended, or it might end too soon."""
    kill(job.process.pid, signal.SIGSTOP)
    other = room.start(job.out)
    code, said = other.end(), other.said()
    kill(job.process.pid, signal.SIGCONT)
    if code != 1 or f"pid {job.process.pid}" not in said or "HeldError" not in said:
        outcome.wrong.append(f"the second driver ended with {code} and did not name the first: {said[-300:]}")


def _clock(seconds: float) -> Harm:
    def harm(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
        (room.folder / "clock").write_text(str(seconds))

    return harm


def _full(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
    """Somebody else fills the disk."""
    ballast = job.out.parent / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError:
        return


def _read_only(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
    """The file system is read-only from now on, as a kernel leaves it after an I/O error.

    A mount that has files open for writing cannot be turned; one that is laid over it can, and every path goes there.
    """
    place = str(job.out.parent)
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)


def _nothing(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
    """The harm lies in the data."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of harm.

    Attributes:
        name: for the command line.
        what: for people.
        harm: does it.
        survives: the disturbed run itself must end well.
        disk: the dataset lies on a small disk of its own.
        clock: the job's Python has a clock that can be set (see `tests/chaos/clock`).
        poison: it runs in the room with the images that end their decoder.
        overrides: for the disturbed run, ``key=value``.
        said: a pattern that the disturbed run must print.
        times: what it must print, and how often.
        code: the exit code that it must have; None is any but 0.
    """

    name: str
    what: str
    harm: Harm
    survives: bool = False
    disk: bool = False
    clock: bool = False
    poison: bool = False
    overrides: tuple[str, ...] = ()
    said: str = ""
    times: tuple[tuple[str, int], ...] = ()
    code: int | None = None


SCENARIOS = (
    Scenario("driver", "kill -9 of the driver, the same command at once again", _signal(None, signal.SIGKILL)),
    Scenario("actor", "kill -9 of an actor", _signal("ray::TeacherActor", signal.SIGKILL), survives=True),
    Scenario("raylet", "kill -9 of the raylet (the node is gone)", _signal("raylet", signal.SIGKILL)),
    Scenario("gcs", "kill -9 of Ray's control service", _signal("gcs_server", signal.SIGKILL)),
    Scenario("sigterm", "SIGTERM to the driver", _signal(None, signal.SIGTERM), said="left to do", code=143),
    Scenario("sigint", "Ctrl-C", _signal(None, signal.SIGINT), said="run the same command again", code=130),
    Scenario(
        "hang",
        "SIGSTOP of an actor, for good",
        _stop,
        survives=True,
        overrides=("cluster.shard_seconds=15",),
        said=r"a worker hangs: process \d+ on host \S+ has had shard \d+ for \d+ s, and 15 are given",
    ),
    Scenario(
        "poison",
        "two images that kill the decoder (SIGSEGV)",
        _nothing,
        survives=True,
        poison=True,
        times=(("a worker is gone", 2), (": 2 x decoder_crash", 2)),
    ),
    Scenario("full", "the disk is full", _full, disk=True, said="No space left on device"),
    Scenario("readonly", "the disk becomes read-only", _read_only, disk=True, said="Read-only file system"),
    Scenario("forward", "the clock jumps 3 days ahead", _clock(3 * 86400), survives=True, clock=True),
    Scenario("back", "the clock jumps 3 days back", _clock(-3 * 86400), survives=True, clock=True),
    Scenario("second", "a second driver on the same output", _second, survives=True),
)


def begun(out: Path) -> set[tuple[str, int]]:
    """(column, shard) with files, whole or under way, and no record."""
    tars = {(p.parent.name, int(p.stem)) for p in out.glob("*/*.tar")}
    tars |= {
        (m[1], int(m[2])) for p in out.glob(f"{layout.TEMP}/*") if (m := re.match(r"(\w+)%(\d{6})\.tar\.", p.name))
    }
    return tars - {(name.split("/")[0], int(Path(name).stem)) for name in records(out)}


def environment(room: Room, scenario: Scenario) -> dict[str, str]:
    """What the disturbed run has in its environment."""
    if not scenario.clock:
        return {}
    clock = room.folder / "clock"
    clock.write_text("0")
    return {"PYTHONPATH": shim("clock"), "CHAOS_CLOCK": str(clock)}


def mend(scenario: Scenario, out: Path) -> None:
    """Take back what a harm did to the disk."""
    if scenario.harm is _read_only:
        subprocess.run(["umount", str(out.parent)], check=True)
    if scenario.disk:
        (out.parent / "ballast").unlink(missing_ok=True)
