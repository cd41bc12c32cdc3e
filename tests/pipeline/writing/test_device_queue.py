"""The teacher's thread: one call at a time, the smallest ticket first, errors to whoever asked."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from pipeline.writing.device_queue import DeviceQueue


def test_the_oldest_goes_first_and_keeps_its_order() -> None:
    queue = DeviceQueue("t")
    gate = threading.Event()
    made: list[str] = []
    held = queue.submit(9, gate.wait)  # while this one runs, the others queue up
    calls = [(2, "b1"), (1, "a1"), (2, "b2"), (1, "a2"), (3, "c1")]
    futures = [queue.submit(ticket, partial(made.append, name)) for ticket, name in calls]
    gate.set()
    assert held.result()
    for future in futures:
        future.result()
    assert made == ["a1", "a2", "b1", "b2", "c1"]
    queue.close()


def test_an_error_reaches_its_caller_and_nobody_else() -> None:
    queue = DeviceQueue("t")
    bad, good = queue.submit(0, lambda: 1 // 0), queue.submit(0, threading.current_thread)
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert good.result().name == "t"
    queue.close()


def test_close_lets_the_queue_run_out() -> None:
    queue = DeviceQueue("t")
    futures = [queue.submit(i, partial(int, i)) for i in range(20)]
    queue.close()
    assert [f.result(timeout=0) for f in futures] == list(range(20))


def test_the_next_is_chosen_when_there_is_room_and_not_before() -> None:
    """One that came late, but is older, goes before those that waited for the device with the thread."""
    device, waiting = threading.Event(), threading.Event()

    def room() -> None:
        if made:
            waiting.set()
            device.wait()

    made: list[str] = []
    queue = DeviceQueue("t", room)
    queue.submit(1, partial(made.append, "first")).result()
    assert waiting.wait()
    young = queue.submit(9, partial(made.append, "young"))
    old = queue.submit(1, partial(made.append, "old"))
    assert made == ["first"]
    device.set()
    for future in (young, old):
        future.result()
    assert made == ["first", "old", "young"]
    queue.close()
