"""The real job on a real Ray under one fault, and the judge judged. `python -m tests.chaos jobs` has all faults."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import jobs, report
from tests.chaos.harms import SCENARIOS, Outcome, Scenario, begun
from tests.chaos.jobs import strike
from tests.chaos.processes import records
from tests.chaos.report import page
from tests.chaos.room import Room
from tests.made_once import drive, undisturbed
from tests.test_house import ROOMS, folder, imports

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    data, clean = drive(tmp_path_factory), undisturbed(tmp_path_factory)
    with tempfile.TemporaryDirectory(prefix="cj", dir="/tmp") as folder:  # Ray's sockets want a short path
        yield Room(Path(folder), logs=2, data=data, clean=clean)


def by_name(name: str) -> Scenario:
    return next(s for s in SCENARIOS if s.name == name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["full"])
def test_a_fault_loses_nothing(room: Room, name: str) -> None:
    outcome = strike(room, by_name(name), 1)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.wrong == []
    assert outcome.resumed
    assert (outcome.lost, outcome.duplicated, outcome.leftover, outcome.rewritten) == (0, 0, 0, 0)


@pytest.mark.timeout(600)
def test_the_judge_sees_what_is_wrong(room: Room) -> None:
    """A dataset that lost a shard, has leftovers, and has a record that lies."""
    out = room.folder / "bad"
    shutil.copytree(room.clean, out)
    assert jobs._untrue(out, room) == []
    names = sorted(records(out))
    (out / names[0].replace(".json", ".tar")).unlink()
    (out / names[-1]).unlink()
    (out / ".tmp").mkdir()
    (out / ".tmp" / names[-1].replace("/", "%").replace(".json", ".tar.0123456789ab")).write_bytes(b"half")
    outcome = Outcome(scenario="none", at=0)
    jobs._judge(room, out, [], outcome)
    assert (outcome.lost, outcome.leftover) == (1, 2)
    assert any("verify" in wrong for wrong in outcome.wrong)
    assert jobs._untrue(out, room) == [f"{names[0]} vouches for {names[0].replace('.json', '.tar')}"]
    assert len(begun(out)) == 1


def test_the_report_is_made_of_results_only() -> None:
    """Without results there is no figure on the page; each bug's test is there."""
    text = page(None, None, None)
    assert text.count("Not run here") >= 3
    assert "| what | mended by | test |" in text


def test_a_bug_without_its_test_stops_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "BUGS", (report.Bug("x", "y", ("tests/chaos/test_soak.py::test_nowhere",)),))
    with pytest.raises(FileNotFoundError, match="test_nowhere"):
        page(None, None, None)


def test_the_product_does_not_know_of_chaos() -> None:
    for name in set(ROOMS) - {"tests/chaos"}:
        for path in folder(name).rglob("*.py"):
            assert not any(m.split(".")[0] == "tests" for m in imports(path)), path


def test_an_unknown_part_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["chaos", "monkey"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("tests.chaos", run_name="__main__")
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"expected one of .*faults, .*jobs, .*report, .*got monkey", said), said
    assert ast.get_docstring(ast.parse((ROOT / "tests" / "chaos" / "__main__.py").read_text())) is not None
