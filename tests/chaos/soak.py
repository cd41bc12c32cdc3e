"""Small shards in a loop in one process, for half an hour or more: is memory flat, are threads and files given back?

One worker, which lives as long as the soak, makes the shards of a small dataset again and again; a driver's begin and
close go round it once a pass. Every few seconds a row of the CSV: resident memory, open descriptors, threads, files of
this process in /dev/shm, files under way in the dataset, files in the temp folder.

Flat, by this criterion and no other: leave out the first fifth; cut the rest into 20 blocks of equal time; fit a line
to the block means (a block is long against what correlates neighbouring samples). *Memory* is flat when the upper end
of the slope's 95 % interval (t, 18 degrees of freedom), times the length of what was fitted, is less than 2 % of the
median. *Descriptors, threads and temp files* are counted once more at the end of each pass, when no shard is under way,
and are flat when the largest of these quiet counts in the second half is not larger than in the first. After the loop,
with worker and driver closed, they must be what they were before it.

It ends after the minutes that were asked for, or later: at the end of the first pass at which the samples suffice for
all this. How many there are in a time is a matter of the machine and of who else works on it.
"""

from __future__ import annotations

import csv
import gc
import io
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy import stats

from pipeline.stores.lease import hold
from pipeline.stores.volume import Volume
from pipeline.writing import run as runs
from pipeline.writing.task import ShardTask
from shards_schema import layout
from shards_schema.inputs.models import StrictModel
from tests.chaos.results import save
from tests.chaos.world import World

BLOCKS = 20
GROWTH = 0.02
"""Largest growth over what was fitted that counts as flat, as a share of the median."""

_PATIENCE = 100


