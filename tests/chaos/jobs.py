"""The real job (`python -m jobs.teachers`, tiny VGGT) on a real local Ray, and what happens to machines.

Each scenario: start the job; when a random number of records is there, and a moment later, do it harm; see how it
ends; run the same command again, at once, while what outlived the harm may still be alive; then read every byte
(`verify`) and hold every byte against the undisturbed dataset. Seeded: the same seed strikes at the same numbers of
records.

Counted of each: the exit code of the disturbed run; shards that it had begun and not committed, which is the work
that is done again; commit records that were written anew although they were there (must be 0); samples lost and
duplicated, as Python's `tarfile` sees them; leftover files in the dataset; processes that live on a minute after
the resumed run ended, and files left in the temp folder.

Folders on other disks need root (a tmpfs is mounted); without it those scenarios are told as skipped.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from pipeline.reading.verify import verify
from reports.tables import table
from shards_schema.codecs import unseal
from shards_schema.inputs.models import StrictModel
from tests.chaos.harms import SCENARIOS, Outcome, Scenario, begun, environment, mend
from tests.chaos.processes import MOST, Job, alive, command, kill, records
from tests.chaos.results import load, save
from tests.chaos.room import Room
from tests.chaos.world import compare, digests


class Config(StrictModel):
    """Knobs."""

    only: tuple[str, ...] = ()
    """Names of scenarios, whose results take the place of those of an earlier session; none is all."""
    rounds: int = Field(default_factory=lambda: max(1, int(os.environ.get("CHAOS", "10")) // 10), ge=1)
    """How often each; the environment's CHAOS, divided by ten, is the default."""
    seed: int = 0
    """Of the moments."""
    timeout: float = Field(default=45, gt=0)
    """Seconds that a stopped actor is given to be replaced."""
    linger: float = Field(default=60, gt=0)
    """Seconds after the resumed run in which the last process of both must be gone."""
    logs: int = Field(default=3, ge=2)
    """Of the generated drive, 5 scenes each, in shards of one."""
    data: str | None = None
    """A folder with the drive from an earlier session; None generates it anew."""
    overrides: tuple[str, ...] = ()
    """For the job, ``key=value``."""


class SkippedError(Exception):
    """The machine cannot have this scenario; the message says why."""


def strike(room: Room, scenario: Scenario, seed: int) -> Outcome:
    """One scenario, from an empty folder to the judgement."""
    random_ = random.Random(f"{scenario.name} {seed}")
    at = 0 if scenario.poison else random_.randint(1, room.records * 2 // 3)
    outcome = Outcome(scenario=scenario.name, at=at)
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
    job = room.start(out, *scenario.overrides, **environment(room, scenario))
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
        outcome.wrong.append(f"the disturbed run hung for {MOST:.0f} s: {job.said()[-500:]}")
    if scenario.survives and code != 0:
        outcome.wrong.append(f"the run was to survive this and ended with {code}: {job.said()[-500:]}")
    if scenario.code is not None and code != scenario.code:
        outcome.wrong.append(f"exit {code}, expected {scenario.code}: {job.said()[-500:]}")
    if not scenario.survives and struck == room.records:
        outcome.wrong.append("the run was over before it could be disturbed")
    said = job.said()
    if scenario.said and not re.search(scenario.said, said):
        outcome.wrong.append(f"the run did not say {scenario.said!r}: {said[-500:]}")
    for text, times in scenario.times:
        if said.count(text) != times:
            outcome.wrong.append(f"the run said {text!r} {said.count(text)} times, expected {times}: {said[-500:]}")
    if code == 1 and "Traceback (most recent call last)" in said:
        outcome.wrong.append("a person sees a traceback: " + said[said.index("Traceback") :][-400:])
    mend(scenario, out)
    before = records(out)
    outcome.wrong += _untrue(out, room)
    outcome.begun = max(outcome.begun, len(begun(out)))
    again = room.start(out)
    outcome.resumed = again.end() == 0
    if not outcome.resumed:
        outcome.wrong.append(f"the resumed run failed: {again.said()[-800:]}")
    after = records(out)
    outcome.rewritten = sum(after.get(name) != stamp for name, stamp in before.items())
    _judge(room, out, [job, again], outcome)


def _judge(room: Room, out: Path, jobs: list[Job], outcome: Outcome) -> None:
    found = compare(out, room.clean, known=room.known)
    outcome.lost, outcome.duplicated, outcome.leftover = found.lost, found.duplicated, len(found.leftover)
    if found:
        outcome.wrong.append(str(found)[:800])
    report = verify(str(out))
    if report.faults or report.incomplete:
        outcome.wrong.append(f"verify: {report.faults[:3]} {report.incomplete}")
    deadline = time.monotonic() + room.linger
    family = {pid: run for run, job in zip(("disturbed", "resumed"), jobs, strict=False) for pid in job.family}
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


class _Rooms:
    """The plain room, and the one with poison where that is wanted."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config = folder, config
        data = None if config.data is None else Path(config.data)
        self._plain = self._room(folder / "p", data, poison=False)
        self._poisoned: Room | None = None
        self.records = self._plain.records

    def of(self, scenario: Scenario) -> Room:
        """Where a scenario runs."""
        if not scenario.poison:
            return self._plain
        if self._poisoned is None:
            data = self._folder / "marked"
            shutil.copytree(self._plain.data, data)
            self._poisoned = self._room(self._folder / "q", data, poison=True)
        return self._poisoned

    def _room(self, folder: Path, data: Path | None, *, poison: bool) -> Room:
        config = self._config
        folder.mkdir()
        return Room(
            folder,
            logs=config.logs,
            data=data,
            overrides=config.overrides,
            poison=poison,
            timeout=config.timeout,
            linger=config.linger,
        )


def run(config: Config) -> int:
    """All scenarios (or `only`), ``out/chaos/jobs.json``, the table; exit code 1 when anything was wrong."""
    began = time.monotonic()
    wanted = [s for s in SCENARIOS if not config.only or s.name in config.only]
    if unknown := set(config.only) - {s.name for s in SCENARIOS}:
        raise ValueError(f"no scenario {sorted(unknown)}; there are {[s.name for s in SCENARIOS]}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cj", dir="/tmp") as folder:  # short: Ray's sockets lie below it
        print("making the undisturbed dataset", flush=True)
        rooms = _Rooms(Path(folder), config)
        for seed in range(config.seed, config.seed + config.rounds):
            for scenario in wanted:
                outcome = strike(rooms.of(scenario), scenario, seed)
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
            "records": rooms.records,
            "seconds": seconds,
            "what": what,
            "outcomes": sorted([*kept, *map(asdict, outcomes)], key=lambda o: list(what).index(o["scenario"])),
            "config": config.model_dump(),
        },
    )
    counts = ["begun", "rewritten", "lost", "duplicated", "leftover", "left", "wrong"]
    heads = ["scenario", "at", "how", "resumed", *counts]
    print(f"\n{len(outcomes)} faults on a job of {rooms.records} records, {seconds:.0f} s\n")
    print(table(heads, [[o.skipped or _cell(getattr(o, h)) for h in heads] for o in outcomes]))
    return int(any(o.wrong for o in outcomes))


def _cell(value: object) -> str:
    return str(len(value)) if isinstance(value, list) else str(value)
