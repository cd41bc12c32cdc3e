"""Frames of the past in `samples`: what is stored, what is told before a run, and what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import webdataset

from jobs import plan as plan_job
from jobs import teachers as teachers_job
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.sources import registry
from pipeline.stores.decode import decode_jpeg
from pipeline.writing import run as runs
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from shards_schema import layout
from shards_schema.errors import ConfigError, IncompleteError, MismatchError
from shards_schema.manifests import ZarrMode
from shards_schema.plan import PlanConfig
from tests import navsim_root
from tests.committed import commit
from tests.inline_job import run_inline
from tests.made_once import nuplan
from tests.toys import ToySource, ToyTeacher, write_images


@pytest.mark.parametrize("zarr", [False, "view"])
def test_a_sample_has_the_files_of_the_frames_before(tmp_path: Path, zarr: ZarrMode) -> None:
    write_images(tmp_path / "data", logs=2, frames=9)
    source = ToySource(str(tmp_path / "data"), logs=2)
    commit(source, tmp_path / "out", [ToyTeacher()], zarr=zarr, history=1)
    report = verify(str(tmp_path / "out"))
    assert not report.faults
    assert not report.incomplete
    dataset = Dataset(str(tmp_path / "out"))
    assert {*dataset.members("samples")} == {"json", "cam_f0.jpg", "cam_f0.past1.jpg"}
    assert len(dataset.tokens("samples")) == 2 * 5
    for token in dataset.tokens("samples"):
        sample = dataset.read(token, {"samples": ["json", "cam_f0.jpg", "cam_f0.past1.jpg"]})["samples"]
        log, frame = f"log{int(token[:8], 16):02d}", int(token[8:], 16)
        assert sample["cam_f0.jpg"] == (tmp_path / f"data/{log}/{frame:03d}.jpg").read_bytes()
        assert sample["cam_f0.past1.jpg"] == (tmp_path / f"data/{log}/{frame - 1:03d}.jpg").read_bytes()
        document = sample["json"]
        assert [*document["cameras"]] == ["cam_f0"]
        past = document["past"]["cam_f0.past1"]
        (before,) = [f for f in document["frames"] if f["step"] == -1]
        assert {key: past[key] for key in before} == before
        assert {**past, **document["cameras"]["cam_f0"]} == past  # the same rig
    tar = webdataset.WebDataset(str(tmp_path / "out" / layout.tar("samples", 0)), shardshuffle=False).decode("rgb8")
    first = next(iter(tar))
    assert first["cam_f0.past1.jpg"].shape == (32, 48, 3)
    assert not np.array_equal(first["cam_f0.past1.jpg"], first["cam_f0.jpg"])


def test_a_frame_that_the_log_does_not_have_quarantines_the_sample(tmp_path: Path) -> None:
    """The first window of each log has two frames up to now, and three are asked for."""
    write_images(tmp_path / "data", logs=2, frames=9)
    commit(ToySource(str(tmp_path / "data"), logs=2), tmp_path / "out", [ToyTeacher()], history=2)
    dataset = Dataset(str(tmp_path / "out"))
    assert (len(dataset.tokens("samples")), len(dataset.tokens("toy"))) == (8, 10)
    assert {q.code for q in dataset.quarantined("samples").values()} == {"missing_frame"}
    (tmp_path / "data/log01/003.jpg").unlink()  # of now, or of before, of three more
    commit(ToySource(str(tmp_path / "data"), logs=2), tmp_path / "less", [], history=2)
    left = Dataset(str(tmp_path / "less")).quarantined("samples")
    assert sorted(q.code for q in left.values()) == ["image_missing"] * 3 + ["missing_frame"] * 2


def test_without_a_history_a_column_is_what_it_was(tmp_path: Path) -> None:
    column = SamplesColumn(SamplesConfig(size=(448, 252)), num_history=4, num_future=10)
    manifest = column.manifest({"python": "3.11"})
    assert manifest.fingerprint == "a13d249f48a7929d4d6ec8d9b2107a2783cd80b915e459c07db3b1852d96ee80"
    seal = json.loads(manifest.to_bytes())["sha256"]
    assert seal == "32c0047d429200a6861c28bc537a5e4d963ff062421555fea00eb1d3f2a10581"
    write_images(tmp_path / "data", logs=1, frames=5)
    source = ToySource(str(tmp_path / "data"), logs=1, frames=5)
    run = commit(source, tmp_path / "out", [])
    (token,) = Dataset(str(tmp_path / "out")).tokens()
    assert "past" not in Dataset(str(tmp_path / "out")).read(token, {"samples": ["json"]})["samples"]["json"]
    other = SamplesColumn(SamplesConfig(history=1), num_history=2, num_future=3).manifest({})
    with pytest.raises(MismatchError, match=r"provenance\.history: absent -> 1"):
        runs.begin(source, str(tmp_path / "out"), [other], plan_config=PlanConfig(shard_size=6))
    assert run.columns["samples"].provenance.get("history") is None


# --- before and in a run


def command(root: Path, *more: str, history: int = 2) -> list[str]:
    source = f"source={{kind: navsim, root: '{root}/data', split: mini, filter: {{frame_interval: 1}}}}"
    small = ("plan.shard_size=3", "scan_processes=1", "worker.device=cpu", f"samples.history={history}")
    return [f"out={root}/out", source, "teachers={}", *small, *more]


def test_what_a_plan_tells_of_the_past_is_what_the_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NAVSIM's images of history come in archives of their own, and may not be there."""
    navsim_root.write(tmp_path / "data", {"log_a": 16}, lambda index, channel: index > 1)  # now: 3, 4, 5
    with pytest.raises(
        IncompleteError, match=r"samples: 2 of 3 scenes .*samples\.history\); plan\.require=\[samples\]"
    ):
        plan_job.main(command(tmp_path))
    told = capsys.readouterr().out
    assert "samples lacks CAM_F0 of history, step -2 (1 scenes)\n" in told
    covered = command(tmp_path, "plan.require=[samples]")
    plan_job.main(covered)
    told = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    run_inline(monkeypatch)
    teachers_job.main(covered)
    assert len(Dataset(str(tmp_path / "out")).tokens("samples")) == 2
    index = pd.read_parquet(tmp_path / "out" / layout.INDEX)
    past = index[index.member.str.contains("past")]
    size = sum(512 + -(-size // 512) * 512 for size in past["size"])
    more = re.findall(r"samples\.history: a sample stores 2 more images, .*; that adds ([\d.]+) kB to each, ", told)
    assert abs(float(more[0]) * 1000 - size / 2) < 2048  # the records grow too


def test_an_image_of_the_past_that_went_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 16}, lambda index, channel: index > 1)
    run_inline(monkeypatch)
    teachers_job.main(command(tmp_path, "max_quarantined=0.5"))
    dataset = Dataset(str(tmp_path / "out"))
    assert len(dataset.tokens("samples")) == 2
    ((token, left),) = dataset.quarantined("samples").items()
    assert (token, left.code) == (navsim_root.token_of("log_a", 3), "image_missing")
    navsim_root.write_images(tmp_path / "data", navsim_root.frames("log_a", 16, ("CAM_F0",)))
    teachers_job.main(command(tmp_path, "max_quarantined=0.5"))  # the archive came
    assert len(Dataset(str(tmp_path / "out")).tokens("samples")) == 3
    assert not verify(str(tmp_path / "out")).faults


