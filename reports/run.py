"""What `jobs.teachers` says of a run: what it will do, what it did, how fast, and that too much was left out.

Throughput is how fast each teacher was while it was at work, and what share of the time that was. It is counted from
the receipts alone: scenes that were written, and the seconds that the teacher was at work on them
(`pipeline.writing.task.ColumnReceipt.teacher_seconds`). Teachers in phases share a worker's device, and their shares
add up to its utilisation; the others compute beside it. `python -m benchmarks light` sets the same figures against the
device's own matrix rate.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.writing import run as runs
from pipeline.writing.recipe import Recipe
from pipeline.writing.task import ShardReceipt
from reports.progress import bar
from reports.tables import bytes_text, table
from shards_schema import layout
from shards_schema.errors import IncompleteError
from teachers.base import Teacher


class Throughput:
    """The sums of a run's receipts, by column."""

    def __init__(self) -> None:
        self._scenes: defaultdict[str, int] = defaultdict(int)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._device = 0.0

    def add(self, receipt: ShardReceipt) -> None:
        """A shard is committed."""
        for column in receipt.columns:
            self._scenes[column.column] += column.written
            self._seconds[column.column] += column.teacher_seconds
            if column.launched:
                self._device += column.teacher_seconds

    def device_share(self, seconds: float, workers: int) -> float | None:
        """The share of the run in which the workers' devices were at work.

        It is None where no teacher is one in phases: a thread that computes has no device's clock.
        """
        return self._device / (seconds * workers) if self._device and seconds else None

    def device_busy(self, seconds: float, workers: int) -> str:
        """``, device busy 96%``: `device_share` in words; nothing where there is none."""
        share = self.device_share(seconds, workers)
        return "" if share is None else f", device busy {share:.0%}"

    def text(self, teachers: Sequence[Teacher], seconds: float, workers: int) -> str:
        """A blank line, and a table with a row for each teacher that was at work; nothing where none was.

        Args:
            teachers: of the run.
            seconds: of the run, from the first worker's start.
            workers: that ran side by side, each with a teacher's device of its own.
        """
        rows = [self._row(t, seconds * workers) for t in teachers if self._scenes[t.name] and self._seconds[t.name]]
        head = ["teacher", "scenes/s alone", "busy"]
        return "\n" + table(head, rows) if rows else ""

    def _row(self, teacher: Teacher, whole: float) -> list[str]:
        rate = self._scenes[teacher.name] / self._seconds[teacher.name]
        return [teacher.name, f"{rate:.2f}", f"{self._seconds[teacher.name] / whole:.0%}"]


