"""The real job (`python -m jobs.teachers`, tiny VGGT) on a real local Ray, and what happens to machines.

Each scenario: start the job; when a random number of records is there, and a moment later, do it harm; see how it
ends; run the same command again, at once, while what outlived the harm may still be alive; then read every byte
(`verify`) and hold every byte against the undisturbed dataset. Seeded: the same seed strikes at the same numbers of
records.

Counted of each: the exit code of the harmed run; shards that it had begun and not committed, which is the work that is
done again; commit records that were written anew although they were there (must be 0); samples lost and duplicated, as
Python's `tarfile` sees them; junk files in the dataset; processes that live on a minute after the resumed run ended,
and files left in the temp folder.

Folders on other disks need root (a tmpfs is mounted); without it those scenarios are told as skipped.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from chaos.processes import MOST, ROOT, Job, alive, command, kill, records
from chaos.results import load, save
from chaos.world import compare, digests, facts
from jobs.report import table
from pipeline.verify import verify
from shards_schema import layout
from shards_schema.codecs import unseal


class Config(BaseModel):
    """Knobs.

    Attributes:
        only: names of scenarios, whose results take the place of those of an earlier session; none is all.
        rounds: how often each; the environment's CHAOS, divided by ten, is the default.
        seed: of the moments.
        patience: seconds that a stopped actor is given to be replaced.
        linger: seconds after the resumed run in which the last process of both must be gone.
        logs: of the generated drive, 5 scenes each, in shards of one.
        data: a folder with the drive from an earlier session; None generates it anew.
        overrides: for the job, ``key=value``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    only: tuple[str, ...] = ()
    rounds: int = Field(default_factory=lambda: max(1, int(os.environ.get("CHAOS", "10")) // 10), ge=1)
    seed: int = 0
    patience: float = Field(default=45, gt=0)
    linger: float = Field(default=60, gt=0)
    logs: int = Field(default=3, ge=2)
    data: str | None = None
    overrides: tuple[str, ...] = ()


class SkippedError(Exception):
    """The machine cannot have this scenario; the message says why."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one scenario; see the module.

    Attributes:
        at: commit records that were there when it was struck, at least.
        target: the command of the process that got a signal.
        how: how the harmed run ended, in words.
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
    junk: int = 0
    left: int = 0
    seconds: float = 0.0
    skipped: str = ""
    wrong: list[str] = field(default_factory=list)


class Room:
    """The folders of a session: a config, its data, the undisturbed dataset, one temp folder and one of Ray's."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.overrides = folder, list(config.overrides)
        self.settings = config
        self.temp, self.ray = folder / "tmp", folder / "ray"
        self.temp.mkdir()
        self.ray.mkdir()
        self.config = folder / "job.yaml"
        self._number = 0
        self.config.write_text(yaml.safe_dump(_job(Path(config.data or folder / "data"), config.logs), sort_keys=False))
        self.clean = folder / "clean"
        job = self.start(self.clean)
        if job.end(600) != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{job.said()[-3000:]}")
        self.known = facts(self.clean)
        self.records = len(records(self.clean))
        if faults := verify(str(self.clean)).faults:
            raise RuntimeError(f"the undisturbed dataset is not clean: {faults[:3]}")

    def start(self, out: Path, **environment: str) -> Job:
        """Start the job."""
        command = [sys.executable, "-m", "jobs.teachers", str(self.config), *self.overrides]
        log = self.folder / f"log{self.number()}.txt"
        return Job(command, out, log, self.temp, self.ray, **environment)

    def number(self) -> int:
        """The next number."""
        self._number += 1
        return self._number


Harm = Callable[[Room, Job, random.Random, Outcome], None]


def _signal(name: str | None, number: int) -> Harm:
    def harm(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
        pid = job.process.pid if name is None else job.find(name)
        outcome.target = command(pid)
        outcome.begun = len(_begun(job.out)) if name is not None else 0
        kill(pid, number)

    return harm


def _stop(room: Room, job: Job, random_: random.Random, outcome: Outcome) -> None:
    """An actor hangs for good: it must be replaced without anybody's help."""
    actor = job.find("ray::TeacherActor")
    outcome.target, outcome.begun = command(actor), len(_begun(job.out))
    kill(actor, signal.SIGSTOP)
    deadline = time.monotonic() + room.settings.patience
    while time.monotonic() < deadline and job.process.poll() is None:
        time.sleep(0.2)
        if not Path(f"/proc/{actor}").exists():
            return
    if job.process.poll() is None:
        outcome.wrong.append(f"a hung actor was not replaced within {room.settings.patience:.0f} s")
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


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of harm.

    Attributes:
        name: for the command line.
        what: for people.
        harm: does it.
        survives: the harmed run itself must end well.
        disk: the dataset lies on a small disk of its own.
        clock: the job's Python has a clock that can be set (see `chaos/clock`).
        said: a pattern that the harmed run must print.
        code: the exit code that it must have; None is any but 0.
    """

    name: str
    what: str
    harm: Harm
    survives: bool = False
    disk: bool = False
    clock: bool = False
    said: str = ""
    code: int | None = None


SCENARIOS = (
    Scenario("driver", "kill -9 of the driver, the same command at once again", _signal(None, signal.SIGKILL)),
    Scenario("actor", "kill -9 of an actor", _signal("ray::TeacherActor", signal.SIGKILL), survives=True),
    Scenario("raylet", "kill -9 of the raylet (the node is gone)", _signal("raylet", signal.SIGKILL)),
    Scenario("gcs", "kill -9 of Ray's control service", _signal("gcs_server", signal.SIGKILL)),
    Scenario("sigterm", "SIGTERM to the driver", _signal(None, signal.SIGTERM), said="left to do", code=143),
    Scenario("sigint", "Ctrl-C", _signal(None, signal.SIGINT), said="run the same command again", code=130),
    Scenario("hang", "SIGSTOP of an actor, for good", _stop, survives=True),
    Scenario("full", "the disk is full", _full, disk=True, said="No space left on device"),
    Scenario("readonly", "the disk becomes read-only", _read_only, disk=True, said="Read-only file system"),
    Scenario("forward", "the clock jumps 3 days ahead", _clock(3 * 86400), survives=True, clock=True),
    Scenario("back", "the clock jumps 3 days back", _clock(-3 * 86400), survives=True, clock=True),
    Scenario("second", "a second driver on the same output", _second, survives=True),
)


def strike(room: Room, scenario: Scenario, seed: int) -> Outcome:
    """One scenario, from an empty folder to the judgement."""
    random_ = random.Random(f"{scenario.name} {seed}")
    outcome = Outcome(scenario=scenario.name, at=random_.randint(1, room.records * 2 // 3))
    began = time.monotonic()
    try:
        with _place(room, scenario) as out:
            _strike(room, scenario, random_, out, outcome)
    except SkippedError as error:
        outcome.skipped = str(error)
    except Exception as error:
        outcome.wrong.append(f"{type(error).__name__}: {error}")
    outcome.seconds = time.monotonic() - began
    return outcome


def _strike(room: Room, scenario: Scenario, random_: random.Random, out: Path, outcome: Outcome) -> None:
    job = room.start(out, **_clock_environment(room, scenario))
    try:
        job.reach(outcome.at)
        time.sleep(random_.uniform(0, 0.2))
        struck = job.committed()
        scenario.harm(room, job, random_, outcome)
        code = job.end()
    finally:
        if job.process.poll() is None:
            job.kill()
    outcome.how += "hung, and was killed" if code is None else f"exit {code}"
    if code is None:
        outcome.wrong.append(f"the harmed run hung for {MOST:.0f} s: {job.said()[-500:]}")
    if scenario.survives and code != 0:
        outcome.wrong.append(f"the run was to survive this and ended with {code}: {job.said()[-500:]}")
    if scenario.code is not None and code != scenario.code:
        outcome.wrong.append(f"exit {code}, expected {scenario.code}: {job.said()[-500:]}")
    if not scenario.survives and struck == room.records:
        outcome.wrong.append("the run was over before it could be harmed")
    said = job.said()
    if scenario.said and not re.search(scenario.said, said):
        outcome.wrong.append(f"the run did not say {scenario.said!r}: {said[-500:]}")
    if code == 1 and "Traceback (most recent call last)" in said:
        outcome.wrong.append("a person sees a traceback: " + said[said.index("Traceback") :][-400:])
    _mend(scenario, out)
    before = records(out)
    outcome.wrong += _untrue(out, room)
    outcome.begun = max(outcome.begun, len(_begun(out)))
    again = room.start(out)
    outcome.resumed = again.end() == 0
    if not outcome.resumed:
        outcome.wrong.append(f"the resumed run failed: {again.said()[-800:]}")
    after = records(out)
    outcome.rewritten = sum(after.get(name) != stamp for name, stamp in before.items())
    _judge(room, out, [job, again], outcome)


def _judge(room: Room, out: Path, jobs: list[Job], outcome: Outcome) -> None:
    found = compare(out, room.clean, known=room.known)
    outcome.lost, outcome.duplicated, outcome.junk = found.lost, found.duplicated, len(found.junk)
    if found:
        outcome.wrong.append(str(found)[:800])
    report = verify(str(out))
    if report.faults or report.incomplete:
        outcome.wrong.append(f"verify: {report.faults[:3]} {report.incomplete}")
    deadline = time.monotonic() + room.settings.linger
    family = {pid: run for run, job in zip(("harmed", "resumed"), jobs, strict=False) for pid in job.family}
    while (living := [pid for pid in family if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [f"process {pid} of the {family[pid]} run ({command(pid).strip()})" for pid in living]
    left += [str(p) for p in room.temp.iterdir()]
    outcome.left = len(left)
    if left:
        outcome.wrong.append(f"left behind: {left[:5]}")
    for pid in living:
        kill(pid, signal.SIGKILL)
    for path in room.temp.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _untrue(out: Path, room: Room) -> list[str]:
    """Commit records that vouch, now, for files that are not as the undisturbed dataset has them."""
    found, clean = digests(out), room.known[0]
    wrong = []
    for name in records(out):
        files = unseal((out / name).read_bytes(), name)["files"]
        wrong += [f"{name} vouches for {file}" for file in [*files, name] if found.get(file) != clean.get(file)]
    return wrong


def _begun(out: Path) -> set[tuple[str, int]]:
    """(column, shard) with files, whole or under way, and no record."""
    tars = {(p.parent.name, int(p.stem)) for p in out.glob("*/*.tar")}
    tars |= {
        (m[1], int(m[2])) for p in out.glob(f"{layout.TEMP}/*") if (m := re.match(r"(\w+)%(\d{6})\.tar\.", p.name))
    }
    return tars - {(name.split("/")[0], int(Path(name).stem)) for name in records(out)}


@contextmanager
def _place(room: Room, scenario: Scenario) -> Iterator[Path]:
    """Where the dataset goes."""
    place = room.folder / f"place{room.number()}"
    place.mkdir()
    if scenario.disk:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SkippedError(f"no disk of its own: {done.stderr.strip()}")
    try:
        yield place / "out"
    finally:
        if scenario.disk:
            subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(place, ignore_errors=True)


def _mend(scenario: Scenario, out: Path) -> None:
    if scenario.harm is _read_only:
        subprocess.run(["umount", str(out.parent)], check=True)
    if scenario.disk:
        (out.parent / "ballast").unlink(missing_ok=True)


def _clock_environment(room: Room, scenario: Scenario) -> dict[str, str]:
    if not scenario.clock:
        return {}
    clock = room.folder / "clock"
    clock.write_text("0")
    path = [str(ROOT / "chaos" / "clock"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "CHAOS_CLOCK": str(clock)}


def _job(data: Path, logs: int) -> dict[str, object]:
    """The config of the job: small, and cheap to start."""
    return {
        "out": "unset",
        "source": {
            "kind": "synthetic",
            "root": str(data),
            "logs": logs,
            "frames": 18,
            "width": 96,
            "height": 54,
            "lidar_points": 50,
            "filter": {"frame_interval": 1},
        },
        "plan": {"shard_size": 1},
        "samples": {"size": [64, 36]},
        "teachers": {"vggt": {"weights": {"random": 0}, "network": "tiny", "width": 266, "batch_size": 2}},
        "worker": {"device": "cpu", "decode_threads": 1, "shards_in_flight": 1, "torch_threads": 1},
        "cluster": {"cpus": 2},
        "scan_processes": 1,
    }


def run(config: Config) -> int:
    """All scenarios (or `only`), ``out/chaos/jobs.json``, the table; exit code 1 when anything was wrong."""
    began = time.monotonic()
    wanted = [s for s in SCENARIOS if not config.only or s.name in config.only]
    if unknown := set(config.only) - {s.name for s in SCENARIOS}:
        raise ValueError(f"no scenario {sorted(unknown)}; there are {[s.name for s in SCENARIOS]}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cj", dir="/tmp") as folder:  # short: Ray's sockets lie below it
        print("making the undisturbed dataset", flush=True)
        room = Room(Path(folder), config)
        for seed in range(config.seed, config.seed + config.rounds):
            for scenario in wanted:
                outcome = strike(room, scenario, seed)
                outcomes.append(outcome)
                print(
                    f"{scenario.name} {seed}: {outcome.skipped or outcome.how}, {outcome.seconds:.0f} s "
                    f"{outcome.target}",
                    flush=True,
                )
                for wrong in outcome.wrong:
                    print(f"  WRONG {wrong}", flush=True)
    what = {s.name: s.what for s in SCENARIOS}
    seconds = time.monotonic() - began
    earlier = (load("jobs") or {}).get("outcomes", []) if config.only else []
    kept = [o for o in earlier if o["scenario"] not in config.only]
    save(
        "jobs",
        {
            "records": room.records,
            "seconds": seconds,
            "what": what,
            "outcomes": sorted([*kept, *map(asdict, outcomes)], key=lambda o: list(what).index(o["scenario"])),
            "config": config.model_dump(),
        },
    )
    heads = ["scenario", "at", "how", "resumed", "begun", "rewritten", "lost", "duplicated", "junk", "left", "wrong"]
    print(f"\n{len(outcomes)} faults on a job of {room.records} records, {seconds:.0f} s\n")
    print(table(heads, [[o.skipped or _cell(getattr(o, h)) for h in heads] for o in outcomes]))
    return int(any(o.wrong for o in outcomes))


def _cell(value: object) -> str:
    return str(len(value)) if isinstance(value, list) else str(value)
