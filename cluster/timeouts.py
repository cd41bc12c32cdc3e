"""How long something may take before it is taken for hung: a number that was given, or what the last ones took.

Nothing tells a slow worker from a hung one but time, and both mistakes cost: who waits loses one worker's time, who
kills loses the work of one that would have ended. Without a number it is therefore five times the longest of late, and
never less than a floor; what overran has twice as long the next time.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

_LAST = 255
"""How many of the last ones say what another may take."""
_TIMES = 5.0
"""How many times the longest of those another may take."""
_BLIND = 6 * 3600.0
"""Seconds that one may take while none has ended, so that nothing is known of how long it takes."""

SHARD_FLOOR = 1800.0
"""Seconds; a store may be asked again for eight minutes (`StoreConfig`)."""
LOAD_FLOOR = 2 * 3600.0
"""Seconds; 30 GB of weights take 1.7 hours at 5 MB/s, and nobody waits for a worker that still loads."""


@dataclass(frozen=True, slots=True)
class Hang:
    """A worker that has had a task (None: has been loading) for `seconds`, of which `limit` are given."""

    seat: int
    task: int | None
    seconds: float
    limit: float


class Timeout:
    """What one kind of thing took, and what the next may take.

    Args:
        given: seconds that one may take; None goes by what the last ones took.
        floor: seconds below which nothing is said to hang, where none are given.
    """

    def __init__(self, given: float | None, floor: float) -> None:
        self._given, self._floor = given, floor
        self._took: deque[float] = deque(maxlen=_LAST)
        self._overran: Counter[int] = Counter()

    def took(self, seconds: float) -> None:
        """One has ended well."""
        self._took.append(seconds)

    @property
    def limit(self) -> float:
        """Seconds that one may take the first time."""
        if self._given is not None:
            return self._given
        return max(self._floor, _TIMES * max(self._took)) if self._took else _BLIND

    def overran(self, which: int) -> None:
        """`which` took longer, and was ended."""
        self._overran[which] += 1

    def factor(self, which: int) -> int:
        """How many times `limit` `which` may take."""
        return int(2 ** self._overran[which])