def test_more_frames_than_a_window_has_are_refused_by_the_recipe(tmp_path: Path) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 16})
    with pytest.raises(
        ConfigError, match=r"samples: it asks for frames -5 .* samples\.history, or source\.context_fr.*=2"
    ):
        plan_job.main(command(tmp_path, history=5))


def test_a_nuplan_log_gives_the_frames_before(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    root = nuplan(tmp_path_factory)
    filter = {"num_history_frames": 2, "num_future_frames": 2, "frame_interval": 1, "has_route": False}
    where = {"root": str(root / "nuplan-v1.1"), "maps_root": str(root / "maps"), "split": "mini"}
    blobs = str(root / "sensor_blobs" / "mini")
    source = registry.build({"kind": "nuplan", **where, "sensor_root": blobs, "lidar": False, "filter": filter})
    commit(source, tmp_path / "out", [], history=1)
    dataset = Dataset(str(tmp_path / "out"))
    tokens = dataset.tokens("samples")
    assert tokens
    for token in tokens:
        past = dataset.read(token, {"samples": ["json", "cam_f0.past1.jpg"]})["samples"]
        told = past["json"]["past"]["cam_f0.past1"]
        assert abs(told["timestamp"] - past["json"]["timestamp"] + 500_000) < 1000
        assert decode_jpeg(past["cam_f0.past1.jpg"], token).shape[:2] == (18, 32)
