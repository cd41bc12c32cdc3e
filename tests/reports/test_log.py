"""`log: json`: what a machine that reads stdout has, however the run goes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from pipeline.writing.task import ColumnReceipt, ShardReceipt
from reports import log
from reports.run import Work
from tests.blocks import DOCS


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def receipt(**more: Any) -> ShardReceipt:
    columns = tuple(
        ColumnReceipt(column=name, planned=4, written=3, quarantined={"image_missing": 1}, size=5, teacher_seconds=1.0)
        for name in ("samples", "vggt")
    )
    return ShardReceipt(shard=0, columns=columns, decodes=1, images=1, seconds=1.0, host="here", device="cpu", **more)


def work() -> Work:
    return Work(6, 2, 1, with_bar=False, show=lambda figures: None)


def test_stdout_has_json_alone_and_the_last_line_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with log.logged("json", "out/demo") as shown:
        print("for a person")
        shown.figures = work().figures
    out, err = capsys.readouterr()
    assert err == "for a person\n"
    first, last = lines(out)
    assert first.keys() == {"time", "state", "dataset"}
    assert (first["state"], last["state"], last["dataset"]) == ("starting", "done", "out/demo")
    assert last["shards_left"] == 4
    print("again")
    assert capsys.readouterr().out == "again\n"


@pytest.mark.parametrize(
    ("left", "state"),
    [(SystemExit(143), "stopped"), (KeyboardInterrupt(), "interrupted"), (ValueError("no disk"), "failed")],
)
def test_an_end_before_the_end_is_told_too(left: BaseException, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(left)), log.logged("json", "out/demo"):
        raise left
    last = lines(capsys.readouterr().out)[-1]
    assert last["state"] == state
    assert last.get("error") == ("ValueError: no disk" if state == "failed" else None)


def test_each_minute_has_its_line_also_while_the_run_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "MINUTE", 0.01)
    told = []
    with log.logged("json", "out/demo") as shown:
        shown.figures = lambda: {"shards_left": told.append(1) or len(told)}
        while len(told) < 3:
            time.sleep(0.01)
    found = lines(capsys.readouterr().out)
    assert {line["state"] for line in found[1:-1]} == {"running"}
    assert [line["shards_left"] for line in found if "shards_left" in line] == [*range(1, len(told) + 1)]


def test_text_leaves_stdout_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with log.logged("text", "out/demo"):
        print("for a person")
    assert capsys.readouterr() == ("for a person\n", "")


def test_the_figures_of_a_run_and_the_pages_table_of_them() -> None:
    run = work()
    assert {name for name, value in run.figures().items() if value is None} == {
        "scenes_per_second",
        "device_utilisation",
        "eta_seconds",
    }
    run.started(1)
    run.add(receipt())
    run.look(2, 7)
    figures = run.figures()
    assert (figures["scenes"], figures["bytes"], figures["shards_left"]) == (4, 10, 3)
    assert (figures["workers"], figures["retries"], figures["quarantined"]) == (2, 7, {"image_missing": 2})
    assert figures["device_utilisation"] is None, "no teacher in phases was at work"
    page = (DOCS / "clusters.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| `(ray_\w+)` \|", page, re.MULTILINE)
    assert [name for name, _ in told] == [*figures]