class Work:
    """What the workers have done, in sums: for the bar and `show` while they are at it, and for the closing table.

    Args:
        shards: of the plan.
        done: of them, before this process.
        workers: that are at it.
        with_bar: whether a person watches.
        show: gets the `figures` whenever they change, and every second.
    """

    def __init__(
        self, shards: int, done: int, workers: int, *, with_bar: bool, show: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.workers = workers
        self._bar = bar(total=shards, done=done, unit="shard", needed=with_bar and shards != done)
        self._todo, self._done, self._show = shards - done, 0, show
        self._ready = self._retries = self._bytes = 0
        self._first = 0.0
        self.scenes = 0
        self.decodes = 0
        self.images = 0
        self.throughput = Throughput()
        self.quarantined: Counter[str] = Counter()

    def started(self, pid: int) -> None:
        """A worker is ready."""
        self._first = self._first or time.perf_counter()

    def look(self, ready: int, retries: int) -> None:
        """So many workers are ready, and so often was a shard tried again."""
        self._ready, self._retries = ready, retries
        self._show(self.figures())

    def add(self, receipt: ShardReceipt) -> None:
        """A shard is committed."""
        self._done += 1
        self._bytes += sum(c.size for c in receipt.columns)
        self.scenes += max(c.planned for c in receipt.columns)
        self.decodes += receipt.decodes
        self.images += receipt.images
        self.throughput.add(receipt)
        for column in receipt.columns:
            self.quarantined.update(column.quarantined)
        self._bar.set_postfix_str(self.text)
        self._bar.update()
        self._show(self.figures())

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the first worker was ready."""
        return max(time.perf_counter() - self._first, 1e-9) if self._first else 0.0

    def figures(self) -> dict[str, Any]:
        """What an operator watches, by name; docs/clusters.md says what each is. None is what is not known."""
        seconds, left = self.seconds, self._todo - self._done
        share = self.throughput.device_share(seconds, self.workers)
        return {
            "scenes": self.scenes,
            "scenes_per_second": round(self.scenes / seconds, 3) if self._done else None,
            "device_utilisation": None if share is None else round(share, 3),
            "quarantined": dict(self.quarantined),
            "shards_left": left,
            "eta_seconds": round(seconds * left / self._done) if self._done else None,
            "retries": self._retries,
            "bytes": self._bytes,
            "workers": self._ready,
        }

    @property
    def text(self) -> str:
        """How fast it is, in a few words."""
        return (
            f"{self.scenes / self.seconds:.1f} scenes/s"
            + self.throughput.device_busy(self.seconds, self.workers)
            + (f", quarantined {self.quarantined.total()}" if self.quarantined else "")
        )


def print_plan(run: runs.Run, recipe: Recipe, todo: int) -> None:
    """What is planned, how far each column is, and what is to be known of it."""
    plan = run.plan
    print(
        f"planned {plan.samples} scenes in {plan.shards} shards of at most {plan.config.shard_size} "
        f"(plan {plan.digest[:12]}); columns {', '.join(run.columns)}; "
        + (_states(run) if run.done or run.again.pairs else "none is committed yet")
    )
    _print_more(run, recipe)
    for notice in run.notices:
        print(f"NOTE: {notice}")


def _states(run: runs.Run) -> str:
    """How far each column is: some may be finished that others wait for."""
    committed = Counter(column for _, column in run.done)

    def told(column: str) -> str:
        done, todo = committed[column], run.plan.shards - committed[column]
        parts = [f"{done} shard{'s' * (done != 1)} committed"] * bool(done) + [f"{todo} to do"]
        return f"{column}: {', '.join(parts)}"

    return "; ".join(map(told, run.columns))


def _print_more(run: runs.Run, recipe: Recipe) -> None:
    """What this run does beyond the plan that was there."""
    if run.grown:
        print(f"the dataset grows: {run.grown} scenes were not in its plan, and get shards of their own")
    if run.again.pairs:
        codes = ", ".join(f"{n} x {code}" for code, n in sorted(run.again.samples.items()))
        print(f"made again: {len(run.again.pairs)} shards of a column, which left out {codes}")
    if unknown := sorted({*(recipe.retry or ())} - {*run.again.known}):
        known = ", ".join(f"{code} ({n})" for code, n in sorted(run.again.known.items()))
        print(f"retry: nothing that is committed was left out as {', '.join(unknown)}; there is {known or 'nothing'}")


def print_closing(
    recipe: Recipe,
    run: runs.Run,
    columns: list[Teacher],
    totals: list[runs.ColumnTotal],
    work: Work | None,
    seconds: float,
) -> None:
    """What each column has, how fast it was made (`work`: None where nothing was left to do), and what to do next."""
    rows = [
        [t.column, str(t.shards), str(t.planned), str(t.written), str(sum(t.quarantined.values())), bytes_text(t.size)]
        for t in totals
    ]
    print()
    print(table(["column", "shards", "planned", "written", "quarantined", "size"], rows))
    for total in totals:
        for code, count in sorted(total.quarantined.items()):
            print(f"  {total.column}: {count} x {code}")
    if codes := sorted({code for total in totals for code in total.quarantined}):
        print(f"  {_retry(codes)}")
    if work is not None and work.images:
        print(
            f"\n{work.scenes} scenes in {work.seconds:.1f} s of work ({seconds:.1f} s in all): "
            f"{work.scenes / work.seconds:.2f} scenes/s"
            f"{work.throughput.device_busy(work.seconds, work.workers)}, "
            f"{work.decodes / work.images:.2f} JPEG decodes per distinct image"
        )
        print(work.throughput.text(columns, work.seconds, work.workers))
    for notice in run.notices:
        print(f"NOTE: {notice}")
    print(f"\nplanned = written + quarantined for every column. The dataset is {run.volume.path('').rstrip('/')}")
    out = shlex.quote(recipe.out)
    print(f"  make verify OUT={out}    re-read and check every byte")
    print(f"  make inspect OUT={out}   what is in it, and a page of pictures")


def _retry(codes: Sequence[str]) -> str:
    """How what was left out is had, for a person."""
    return (
        "an image that arrives, or a log that can be read again, is looked at by the same command; what else you have "
        f'mended is made again by retry=[{",".join(codes)}] (make teachers SET="retry=[...]")'
    )


def refuse_left_out(recipe: Recipe, run: runs.Run, totals: list[runs.ColumnTotal]) -> None:
    """Raises IncompleteError where more was left out than the recipe allows."""
    for total in totals:
        share = sum(total.quarantined.values()) / total.planned
        if share > recipe.max_quarantined:
            raise IncompleteError(
                f"column {total.column}: {share:.2%} of {total.planned} samples are quarantined, max_quarantined is "
                f"{recipe.max_quarantined:.2%}; the reasons stand in {run.volume.path(layout.QUARANTINE)}; "
                f"{_retry(sorted(total.quarantined))}"
            )
    logs = len({*run.plan.table["log"].unique().to_pylist(), *run.scan.unreadable})
    if len(run.scan.unreadable) > recipe.max_quarantined * logs:
        raise IncompleteError(
            f"{len(run.scan.unreadable)} of {logs} logs are unreadable, max_quarantined is "
            f"{recipe.max_quarantined:.2%}; the reasons stand in dataset.json"
        )
    bad = run.scan.skipped.get("bad_frame", 0)
    if bad > recipe.max_quarantined * (run.plan.samples + bad):
        raise IncompleteError(
            f"{bad} windows have no current frame that can be used, max_quarantined is {recipe.max_quarantined:.2%}; "
            f"the first: {run.scan.examples['bad_frame']}"
        )
    if len(run.scan.not_found) > recipe.max_quarantined * run.plan.samples:
        raise IncompleteError(
            f"{len(run.scan.not_found)} tokens of the filter are in no log; they stand in dataset.json (plan.not_found)"
        )