class Config(StrictModel):
    """Knobs."""

    minutes: float = Field(default=30, gt=0)
    """How long at least."""
    every: float = Field(default=3, gt=0)
    """Seconds between two samples."""
    threads: int = Field(default=2, ge=1)
    """Shards in flight."""
    logs: int = Field(default=12, ge=1)
    """Of the world; as many shards."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the CSV.

    Attributes:
        seconds: since the loop began.
        shards: done so far.
        rss_mb: resident memory, 2^20 bytes.
        descriptors: open ones.
        threads: of the process, as the kernel counts them.
        shm: files in /dev/shm that this process has open or mapped.
        under_way: files in the dataset's ``.tmp/``.
        temp: files in the temp folder of this process.
        quiet: 1 at the end of a pass, when no shard is under way; 0 in the midst of work.
    """

    seconds: float
    shards: int
    rss_mb: float
    descriptors: int
    threads: int
    shm: int
    under_way: int
    temp: int
    quiet: int


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line: per hour, with the ends of the 95 % interval; `median` of what was fitted."""

    slope: float
    low: float
    high: float
    median: float
    hours: float

    @property
    def growth(self) -> float:
        """The upper end of the interval over the fitted time, as a share of the median."""
        return self.high * self.hours / self.median


def enough(samples: Sequence[Sample]) -> bool:
    """Whether `verdicts` can judge: two samples a block, and a quiet one in each half."""
    if not samples:
        return False
    first, last = samples[0].seconds, samples[-1].seconds
    late = [s.seconds >= last / 2 for s in samples if s.quiet]
    return sum(s.seconds >= first + 0.2 * (last - first) for s in samples) >= 2 * BLOCKS and len({*late}) == 2


def fit(seconds: Sequence[float], values: Sequence[float]) -> Line:
    """The line of the module: without the first fifth, over the means of `BLOCKS` blocks.

    Raises:
        ValueError: a block would be empty.
    """
    t, y = np.asarray(seconds) / 3600, np.asarray(values, dtype=float)
    keep = t >= t[0] + 0.2 * (t[-1] - t[0])
    t, y = t[keep], y[keep]
    if len(t) < 2 * BLOCKS:
        raise ValueError(f"{len(t)} samples are too few for {BLOCKS} blocks; soak longer, or sample more often")
    groups = np.array_split(np.arange(len(t)), BLOCKS)
    means = [(t[g].mean(), y[g].mean()) for g in groups]
    found = stats.linregress([m[0] for m in means], [m[1] for m in means])
    wide = float(stats.t.ppf(0.975, BLOCKS - 2)) * float(found.stderr)
    slope = float(found.slope)
    return Line(slope, slope - wide, slope + wide, float(np.median(y)), float(t[-1] - t[0]))


def verdicts(samples: Sequence[Sample], before: Sample, after: Sample) -> dict[str, Any]:
    """What the criterion of the module says, and the figures that it said it of."""
    line = fit([s.seconds for s in samples], [s.rss_mb for s in samples])
    half = samples[-1].seconds / 2
    counts = {}
    for name in ("descriptors", "threads", "shm", "under_way", "temp"):
        first = max(getattr(s, name) for s in samples if s.quiet and s.seconds < half)
        second = max(getattr(s, name) for s in samples if s.quiet and s.seconds >= half)
        busy = max(getattr(s, name) for s in samples)
        counts[name] = {"first": first, "second": second, "busy": busy, "flat": second <= first}
    left = {n: [getattr(before, n), getattr(after, n)] for n in ("descriptors", "threads", "shm", "under_way", "temp")}
    return {
        "minutes": samples[-1].seconds / 60,
        "shards": samples[-1].shards,
        "passes": sum(s.quiet for s in samples),
        "samples": len(samples),
        "rss": {**asdict(line), "growth": line.growth, "flat": line.growth < GROWTH},
        "counts": counts,
        "left": {name: {"before": b, "after": a, "clean": a <= b} for name, (b, a) in left.items()},
    }


def is_flat(found: dict[str, Any]) -> bool:
    """All of it."""
    return bool(
        found["rss"]["flat"]
        and all(c["flat"] for c in found["counts"].values())
        and all(c["clean"] for c in found["left"].values())
    )


def run(config: Config) -> int:
    """Soak, write ``out/chaos/soak.{csv,json}``, print the verdict; the exit code."""
    with tempfile.TemporaryDirectory(prefix="chaos-soak-") as folder:
        root = Path(folder)
        temp = root / "tmp"
        temp.mkdir()
        tempfile.tempdir = str(temp)
        try:
            samples, before, after = _soak(config, root, temp)
        finally:
            tempfile.tempdir = None
    found = verdicts(samples, before, after)
    text = _csv(samples)
    save("soak", {**found, "flat": is_flat(found), "config": config.model_dump()})
    save("soak", text, "csv")
    line = found["rss"]
    print(
        f"{found['shards']} shards in {found['minutes']:.1f} min; resident memory {line['median']:.0f} MB, slope "
        f"{line['slope']:+.2f} MB/h, 95 % interval [{line['low']:+.2f}, {line['high']:+.2f}]: at most "
        f"{line['growth']:+.2%} over the fitted {line['hours'] * 60:.0f} min (flat is < {GROWTH:.0%})"
    )
    for name, c in found["counts"].items():
        print(
            f"  {name}: quiet {c['first']} in the first half, {c['second']} in the second; at work at most {c['busy']}"
        )
    for name, c in found["left"].items():
        print(f"  {name}: {c['before']} before, {c['after']} after")
    print("FLAT" if is_flat(found) else "NOT FLAT")
    return 0 if is_flat(found) else 1


def _soak(config: Config, root: Path, temp: Path) -> tuple[list[Sample], Sample, Sample]:
    world = World.make(root / "images", logs=config.logs)
    out = root / "out"
    world.job(out)  # imports, pools and caches of the first time
    samples: list[Sample] = []
    done = 0
    began = time.monotonic()

    def look(quiet: int = 0) -> Sample:
        return measure(time.monotonic() - began, done, out, temp, quiet)

    gc.collect()
    before = look(1)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(look, samples, stop, config.every))
    watcher.start()
    try:
        run = world.begin(out)
        again = [_task(run, shard) for shard in range(run.plan.shards)]
        with world.worker(run) as worker, ThreadPoolExecutor(config.threads) as pool:
            while time.monotonic() - began < 60 * config.minutes or not enough(samples):
                for _ in pool.map(worker.process, again):
                    done += 1
                with hold(Volume(str(out))):
                    runs.close(world.begin(out))
                samples.append(look(1))
    finally:
        stop.set()
        watcher.join()
    gc.collect()
    for _ in range(_PATIENCE):  # a thread that was joined is counted until the kernel has taken it down
        if look(1).threads <= before.threads:
            break
        time.sleep(0.1)
    return samples, before, look(1)


def _task(run: runs.Run, shard: int) -> ShardTask:
    return ShardTask(shard, run.plan.shard(shard).scenes, tuple(run.columns))


def _watch(look: Any, samples: list[Sample], stop: threading.Event, every: float) -> None:
    while not stop.wait(every):
        samples.append(look())


def measure(seconds: float, shards: int, out: Path, temp: Path, quiet: int) -> Sample:
    """This process, now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    descriptors = os.listdir("/proc/self/fd")
    return Sample(
        seconds=round(seconds, 2),
        shards=shards,
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        descriptors=len(descriptors),
        threads=int(status["Threads"]),
        shm=sum("/dev/shm/" in line for line in Path("/proc/self/maps").read_text().splitlines()),
        under_way=_count(out / layout.TEMP),
        temp=_count(temp),
        quiet=quiet,
    )


def _count(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except FileNotFoundError:
        return 0


def _csv(samples: Sequence[Sample]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Sample)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(s) for s in samples)
    return out.getvalue()
