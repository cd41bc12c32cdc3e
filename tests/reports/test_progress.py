"""Progress in a log that is no terminal: whole lines, few of them; in a terminal a bar."""

from __future__ import annotations

import io
import sys

import pytest

from reports import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _counted(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, steps: int, seconds: float) -> str:
    """What is shown of a job whose steps take so long, by a clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    shown = progress.bar(total=steps, unit="shard")
    shown._time = lambda: now[0]  # type: ignore[attr-defined]
    shown.start_t = shown.last_print_t = 0.0
    for step in range(steps):
        now[0] += seconds
        shown.set_postfix_str(f"{step} done")
        shown.update()
    shown.close()
    return stream.getvalue()


def test_a_line_a_minute_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told = _counted(monkeypatch, io.StringIO(), steps=100, seconds=6.5)
    lines = told.splitlines()
    assert "\r" not in told
    assert len(lines) == 650 // 65 + 1
    assert "100/100" in lines[-1]
    assert told.endswith("\n")
    assert "99 done" in lines[-1]


def test_a_short_job_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told = _counted(monkeypatch, io.StringIO(), steps=3, seconds=0.01)
    assert told.count("\n") == 1
    assert "3/3" in told


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\r" in _counted(monkeypatch, Terminal(), steps=3, seconds=1)


def test_what_is_gone_through_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress.bar(range(7), unit="run")) == list(range(7))
    assert "7/7" in stream.getvalue()
    assert list(progress.bar(range(7), unit="run", needed=False)) == list(range(7))
    assert stream.getvalue().count("\n") == 1


def test_lines_of_a_generator_are_few_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    tell = progress.lines(shown.append)
    for number in range(1000):
        tell(f"log {number}")
    assert shown == ["log 0"]
    monkeypatch.setattr(sys, "stdout", Terminal())
    tell = progress.lines(shown.append)
    tell("a")
    tell("b")
    assert shown == ["log 0", "a", "b"]
