"""On a job's PYTHONPATH: `time.time` and `time.time_ns` are off by the seconds that stand in the file $CHAOS_CLOCK.

Python runs this file when it starts, so it holds in the driver, in the actors and in Ray's own Python processes; Ray's
C++ keeps the true time, as another machine would. (libfaketime breaks `time.sleep` of Python 3.11, which Ray needs.)
"""

from __future__ import annotations

import os
import time

_true, _true_ns, _monotonic = time.time, time.time_ns, time.monotonic
_read = [0.0, -1.0]
"""The offset, and when it was read."""


def _offset() -> float:
    now = _monotonic()
    if now - _read[1] > 0.05:
        _read[1] = now
        try:
            with open(os.environ["CHAOS_CLOCK"]) as file:
                _read[0] = float(file.read() or 0)
        except OSError:
            pass
    return _read[0]


if "CHAOS_CLOCK" in os.environ:
    time.time = lambda: _true() + _offset()
    time.time_ns = lambda: _true_ns() + int(_offset() * 1e9)
