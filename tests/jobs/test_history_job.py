"""Frames before now from end to end, as the pages have it: a dataset of the town."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from jobs import questions, reason
from pipeline.reading.reader import Dataset
from questions.units import read_units
from tests.blocks import block, checkout
from tests.chaos import small
from tests.inline_job import run_inline
from tests.made_once import drive
from tests.test_tutorial import jobs_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a page's commands can be typed."""
    checkout(tmp_path, monkeypatch)
    run_inline(monkeypatch)
    return tmp_path


def typed(page: str, home: Path, *more: str) -> list[str]:
    """What the block `history` of a page types is done; the jobs that it starts, in order."""
    ran = []
    for line in block(page, "history").strip().splitlines():
        for job, arguments in jobs_of(line, home):
            import_module(f"jobs.{job}").main([*arguments, *more])
            ran.append(job)
    return ran


def test_from_logs_to_a_student_that_is_asked_what_moves(
    home: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"source={json.dumps(small.source(drive(tmp_path_factory)))}"
    smaller = ["teachers={}", "plan.shard_size=5", "samples.size=[64, 36]", "scan_processes=1"]
    assert typed("recipe", home, source, *smaller) == ["plan", "teachers"]
    told = capsys.readouterr().out
    assert told.count("samples.history: a sample stores 2 more images, of frames before now; that adds ") == 2
    dataset = Dataset("out/moving", columns=["samples"])
    pictures = ["cam_f0.past2.jpg", "cam_f0.past1.jpg", "cam_f0.jpg"]
    for token in dataset.tokens():
        sample = dataset.read(token, {"samples": pictures})["samples"]
        assert len({sample[name] for name in pictures}) == 3
    assert import_module("jobs.verify").main(["out=out/moving"]) == 0
    import_module("jobs.inspect").main(["out=out/moving", "scenes=1"])
    assert "cam_f0.past1" in capsys.readouterr().out
    rules = ["seconds=0", "image=100", "height=0", "area=0", "margins=false", "depth=[0.5, 500]", "hidden=1", "whole=0"]
    asks = [*(f"rules.{rule}" for rule in rules), "looks=labels", "held_out=0.5", "split_seed=1", "drawn=0"]
    assert questions.main(["make", "data=out/moving", "out=units", *asks]) == 0
    made = read_units(home / "units/dynamics_train.jsonl")
    assert {tuple(frame.back for frame in p.past) for p in made} == {(None, 2, 1)}  # the window has a frame more
    assert {"moves", "where_later"} <= {p.category for p in made}
    asked = ["samples.held_out=0.5", "samples.split_seed=1", "questions.units=units/dynamics_train.jsonl"]
    short = ["thought=none", "stages=[{stage: 2, steps: 1}]", "answers.size=4", "stream.batch_size=2", "device=cpu"]
    tiny = ["student={kind: tiny, width: 16, depth: 1, heads: 2, image: [64, 32]}", "samples.image=[64, 32]"]
    assert typed("training", home, *asked, *short, *tiny, "baselines=false") == ["sft"]
    assert f"{len(made)} questions of units/dynamics_train.jsonl\n" in capsys.readouterr().out  # all, and none is left
    command = ["policy=runs/moving/stage_1.pt", "units=units/dynamics_evaluation.jsonl", "data=out/moving", "out=asked"]
    assert reason.main([*command, "device=cpu", "ways=[stage_2]", "drawn=0", "length=4"]) == 0
    assert re.search(r"^faster +[1-9]", capsys.readouterr().out, re.MULTILINE)
