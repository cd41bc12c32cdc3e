"""Tracks around the frames of a dataset: read from its logs, or told by its own scenes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from exports.tracks import Tracks
from pipeline.reading.reader import Dataset
from pipeline.sources import registry as sources
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from questions.making.motion import GapError, Motion
from shards_schema.errors import ConfigError
from tests import made_once
from tests.chaos import small
from tests.committed import commit
from tests.toys import ToySource, write_images

FILTER = {"num_history_frames": 3, "num_future_frames": 4, "frame_interval": 1, "has_route": False}


def speeds(motion: Motion) -> dict[str, float]:
    """Of the tracks that have one."""
    out = {}
    for track in motion.at(0.0).boxes or {}:
        try:
            out[track] = motion.speed(track)
        except GapError:
            continue
    return out


def test_logs_and_own_scenes_tell_the_same(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    logs = shutil.copytree(made_once.drive(tmp_path_factory), tmp_path / "logs")
    source = sources.build(small.source(logs))
    commit(source, tmp_path / "data", [], zarr=False)
    dataset = Dataset(str(tmp_path / "data"), columns=["samples"])
    token = dataset.tokens("samples")[2]  # the third of five scenes: two of them on each side
    read = Tracks(dataset, {})
    assert read.note is None
    motion = read.of(token)
    assert motion is not None
    labels = dataset.read(token, {"samples": ["json"]})["samples"]["json"]["annotations"]
    found = speeds(motion)
    assert len(found) > 10
    for track, velocity in zip(labels["track_tokens"], labels["velocity"], strict=True):
        if track in found:
            assert found[track] == pytest.approx(math.hypot(*velocity[:2]), abs=0.6)
    assert motion.has(4.0)
    logs.rename(tmp_path / "moved")
    own = Tracks(dataset, {})
    assert own.note is not None
    assert "the logs cannot be read" in own.note
    told = own.of(token)
    assert told is not None
    assert not told.has(4.0)
    assert speeds(told) == pytest.approx(found)
    assert told.pose(1.0) == pytest.approx(motion.pose(1.0))
    again = Tracks(dataset, {"root": str(tmp_path / "moved")}).of(token)
    assert again is not None
    assert speeds(again) == found
    with pytest.raises(ConfigError, match="there is no folder"):
        Tracks(dataset, {"root": str(tmp_path / "nowhere")})


def test_of_nuplan_the_maps_have_to_be_named(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = made_once.nuplan(tmp_path_factory)
    maps, blobs = str(tree / "maps"), str(tree / "sensor_blobs" / "mini")
    logs = NuplanSource(
        NuplanConfig(
            root=str(tree / "nuplan-v1.1"), split="mini", maps_root=maps, sensor_root=blobs, filter=FILTER, lidar=False
        )
    )
    commit(logs, tmp_path / "nuplan", [], zarr=False)
    commit(NavsimSource(NavsimConfig(root=str(tree), split="mini", filter=FILTER)), tmp_path / "navsim", [], zarr=False)
    nuplan, navsim = (Dataset(str(tmp_path / name), columns=["samples"]) for name in ("nuplan", "navsim"))
    without = Tracks(nuplan, {})
    assert without.note is not None
    assert "maps_root" in without.note
    tracks, others = Tracks(nuplan, {"maps_root": maps}), Tracks(navsim, {})
    assert tracks.note is others.note is None
    for token in navsim.tokens("samples"):
        one, other = tracks.of(token), others.of(token)
        assert one is not None
        assert other is not None
        assert speeds(one)
        assert speeds(one) == pytest.approx(speeds(other))


def test_a_source_that_is_not_built_in(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, 9)
    commit(ToySource(str(tmp_path / "images"), logs=2), tmp_path / "data", [], zarr=False)
    dataset = Dataset(str(tmp_path / "data"), columns=["samples"])
    tracks = Tracks(dataset, {})
    assert "source.kind must be one of" in (tracks.note or "")
    motion = tracks.of(dataset.tokens("samples")[1])
    assert motion is not None
    assert motion.at(0.0).boxes is None
    assert motion.elapsed(-0.5, 0.5) == pytest.approx(1.0)
