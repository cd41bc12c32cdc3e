"""The teacher's thread: one call at a time, the smallest ticket first, errors to whoever asked."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from pipeline.writing.device_queue import Turns


def test_the_oldest_goes_first_and_keeps_its_order() -> None:
    turns = Turns("t")
    gate = threading.Event()
    made: list[str] = []
    held = turns.submit(9, gate.wait)  # while this one runs, the others queue up
    calls = [(2, "b1"), (1, "a1"), (2, "b2"), (1, "a2"), (3, "c1")]
    futures = [turns.submit(ticket, partial(made.append, name)) for ticket, name in calls]
    gate.set()
    assert held.result()
    for future in futures:
        future.result()
    assert made == ["a1", "a2", "b1", "b2", "c1"]
    turns.close()


def test_an_error_reaches_its_caller_and_nobody_else() -> None:
    turns = Turns("t")
    bad, good = turns.submit(0, lambda: 1 // 0), turns.submit(0, threading.current_thread)
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert good.result().name == "t"
    turns.close()


def test_close_lets_the_queue_run_out() -> None:
    turns = Turns("t")
    futures = [turns.submit(i, partial(int, i)) for i in range(20)]
    turns.close()
    assert [f.result(timeout=0) for f in futures] == list(range(20))


def test_the_next_is_chosen_when_there_is_room_and_not_before() -> None:
    """One that came late, but is older, goes before those that waited for the device with the thread."""
    device, waiting = threading.Event(), threading.Event()

    def room() -> None:
        if made:
            waiting.set()
            device.wait()

    made: list[str] = []
    turns = Turns("t", room)
    turns.submit(1, partial(made.append, "first")).result()
    assert waiting.wait()
    young = turns.submit(9, partial(made.append, "young"))
    old = turns.submit(1, partial(made.append, "old"))
    assert made == ["first"]
    device.set()
    for future in (young, old):
        future.result()
    assert made == ["first", "old", "young"]
    turns.close()
