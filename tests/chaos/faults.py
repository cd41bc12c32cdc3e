"""Every fault point of the write path, in turn, with every kind of fault (see `tests.chaos.shim`), on the small world.

A recording run names the points. Then for each point and each kind, in a fresh folder: run into the fault; look at what
is left (a commit record that is there vouches for files that are whole, now, not only after a resume; an error gave its
descriptors and threads back); resume without faults; hold every byte against the undisturbed dataset. `verify` reads
every `verify_every`-th result as well: it is a function of the bytes, which are all compared.

Kinds that end the process run in a forked child that really ends, in the midst of whatever its other threads do.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.reading.verify import verify
from reports.tables import table
from shards_schema import layout
from shards_schema.codecs import unseal
from shards_schema.errors import ShardsError
from shards_schema.inputs.models import StrictModel
from tests.chaos.results import save
from tests.chaos.shim import DIED, KINDS, Fault, Point, Shim
from tests.chaos.world import World, compare, digests, facts

ENDS = ("die", "torn", "power", "metadata")
"""Kinds after which the process is no more."""

Job = Callable[[Path], int]
"""Makes a dataset, or resumes it; how many shards it did."""


class Config(StrictModel):
    """Knobs."""

    stride: int = Field(default=1, ge=1)
    """Every stride-th (point, kind) is done; 1 is all of them."""
    storms: int = Field(default_factory=lambda: int(os.environ.get("CHAOS", "10")), ge=0)
    """Datasets of three shards that are hit at a random point by a random kind, again and again; the environment's
    CHAOS is the default."""
    seed: int = 0
    """Of the storms."""
    verify_every: int = Field(default=25, ge=1)
    """One in so many results is read by `verify` too."""
    logs: int = Field(default=1, ge=1)
    """Shards of the world whose every point is struck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one fault.

    Attributes:
        fault: kind and point, for people.
        end: "raised X", "died", "ended well" (the fault was borne), or "not met".
        redone: shards that the resumed run did.
        wrong: everything that should not be, in words; () is what we want.
        lost, duplicated, leftover: counts, see `tests.chaos.world.Difference`.
    """

    kind: str
    fault: str
    end: str
    redone: int
    lost: int
    duplicated: int
    leftover: int
    wrong: tuple[str, ...]


class Strikes:
    """Strikes a job, in folders below `work`, and judges what comes of it.

    Args:
        job: the same inputs must give the same bytes, and a second call must go on after a first one that failed.
        work: an empty folder; in memory (/dev/shm) it takes a tenth of the time.
    """

    def __init__(self, job: Job, work: Path) -> None:
        self._job, self._work = job, work
        self._clean = work / "clean"
        job(self._clean)
        self._facts = facts(self._clean)
        shim = Shim(work / "recorded")
        with shim.installed():
            job(shim.root)
        self.points: Sequence[Point] = shim.points
        shutil.rmtree(shim.root)

    def every(self, kinds: Iterable[str] = KINDS) -> list[Fault]:
        """Each kind at each point where it can be; `power` and `metadata` also after the last."""
        faults = [Fault(kind, point) for kind in kinds for point in [*self.points, None]]
        return [fault for fault in faults if fault.possible]

    def strike(self, fault: Fault, *, verified: bool = False) -> Outcome:
        """One fault, from a fresh folder to the judgement."""
        out = self._work / "struck"
        wrong: list[str] = []
        end = self._into(out, fault, wrong)
        wrong += self._vouched(out)
        redone = self._resume(out, wrong)
        if fault.point is None and redone:
            wrong.append(f"{redone} shards had to be done again after a run that had ended well")
        return self._judge(out, fault.kind, str(fault.point or "after the last call"), end, redone, wrong, verified)

    def storm(self, random_: random.Random, most: int = 6) -> Outcome:
        """Faults at random, one a run, on one dataset, until a run comes through; at most `most`, then without."""
        out = self._work / "struck"
        wrong: list[str] = []
        ends: list[str] = []
        faults = self.every()
        while len(ends) < most:
            ends.append(self._into(out, random_.choice(faults), wrong, certain=False))
            wrong += self._vouched(out)
        redone = self._resume(out, wrong)
        return self._judge(out, "storm", f"{most} faults", "; ".join(ends), redone, wrong, True)

    def _judge(
        self, out: Path, kind: str, fault: str, end: str, redone: int, wrong: list[str], verified: bool
    ) -> Outcome:
        if not out.is_dir():
            wrong.append("nothing is there after the resume")
            out.mkdir()
        found = compare(out, self._clean, known=self._facts)
        if found:
            wrong.append(str(found))
        if verified and (bad := verify(str(out)).faults):
            wrong.append(f"verify: {bad[0]}")
        for folder in (out, out.parent / f"{out.name}.kept"):
            shutil.rmtree(folder, ignore_errors=True)
        return Outcome(
            kind=kind, fault=fault, end=end, redone=redone, wrong=tuple(wrong),
            lost=found.lost, duplicated=found.duplicated, leftover=len(found.leftover),
        )  # fmt: skip

    def _into(self, out: Path, fault: Fault, wrong: list[str], *, certain: bool = True) -> str:
        """Run into the fault; how it ended. A fault that was not met is wrong where it is `certain` to come."""
        if fault.kind in ENDS:
            code = _in_a_child(lambda: self._run(out, fault))
            if code == DIED:
                return "died"
            if code or certain:
                wrong.append(f"the child ended with {code}, expected {DIED}: the fault was not met, or more went wrong")
            return "not met"
        before = _held()
        shim = Shim(out, fault)
        try:
            with shim.installed():
                self._job(out)
            end = "ended well"
            if {**digests(out), layout.LOCK: ""} != {**self._facts[0], layout.LOCK: ""}:
                wrong.append("the run ended well, and the dataset is not what it should be")
        except Exception as error:
            end = f"raised {type(error).__name__}"
            if not isinstance(error, OSError):
                wrong.append("".join(traceback.format_exception_only(error)).strip())
            elif not isinstance(error, ShardsError):
                wrong.append(f"a person would see a traceback: {error!r}")
        if certain and not shim.fired:
            wrong.append("the fault was not met")
        if (after := _held()) != before:
            wrong.append(f"descriptors and threads: {before} before, {after} after")
        return end

    def _run(self, out: Path, fault: Fault) -> None:
        shim = Shim(out, fault)
        with shim.installed():
            self._job(out)
            if fault.point is None:
                shim.cut(fault.kind)

    def _vouched(self, out: Path) -> list[str]:
        """What a commit record says is there, and is not as the undisturbed dataset has it."""
        found = digests(out) if out.is_dir() else {}
        wrong = []
        for name in found:
            stem = name.rpartition("/")[2]
            if (
                name.count("/") == 1
                and stem.endswith(".json")
                and stem[:-5].isdecimal()
                and not name.startswith("logs")
            ):
                files = unseal((out / name).read_bytes(), name)["files"]
                wrong += [f"{name} vouches for {f}" for f in [*files, name] if found.get(f) != self._facts[0].get(f)]
        return wrong

    def _resume(self, out: Path, wrong: list[str]) -> int:
        try:
            return self._job(out)
        except Exception as error:
            wrong.append(f"the resume raised {error!r}")
            return 0


def _in_a_child(call: Callable[[], object]) -> int:
    """Exit code of a forked child that makes the call and ends without any clearing up; 3 where it raised."""
    child = os.fork()
    if not child:
        code = 3
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _held() -> tuple[int, int]:
    """Open descriptors, and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a kind: counts of what the issue asks for."""
    rows = []
    for kind in dict.fromkeys(o.kind for o in outcomes):
        of = [o for o in outcomes if o.kind == kind]
        ends = Counter("died" if "died" in o.end else o.end for o in of)
        rows.append(
            {
                "kind": kind,
                "injected": len(of),
                "ends": dict(ends.most_common()) if kind != "storm" else {"at last ended well": len(of)},
                "redone": sum(o.redone for o in of),
                "lost": sum(o.lost for o in of),
                "duplicated": sum(o.duplicated for o in of),
                "leftover": sum(o.leftover for o in of),
                "wrong": sum(bool(o.wrong) for o in of),
            }
        )
    return rows


def _storms(folder: Path, config: Config) -> list[Outcome]:
    folder.mkdir()
    strikes = Strikes(World.make(folder / "images", logs=3).job, folder)
    random_ = random.Random(config.seed)
    outcomes = []
    for _ in range(config.storms):
        outcomes.append(strikes.storm(random_))
        if outcomes[-1].wrong:
            print(f"WRONG {outcomes[-1]}", flush=True)
    return outcomes


def run(config: Config) -> int:
    """Strike everywhere, write ``out/chaos/faults.json``, print the table; exit code 1 when anything was wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        world = World.make(Path(folder) / "images", logs=config.logs)
        strikes = Strikes(world.job, Path(folder))
        faults = strikes.every()[:: config.stride]
        outcomes = []
        for i, fault in enumerate(faults):
            outcomes.append(strikes.strike(fault, verified=i % config.verify_every == 0))
            if outcomes[-1].wrong:
                print(f"WRONG {outcomes[-1]}", flush=True)
            if i % 500 == 499:
                print(f"{i + 1} of {len(faults)}, {time.monotonic() - began:.0f} s", flush=True)
        if config.storms:
            outcomes += _storms(Path(folder) / "storms", config)
    rows = summary(outcomes)
    seconds = time.monotonic() - began
    save(
        "faults",
        {
            "points": len(strikes.points),
            "calls": dict(Counter(p.call for p in strikes.points).most_common()),
            "shards": config.logs,
            "stride": config.stride,
            "seconds": seconds,
            "rows": rows,
            "wrong": [asdict(o) for o in outcomes if o.wrong],
            "config": config.model_dump(),
        },
    )
    heads = ["kind", "injected", "redone", "lost", "duplicated", "leftover", "wrong", "ends"]
    cells = [[*(str(r[h]) for h in heads[:-1]), ", ".join(f"{n} {e}" for e, n in r["ends"].items())] for r in rows]
    print(f"\n{len(strikes.points)} fault points in a run of {config.logs} shards, {seconds:.0f} s\n")
    print(table(heads, cells))
    return int(any(o.wrong for o in outcomes))
