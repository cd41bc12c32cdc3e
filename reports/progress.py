"""How far a job is: a bar in a terminal; in a log, whole lines, one a minute, and no carriage returns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

MINUTE = 60.0


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar for a file: `update` shows it when a minute has passed, and `close` at the end."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """A line."""
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()
        return True

    def update(self, n: float | None = 1) -> bool | None:
        """Count, and show it when a minute has passed."""
        due = super().update(n)
        return self.display() if due else due

    def refresh(self, *arguments: Any, **more: Any) -> None:
        """Nothing: a line that is written stays."""

    def clear(self, *arguments: Any, **more: Any) -> None:
        """Nothing: a line that is written stays."""

    def close(self) -> None:
        """The last line."""
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]


def bar(
    of: Iterable[Any] | None = None, *, unit: str, total: int | None = None, done: int = 0, needed: bool = True
) -> tqdm[Any]:
    """A bar on stderr.

    Args:
        of: what is gone through, where the bar is to count it by itself.
        unit: of what is counted.
        total: how many there are.
        done: of them, before this process.
        needed: False is a bar that shows nothing.
    """
    settings: dict[str, Any] = {"total": total, "initial": done, "unit": unit, "disable": not needed}
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(of, dynamic_ncols=True, mininterval=0.5, **settings)
    return _Lines(of, mininterval=MINUTE, miniters=1, **settings)


def lines(show: Callable[[str], object]) -> Callable[[str], None]:
    """`show`, but of many lines that tell how far something is one a minute, where nobody watches them."""
    if sys.stdout is not None and sys.stdout.isatty():
        return lambda line: (show(line), None)[1]
    last = -MINUTE

    def shown(line: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= MINUTE:
            last = now
            show(line)

    return shown
