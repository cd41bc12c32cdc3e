"""A run as a machine reads it, ``log: json``: a line of JSON a minute on stdout.

What else is printed goes to stderr.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from pipeline.writing.recipe import Log
from reports.progress import MINUTE


class Lines:
    """The lines.

    Attributes:
        figures: what is known of the run, by name; asked at each line.
    """

    def __init__(self, out: str, to: TextIO | None) -> None:
        self.figures: Callable[[], Mapping[str, Any]] = dict
        self._out, self._to = out, to

    def put(self, state: str, **more: Any) -> None:
        """A line; nothing where nobody asked for lines."""
        if self._to is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            line = {"time": now, "state": state, "dataset": self._out, **self.figures(), **more}
            print(json.dumps(line), file=self._to, flush=True)


@contextmanager
def logged(how: Log, out: str) -> Iterator[Lines]:
    """Lines while the block runs: ``starting``, each minute ``running``, and how it ended.

    The last is ``done``; ``stopped`` (SIGTERM) or ``interrupted`` (Ctrl-C), which the same command goes on from; or
    ``failed``, with the ``error``. A minute's line comes of a thread, so also where the run itself waits.

    Args:
        how: "text" is no lines, and leaves stdout as it is.
        out: the dataset, as the lines call it.
    """
    if how == "text":
        yield Lines(out, None)
        return
    lines, over = Lines(out, sys.stdout), threading.Event()

    def each_minute() -> None:
        with suppress(OSError):  # nobody reads any more: the last line finds that out
            while not over.wait(MINUTE):
                lines.put("running")

    timer = threading.Thread(target=each_minute, name="log", daemon=True)
    state, more = "done", {}
    with redirect_stdout(sys.stderr):
        lines.put("starting")
        timer.start()
        try:
            yield lines
        except (SystemExit, KeyboardInterrupt) as left:
            state = "stopped" if isinstance(left, SystemExit) else "interrupted"
            raise
        except BaseException as error:
            state, more = "failed", {"error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            over.set()
            timer.join()
            lines.put(state, **more)
