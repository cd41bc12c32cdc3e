"""Frames before now from end to end, as the pages have it: a dataset of the town."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.reading.reader import Dataset
from tests.blocks import DOCS, block
from tests.chaos import small
from tests.inline_job import run_inline
from tests.made_once import drive
from tests.test_tutorial import jobs_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a page's commands can be typed."""
    for name in ("Makefile", "configs", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(DOCS.parent / name)
    monkeypatch.chdir(tmp_path)
    run_inline(monkeypatch)
    return tmp_path


def test_a_dataset_with_a_history_is_made_and_read(
    home: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    source = small.source(drive(tmp_path_factory))
    more = [f"source={json.dumps(source)}", "teachers={}", "plan.shard_size=5", "samples.size=[64, 36]"]
    told = ""
    for line in block("recipe", "history").strip().splitlines():
        for job, arguments in jobs_of(line, home):
            import_module(f"jobs.{job}").main([*arguments, *more, "scan_processes=1"])
            told += capsys.readouterr().out
    assert told.count("samples stores 2 images of before now (samples.history) beside those of now: they add ") == 2
    dataset = Dataset("out/moving", columns=["samples"])
    pictures = ["cam_f0.past2.jpg", "cam_f0.past1.jpg", "cam_f0.jpg"]
    for token in dataset.tokens():
        sample = dataset.read(token, {"samples": pictures})["samples"]
        assert len({sample[name] for name in pictures}) == 3
    assert import_module("jobs.verify").main(["out=out/moving"]) == 0
    import_module("jobs.inspect").main(["out=out/moving", "scenes=1"])
    assert "cam_f0.past1" in capsys.readouterr().out
