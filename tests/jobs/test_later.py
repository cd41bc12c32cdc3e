"""Geometry of the future, as the pages have it: what `make plan` says of it, a column of the town's VGGT, a student."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs import plan as plan_job
from jobs import sft
from jobs import teachers as teachers_job
from pipeline.reading.reader import Dataset
from shards_schema.errors import ConfigError, IncompleteError
from tests import navsim_root
from tests.blocks import block, checkout
from tests.chaos.small import SCENES_A_LOG
from tests.inline_job import run_inline
from tests.made_once import drive
from tests.test_tutorial import jobs_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a page's commands can be typed."""
    checkout(tmp_path, monkeypatch)
    run_inline(monkeypatch)
    return tmp_path


def typed(page: str, home: Path) -> list[tuple[str, list[str]]]:
    """The jobs that the block `later` of a page starts, each with its arguments."""
    return [job for line in block(page, "later").strip().splitlines() for job in jobs_of(line, home)]


def small(told: list[str], data: Path, **filter: int) -> list[str]:
    """The same of other logs, in small."""
    scenes = {"frame_interval": 1, "num_history_frames": 4, "num_future_frames": 10, **filter}
    return [
        *told,
        "plan.shard_size=5",
        f"source={{kind: navsim, root: '{data}', split: mini, filter: {json.dumps(scenes)}}}",
        "samples.size=[64, 36]", "worker.torch_threads=1", "scan_processes=1",
    ]  # fmt: skip


def test_scenes_without_those_frames_are_told_before_anything_is_made(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No records: no scene, or a refusal of the config. No images: counted, refused, or left out where it is asked."""
    (plan, told), (teachers, told_too) = typed("teachers", home)
    assert (plan, teachers, told) == ("plan", "teachers", told_too)
    navsim_root.write(home / "data", {"log_a": 18, "log_b": 15})
    plan_job.main(small(told, home / "data"))
    text = capsys.readouterr().out
    assert "images of the future are asked for by vggt_later\n" in text
    assert re.search(r"^vggt_later +7 of 7 ", text, re.MULTILINE), text
    assert "found: 2 of 2 logs, 7 scenes\nwindows passed over: 26 too_short\n" in text
    with pytest.raises(ConfigError, match=r"frames \+2 \.\. \+8 .* set window and views, or give a filter with num_f"):
        plan_job.main(small(told, home / "data", num_future_frames=7))
    # one image of each log is gone: it is 4 s after now of a scene of each, 3 s of another and 2 s of a third of log_a
    navsim_root.write(home / "holes", {"log_a": 18, "log_b": 15}, lambda index, channel: index != 11)
    with pytest.raises(IncompleteError, match=r"vggt_later: 3 of 7 scenes .* plan\.require=\[vggt_later\]"):
        plan_job.main(small(told, home / "holes"))
    assert "vggt_later lacks CAM_F0 of future, step +4 .. +8 (2 scenes)" in capsys.readouterr().out
    plan_job.main([*small(told, home / "holes"), "plan.require=[vggt_later]"])
    assert "4 not_covered" in capsys.readouterr().out


def test_a_student_learns_geometry_now_and_geometry_later(
    home: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (_, later) = typed("teachers", home)
    now = "teachers.vggt={weights: {town: true}, network: town, views: [CAM_F0], width: 252, heads: []}"
    teachers_job.main([*small(later, drive(tmp_path_factory)), now])
    dataset = Dataset("out/demo")
    assert len(dataset.tokens("samples", "vggt", "vggt_later")) == 2 * SCENES_A_LOG
    (token, *_) = dataset.tokens("vggt_later")
    made = dataset.read(token, {"vggt": ["l3_tok12"], "vggt_later": ["l3_tok12"]})
    assert made["vggt_later"]["l3_tok12"].shape == (4, 12, 192)
    assert not np.allclose(made["vggt_later"]["l3_tok12"][0], made["vggt"]["l3_tok12"][0], atol=0.1)
    ((job, told),) = typed("training", home)
    assert job == "sft"
    short = [
        "stages=[{stage: 1, steps: 2}, {stage: 2, steps: 2}]", "evaluate_every=2", "save_every=2", "baselines=false",
        "student={kind: tiny, width: 16, depth: 2, heads: 2, image: [64, 32], patch: 16}", "samples.image=[64, 32]",
        "answers={kind: motion, size: 6}", "samples.held_out=0.5", "stream.batch_size=4", "device=cpu",
    ]  # fmt: skip
    rows = sft.main([*told, *short])
    assert "latents: 48 of vggt_later/l3_tok12, 12 of vggt/l3_tok12" in capsys.readouterr().out
    assert -1 <= rows["stage 2"]["cosine_wm"] <= 1
    assert -1 <= rows["stage 2"]["cosine_geo"] <= 1
