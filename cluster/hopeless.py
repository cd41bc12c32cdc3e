"""A column that comes to nothing stops the run, in place of a table at its end.

The rule: nothing of the column has been written by this run, its first shards (three or more) are quarantined whole
under one and the same code, and that is already more than `max_quarantined` of the plan, so that the run cannot end
well. `max_quarantined: 1` never stops.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from pipeline.writing.task import ShardReceipt
from shards_schema.errors import IncompleteError

FIRST = 3
"""Shards that are waited for."""


class Hopeless:
    """What became of each column so far.

    Args:
        samples: of the plan.
        most: `max_quarantined`.
    """

    def __init__(self, samples: int, most: float) -> None:
        self._samples, self._most = samples, most
        self._shards: Counter[str] = Counter()
        self._codes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._alive: set[str] = set()

    def add(self, receipt: ShardReceipt) -> None:
        """A shard is committed.

        Raises:
            IncompleteError: a column comes to nothing.
        """
        for column in receipt.columns:
            codes = self._codes[column.column]
            codes.update(column.quarantined)
            self._shards[column.column] += 1
            if column.written or len(codes) > 1:
                self._alive.add(column.column)
            if column.column in self._alive or self._shards[column.column] < FIRST:
                continue
            (code, count), *_ = codes.items()
            if count > self._most * self._samples:
                raise IncompleteError(
                    f"column {column.column} comes to nothing: all {count} scenes of the first "
                    f"{self._shards[column.column]} shards are quarantined under {code}, which is more than "
                    f"max_quarantined ({self._most:.2%}) of the plan's {self._samples}, so the run is stopped. What "
                    f"was committed stays; the reasons stand in {column.column}/*.json. Mend the cause and run the "
                    f"same command again, leave teachers.{column.column} out, or go on regardless: max_quarantined=1"
                )
