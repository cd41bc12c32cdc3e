"""What scenes have of what columns ask for: by the config, and by the existence of images, before any work."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.sources import files, unmerged
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.writing import coverage
from pipeline.writing.coverage import Coverage
from pipeline.writing.samples import SamplesConfig
from shards_schema.errors import ConfigError, IncompleteError, SampleError, StoreError
from shards_schema.records import Scene
from teachers import registry
from teachers.base import Needs, Teacher
from teachers.testing import synthetic_scene
from tests import navsim_root
from tests.toys import ToySource, ToyTeacher

RANDOM = {"weights": {"random": 0}, "network": "tiny"}
VGGT = {**RANDOM, "views": ["CAM_F0"]}
FUTURE = {**RANDOM, "layout": "A", "size": [64, 64], "pool": None}
PAST = {**FUTURE, "layout": "D", "model": "wan"}


def teacher(kind: str, config: Mapping[str, Any], column: str | None = None) -> Teacher:
    return registry.build(kind, config, column=column)


def source(root: Path | str, filter: Mapping[str, Any] | None = None, **fields: Any) -> NavsimSource:
    given = {"frame_interval": 1, **(filter or {})}
    return NavsimSource(NavsimConfig(root=str(root), split="mini", filter=given, **fields))


def needs(*teachers: Teacher) -> dict[str, Needs | None]:
    return coverage.column_needs(SamplesConfig(), teachers)


def looked(found: NavsimSource, *teachers: Teacher) -> dict[str, Coverage]:
    wanted = needs(*teachers)
    return {c.column: c for c in coverage.coverage(found, coverage.look(found, wanted), wanted)}


# --- by the config alone


@pytest.mark.parametrize(
    ("kind", "config", "filter", "told"),
    [
        (
            "cosmos",
            FUTURE,
            {"num_future_frames": 4},
            r"\+0 \.\. \+8 .* -3 \.\. \+4, .*layout: \[-3, .*num_future_frames: 8",
        ),
        ("vggt", {**VGGT, "window": [-8, 0]}, {}, r"-8 \.\. \+0 .* -3 \.\. \+10.*context_frames=5"),
        ("pdm", {"maps_root": "maps"}, {"num_future_frames": 8}, r"-3 \.\. \+10 .*versions: \[v2\].*frames: 10"),
        ("pdm", {"maps_root": "maps", "versions": ["v2"]}, {"num_history_frames": 1}, r"-3 .*context_frames=3"),
        ("vggt", {**VGGT, "window": [0, 11]}, {}, r"\+0 \.\. \+11 .*num_future_frames: 11"),
    ],
)
def test_what_no_scene_can_have_is_refused_by_the_config(
    tmp_path: Path, kind: str, config: Mapping[str, Any], filter: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        coverage.refuse_impossible(source(tmp_path, filter), needs(teacher(kind, config)))


@pytest.mark.parametrize(
    ("kind", "config", "filter"),
    [
        ("cosmos", FUTURE, {"num_future_frames": 8}),
        ("cosmos", PAST, {"num_future_frames": 0}),  # the frame at -2.0 s is taken only where it is there
        ("cosmos_predict", {**RANDOM, "layout": "D", "latents": False}, {"num_future_frames": 0}),
        ("vggt", {**VGGT, "window": [-4, 0]}, {}),
        ("pdm", {"maps_root": "maps"}, {}),
        ("pdm", {"maps_root": "maps", "versions": ["v2"]}, {"num_future_frames": 8}),
        ("pdm", {"maps_root": "maps", "versions": ["v1"]}, {"num_history_frames": 1}),
    ],
)
def test_what_can_be_is_not_refused(
    tmp_path: Path, kind: str, config: Mapping[str, Any], filter: Mapping[str, Any]
) -> None:
    coverage.refuse_impossible(source(tmp_path, filter), needs(teacher(kind, config)))


@pytest.mark.parametrize("kind", ["cosmos", "vggt", "cosmos_predict", "vjepa2"])
def test_a_scene_that_has_what_is_needed_and_nothing_else_is_taught(kind: str) -> None:
    built = teacher(kind, {"vggt": VGGT, "cosmos": PAST}.get(kind, RANDOM))
    wanted = needs(built)[kind]
    assert wanted is not None
    scene = synthetic_scene(history=1 - wanted.first, future=wanted.last, before=0)
    assert sorted(built.requests(scene)) == sorted(wanted.images)
    if wanted.last:
        with pytest.raises(SampleError):
            built.requests(synthetic_scene(history=1 - wanted.first, future=wanted.last - 1, before=0))
    if wanted.first:
        with pytest.raises(SampleError):
            built.requests(synthetic_scene(history=-wanted.first, future=wanted.last, before=0))


def test_a_teacher_that_says_nothing_is_asked_nothing(tmp_path: Path) -> None:
    navsim_root.write(tmp_path, {"log_a": 14})
    coverage.refuse_impossible(source(tmp_path), needs(ToyTeacher()))
    assert looked(source(tmp_path), ToyTeacher())["toy"] == Coverage("toy", 1, None)
    toy = ToySource(str(tmp_path))
    wanted = needs(teacher("vggt", VGGT))
    assert coverage.coverage(toy, coverage.look(toy, wanted), wanted)[1].covered is None


# --- by the existence of images


def navtrain(root: Path, runs: Mapping[str, range]) -> dict[str, Any]:
    """A root as NAVSIM's download has it: of the scenes of `runs`, log -> current frames, the images of now and of the
    three frames before; and the filter that names those scenes."""
    for log, current in runs.items():
        there = {index - back for index in current for back in range(4)}
        navsim_root.write(root, {log: current[-1] + 11}, lambda index, channel, there=there: index in there)  # type: ignore[misc]
    return {"tokens": [navsim_root.token_of(log, index) for log, current in runs.items() for index in current]}


def test_coverage_of_navtrains_own_download(tmp_path: Path) -> None:
    filter = navtrain(tmp_path, {"log_a": range(10, 20), "log_b": range(10, 14)})
    found = looked(
        source(tmp_path, filter), teacher("cosmos", FUTURE), teacher("cosmos", PAST, "past"), teacher("vggt", VGGT)
    )
    assert [found[column].covered for column in ("samples", "vggt", "past", "cosmos")] == [14, 14, 14, 2]
    assert found["cosmos"].lacking == "CAM_F0 of future, step +1 .. +8 (12 scenes)"


def test_each_scene_of_the_count_can_be_made_and_no_other(tmp_path: Path) -> None:
    """The count is held against the records: what `requests` asks for, file by file."""
    holes = {(3, "CAM_F0"), (9, "CAM_F0"), (16, "CAM_L0")}
    channels = ("CAM_F0", "CAM_L0")
    navsim_root.write(tmp_path, {"log_a": 24}, lambda index, channel: (index, channel) not in holes, channels)
    made = source(tmp_path)
    teachers = [
        teacher("vggt", {**VGGT, "views": list(channels), "window": [-4, 0]}),
        teacher("cosmos", {**FUTURE, "layout": [-2, -1, 0], "model": "wan"} | {"layout": [-4, -3, -2, -1, 0]}),
        teacher("cosmos", PAST, "past"),
    ]
    found = looked(made, *teachers)
    scenes = [s for s in made.scenes("log_a", made.scan().refs) if isinstance(s, Scene)]
    assert len(scenes) == 11
    for one in teachers:
        count = sum(_can_be_made(one, scene) for scene in scenes)
        assert found[one.name].covered == count
        assert 0 < count < len(scenes)


def _can_be_made(one: Teacher, scene: Scene) -> bool:
    try:
        asked = one.requests(scene)
    except SampleError:
        return False
    return all(Path(scene.camera(image.step, image.channel).image).is_file() for image in asked)


def test_a_frame_before_the_window_without_an_image_is_not_asked_for(tmp_path: Path) -> None:
    filter = navtrain(tmp_path, {"log_a": range(10, 13)})
    made = source(tmp_path, filter)
    past = teacher("cosmos", PAST)
    scenes = [s for s in made.scenes("log_a", made.scan().refs) if isinstance(s, Scene)]
    assert [len(scene.before) for scene in scenes] == [1, 1, 1]  # the log has the frame, for each of them
    assert [min(image.step for image in past.requests(scene)) for scene in scenes] == [-3, -4, -4]


def test_a_folder_that_is_away_says_nothing_of_its_images(tmp_path: Path) -> None:
    navsim_root.write(tmp_path, {"log_a": 16})
    made = source(tmp_path)
    refs = made.scan().refs
    shutil.rmtree(tmp_path / "sensor_blobs")
    (scene,) = [s for s in made.scenes("log_a", refs[1:2]) if isinstance(s, Scene)]
    assert min(image.step for image in teacher("cosmos", PAST).requests(scene)) == -4  # as when the images are back


def test_a_gap_ends_what_lies_before_a_window(tmp_path: Path) -> None:
    content = navsim_root.frames("log_a", 16)
    for frame in content[2:]:
        frame["timestamp"] += 5_000_000
    navsim_root.write_log(tmp_path, "log_a", content)
    navsim_root.write_images(tmp_path, content, lambda index, channel: channel == "CAM_F0")
    found = looked(source(tmp_path), teacher("vggt", {**VGGT, "window": [-4, 0]}))
    assert (found["vggt"].scenes, found["vggt"].covered) == (3, 1)  # one begins the log, one follows the gap


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    navsim_root.write(tmp_path, {"log_a": 40, "log_b": 40}, channels=("CAM_F0", "CAM_L0"))
    listed: list[str] = []
    list_one = files.names
    monkeypatch.setattr(files, "names", lambda folder: listed.append(folder) or list_one(folder))
    look_at_one = os.stat

    def stat(path: Any, **how: Any) -> os.stat_result:
        assert "sensor_blobs" not in str(path), "a file was looked at by itself"
        return look_at_one(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        looked(source(tmp_path), teacher("vggt", {**VGGT, "views": ["CAM_F0", "CAM_L0"]}), teacher("cosmos", FUTURE))
    images = [folder for folder in listed if "sensor_blobs" in folder]
    assert len(images) == len(set(images)) == 4


def test_a_folder_that_cannot_be_listed_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    navsim_root.write(tmp_path, {"log_a": 14})

    list_one = files.names

    def names(folder: str) -> set[str]:
        if "sensor_blobs" in folder:
            raise StoreError(f"{folder}: refused")
        return list_one(folder)

    monkeypatch.setattr(files, "names", names)
    with pytest.raises(StoreError, match="refused"):
        looked(source(tmp_path), teacher("vggt", VGGT))


def test_an_object_store_is_listed_by_prefix(tmp_path: Path) -> None:
    filter = navtrain(tmp_path, {"log_a": range(10, 20)})
    name = f"coverage-{uuid.uuid4().hex[:8]}"
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), f"/{name}", recursive=True)
    try:
        found = looked(source(f"memory://{name}", filter), teacher("cosmos", FUTURE), teacher("vggt", VGGT))
    finally:
        memory.rm(f"/{name}", recursive=True)
    assert (found["vggt"].covered, found["cosmos"].covered) == (10, 2)


@pytest.mark.parametrize("path", ["../../outside.jpg", "/etc/passwd", "a\0b.jpg", 7, None, "s3://bucket/x.jpg"])
def test_a_hostile_path_is_an_image_that_is_not_there(tmp_path: Path, path: object) -> None:
    (tmp_path / "outside.jpg").touch()
    content = navsim_root.frames("log_a", 14, ("CAM_F0",))
    content[3]["cams"]["CAM_F0"]["data_path"] = path
    navsim_root.write_log(tmp_path, "log_a", content)
    assert looked(source(tmp_path), teacher("vggt", VGGT))["vggt"].covered == 0


# --- what is refused for it


def short(found: NavsimSource, *teachers: Teacher, most: float = 0.01) -> None:
    wanted = needs(*teachers)
    coverage.refuse_short(found, coverage.look(found, wanted), wanted, list(wanted), most)


def test_a_column_that_lacks_more_than_is_allowed_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    made = source(tmp_path, navtrain(tmp_path, {"log_a": range(10, 20)}))
    with pytest.raises(IncompleteError) as caught:
        short(made, teacher("cosmos", FUTURE), teacher("vggt", VGGT))
    told = str(caught.value)
    assert "cosmos: 2 of 10 scenes have every image that it asks for (20.0%)" in told
    assert "CAM_F0 of future, step +1 .. +8 (8 scenes)" in told
    for way in (
        "layout: [-3, -3, -3, -3, -3, -3, -2, -1, 0]",
        "max_quarantined=0.8",
        "plan.require=[cosmos], which plans the 2 scenes",
    ):
        assert way in told
    assert "vggt:" not in told
    short(made, teacher("cosmos", FUTURE), most=0.8)
    short(made, teacher("cosmos", PAST))


def test_only_what_is_covered_may_be_planned(tmp_path: Path) -> None:
    made = source(tmp_path, navtrain(tmp_path, {"log_a": range(10, 20), "log_b": range(10, 14)}))
    wanted = needs(teacher("cosmos", FUTURE), teacher("vggt", VGGT))
    scan = coverage.look(made, wanted)
    left = coverage.only_covered(made, scan, wanted, ["cosmos"])
    assert [ref.token for ref in left.refs] == [navsim_root.token_of("log_a", 10), navsim_root.token_of("log_a", 11)]
    assert left.skipped["not_covered"] == 12
    coverage.refuse_short(made, left, wanted, list(wanted), 0.0)
    planned = navsim_root.token_of("log_b", 12)  # before: it stays, whatever became of its images
    assert planned in {ref.token for ref in coverage.only_covered(made, scan, wanted, ["cosmos"], {planned}).refs}
    with pytest.raises(ConfigError, match="no column cosmo in this config; it has samples, cosmos, vggt"):
        coverage.only_covered(made, scan, wanted, ["cosmo"])


def test_a_filter_that_leaves_nothing_says_what_is_lacking(tmp_path: Path) -> None:
    made = source(tmp_path, navtrain(tmp_path, {"log_b": range(10, 14)}))
    wanted = needs(teacher("cosmos", FUTURE))
    with pytest.raises(ConfigError, match=r"leaves no scene: cosmos lacks CAM_F0 of future"):
        coverage.only_covered(made, coverage.look(made, wanted), wanted, ["cosmos"])


def test_logs_and_tokens_that_are_not_there(tmp_path: Path) -> None:
    navsim_root.write(tmp_path, {"log_a": 14, "log_b": 14})
    logs = [f"log_{c}" for c in "abcd"]
    with pytest.raises(IncompleteError, match=r"2 of 4 logs .*log_c: no such log file.*max_quarantined=0\.5"):
        short(source(tmp_path, {"log_names": logs}), teacher("vggt", VGGT))
    tokens = [navsim_root.token_of(log, 3) for log in logs]
    with pytest.raises(IncompleteError, match=r"2 of 4 tokens of the filter are in no log .*c0000"):
        short(source(tmp_path, {"tokens": tokens}), teacher("vggt", VGGT))
    short(source(tmp_path, {"log_names": logs}), teacher("vggt", VGGT), most=0.5)


@pytest.mark.parametrize("place", ["", "sensor_blobs/mini", "download"])
def test_images_that_were_never_merged_are_found_and_the_command_merges_them(tmp_path: Path, place: str) -> None:
    root = tmp_path / "open scene"
    navtrain(root, {"log_a": range(3, 5)})
    blobs = root / "sensor_blobs" / "mini"
    left = root / place / "history_split_2"
    left.mkdir(parents=True)
    shutil.move(blobs / "log_a", left / "log_a")
    made = source(root)
    with pytest.raises(IncompleteError, match=r"1 folders of NAVSIM's download were never merged") as caught:
        short(made, teacher("vggt", VGGT))
    command = str(caught.value).splitlines()[-1].strip()
    assert command == f"rsync -a '{left}/' '{blobs}/'"
    shutil.copytree(left, blobs, dirs_exist_ok=True)  # what that command does
    short(made, teacher("vggt", VGGT))


def test_nothing_is_said_of_folders_that_are_something_else(tmp_path: Path) -> None:
    for name in ("current_split", "my_current_split_1", "current_split_1.tgz", "split_1"):
        (tmp_path / name).mkdir()
    (tmp_path / "current_split_9").touch()
    assert unmerged.folders(str(tmp_path / "sensor_blobs" / "trainval")) == []
    assert unmerged.folders("s3://bucket/data/sensor_blobs/trainval") == []
