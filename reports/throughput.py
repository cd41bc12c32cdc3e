"""The throughput of a run: how fast each teacher was while it was at work, and what share of the time that was.

Counted from the receipts alone: scenes that were written, and the seconds that the teacher was at work on them
(`pipeline.writing.task.ColumnReceipt.teacher_seconds`). Teachers in phases share a worker's device, and their shares
add up to its utilisation; the others compute beside it. `python -m benchmarks light` sets the same figures against the
device's own matrix rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipeline.writing.task import ShardReceipt
from reports.tables import table
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
