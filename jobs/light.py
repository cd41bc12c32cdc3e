"""The light meter of a run: how fast each teacher was while it was at work, and what share of the time that was.

Counted from the receipts alone: scenes that were written, and the seconds that the teacher's device was at work on them
(`pipeline.task.ColumnReceipt.teacher_seconds`). What a scene costs in operations is arithmetic (`teachers.flops`), so
none of this takes time from the run. `python -m benchmarks light` sets the same figures against the device's own rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from jobs.report import table
from pipeline.task import ShardReceipt
from shards_schema.errors import ShardsError
from teachers.base import Teacher
from teachers.flops import flops_of


class LightMeter:
    """The sums of a run's receipts, by column."""

    def __init__(self) -> None:
        self._scenes: defaultdict[str, int] = defaultdict(int)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, receipt: ShardReceipt) -> None:
        """A shard is committed."""
        for column in receipt.columns:
            self._scenes[column.column] += column.written
            self._seconds[column.column] += column.teacher_seconds

    def text(self, teachers: Sequence[Teacher], seconds: float, workers: int) -> str:
        """A blank line, and a table with a row for each teacher that was at work; nothing where none was.

        Args:
            teachers: of the run.
            seconds: of the run, from the first worker's start.
            workers: that ran side by side, each with a teacher's device of its own.
        """
        rows = [self._row(t, seconds * workers) for t in teachers if self._scenes[t.name] and self._seconds[t.name]]
        head = ["teacher", "scenes/s alone", "TFLOP/scene", "TFLOP/s", "busy"]
        return "\n" + table(head, rows) if rows else ""

    def _row(self, teacher: Teacher, whole: float) -> list[str]:
        rate = self._scenes[teacher.name] / self._seconds[teacher.name]
        tera = _tera(teacher)
        cost = ["-", "-"] if tera is None else [f"{tera:.3g}", f"{tera * rate:.3g}"]
        return [teacher.name, f"{rate:.2f}", *cost, f"{self._seconds[teacher.name] / whole:.0%}"]


def _tera(teacher: Teacher) -> float | None:
    """TFLOP a scene; None where it is not known (a report must not end a run that is done)."""
    try:
        flops = flops_of(teacher)
    except ShardsError:
        return None
    return None if flops is None else flops / 1e12
