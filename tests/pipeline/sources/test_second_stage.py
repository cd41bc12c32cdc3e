"""Second-stage scenes: pickles as the devkit's `Scene.save_to_disk` writes them, read as the scenes of a log are."""

from __future__ import annotations

import lzma
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.second_stage import START
from shards_schema.errors import ConfigError, SampleError
from shards_schema.inputs.reading import read_local
from shards_schema.records import CHANNELS, Scene
from tests.pipeline.sources.two_stage_toys import FOLDER, split_yaml, two_stage

FORESEEN = next((Path(__file__).parents[2] / "data" / "two_stage").glob("*.pkl.xz"))
"""A scene of the toys that ends now: what follows is in nuPlan's own objects, saved by the devkit itself."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_stage(tmp_path_factory)


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """One that may be harmed: logs and pickles, no images."""
    for folder in ("navsim_logs", f"{FOLDER}/synthetic_scene_pickles", f"{FOLDER}/filters"):
        shutil.copytree(root / folder, tmp_path / folder)
    return tmp_path


def source(root: Path, **fields: Any) -> NavsimSource:
    return NavsimSource(NavsimConfig.model_validate({"root": str(root), "filter": str(split_yaml(root)), **fields}))


def change(root: Path, what: Callable[[dict[str, Any]], object], place: int = 0) -> str:
    """The token of a scene whose pickle was changed."""
    path = sorted((root / FOLDER / "synthetic_scene_pickles").iterdir())[place]
    scene = pickle.loads(path.read_bytes())
    what(scene)
    path.write_bytes(pickle.dumps(scene, 5))
    return path.stem


def of(root: Path, token: str) -> Scene | SampleError:
    made = source(root)
    (ref,) = [ref for ref in made.scan().refs if ref.token == token]
    return made.scenes(ref.log, [ref])[0]


def test_both_stages_are_planned_and_read(root: Path) -> None:
    made = source(root)
    scan = made.scan()
    second = [ref for ref in scan.refs if ref.start == START]
    wanted = made.config.filter
    assert {ref.token for ref in second} == set(wanted.reactive_synthetic_initial_tokens or ())
    assert len(second) == 8
    assert {ref.token for ref in scan.refs} - {ref.token for ref in second} == set(wanted.tokens or ())
    assert (scan.unreadable, scan.not_found, "synthetic_scene" in scan.skipped) == ({}, (), False)
    assert made.describe()["second_stage"] == FOLDER
    for log in {ref.log for ref in scan.refs}:
        refs = [ref for ref in scan.refs if ref.log == log]
        scenes = made.scenes(log, refs)  # of both stages at once, in the order of the plan
        for ref, scene in zip(refs, scenes, strict=True):
            assert isinstance(scene, Scene), scene
            assert (scene.token, scene.log, scene.num_history, scene.num_future) == (ref.token, log, 4, 8)
            assert (scene.original is not None) == (ref.start == START)
            assert set(scene.current.cameras) == set(CHANNELS)
            assert all(read_local(camera.image) for camera in scene.current.cameras.values())


def test_records_are_what_the_pickle_says(root: Path) -> None:
    token = source(root).scan().refs[-1].token
    raw = pickle.loads((root / FOLDER / "synthetic_scene_pickles" / f"{token}.pkl").read_bytes())
    scene = of(root, token)
    assert isinstance(scene, Scene)
    assert scene.original == raw["scene_metadata"]["corresponding_original_scene"]
    assert scene.driven
    for frame, saved in zip(scene.frames, raw["frames"], strict=True):
        assert_array_equal(frame.ego_pose, saved["ego_status"]["ego_pose"])  # to the bit: no quaternion between
        assert_array_equal(frame.velocity, saved["ego_status"]["ego_velocity"].astype(np.float64))
        assert (frame.token, frame.timestamp, frame.lidar) == (saved["token"], saved["timestamp"], None)
        assert frame.annotations is not None
        assert_array_equal(frame.annotations.boxes, saved["annotations"]["boxes"])
    assert not scene.frames[-1].cameras  # rendered is the history alone


def test_a_future_that_is_only_foreseen(copy: Path) -> None:
    token = FORESEEN.name.split(".")[0]
    whole = of(copy, token)
    (copy / FOLDER / "synthetic_scene_pickles" / f"{token}.pkl").write_bytes(lzma.decompress(FORESEEN.read_bytes()))
    scene = of(copy, token)
    assert isinstance(scene, Scene)
    assert isinstance(whole, Scene)
    assert whole.driven
    assert not scene.driven
    assert scene.num_future == 8
    assert np.isnan(scene.future_trajectory()).all()
    for step in range(1, 9):
        here, there = scene.at(step), whole.at(step)
        assert_array_equal(here.ego_pose, scene.current.ego_pose)
        assert here.traffic_lights == there.traffic_lights
        a, b = here.annotations, there.annotations
        assert a is not None
        assert b is not None
        order = [b.track_tokens.index(t) for t in a.track_tokens]
        assert len(order) == len(b.track_tokens)
        assert a.names == tuple(b.names[i] for i in order)
        x, y, heading = there.ego_pose - scene.current.ego_pose
        turn = scene.current.ego_pose[2]
        ahead = np.array([x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)])
        c, s = np.cos(heading), np.sin(heading)
        moved = b.boxes[order, :2] @ np.array([[c, s], [-s, c]]) + ahead
        assert_allclose(a.boxes[:, :2], moved, atol=1e-6)
        assert_array_equal(a.boxes[:, 3:6], b.boxes[order, 3:6])


def test_what_is_not_there_is_said(copy: Path) -> None:
    gone, bad = sorted((copy / FOLDER / "synthetic_scene_pickles").iterdir())[:2]
    gone.unlink()
    bad.write_bytes(b"no pickle")
    scan = source(copy).scan()
    assert scan.not_found == tuple(sorted((gone.stem, bad.stem)))
    assert list(scan.unreadable) == [f"{FOLDER}/{bad.name}"]
    shutil.rmtree(copy / FOLDER / "synthetic_scene_pickles")
    assert source(copy).scan().skipped["synthetic_scene"] == 8  # counted, as where the folder was never fetched
    assert any("8 synthetic scenes are left out" in note for note in source(copy).scan().notes)
    assert not any("synthetic" in note for note in source(copy, second_stage="").scan().notes)
    assert "second_stage" not in source(copy).describe()
    with pytest.raises(ConfigError, match="navhard_two_stage/synthetic_scene_pickles should hold"):
        source(copy, second_stage=FOLDER).scan()
    assert source(copy, second_stage="").scan().skipped["synthetic_scene"] == 8


def test_a_file_of_another_name_is_found(copy: Path) -> None:
    path = sorted((copy / FOLDER / "synthetic_scene_pickles").iterdir())[3]
    path.rename(path.with_name("some-scene.pkl"))
    found = of(copy, path.stem)
    assert isinstance(found, Scene)
    assert found.token == path.stem


def _lose(scene: dict[str, Any]) -> None:
    del scene["frames"][5:]


def _spoil(scene: dict[str, Any]) -> None:
    scene["frames"][2]["ego_status"]["ego_pose"] = [0.0, float("nan"), 0.0]


def _leave(scene: dict[str, Any]) -> None:
    scene["frames"][3]["camera_dict"]["cam_f0"]["data_path"] = "../../secret.jpg"


def _move(scene: dict[str, Any]) -> None:
    scene["scene_metadata"]["map_name"] = "las_vegas"


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (_lose, "missing_frame", "neither a frame nor a foreseen one 1 after the last"),
        (_spoil, "bad_pose", "ego_pose"),
        (_leave, "bad_frame", "cam"),
        (_move, "bad_frame", "las_vegas"),
    ],
)
def test_a_bad_scene_costs_itself(copy: Path, harm: Callable[[dict[str, Any]], None], code: str, words: str) -> None:
    token = change(copy, harm)
    found = of(copy, token)
    assert isinstance(found, SampleError)
    assert found.code == code
    assert words in found.reason
    assert token in found.reason
    other = sorted((copy / FOLDER / "synthetic_scene_pickles").iterdir())[1].stem
    assert isinstance(of(copy, other), Scene)


def test_a_pickle_that_unfolds_costs_no_memory(copy: Path) -> None:
    """Sixty levels, each holding the one below twice, beside a class that sends the pickle to the second reader."""
    bomb: Any = "nuplan"
    for _ in range(60):
        bomb = [bomb, bomb]
    path = sorted((copy / FOLDER / "synthetic_scene_pickles").iterdir())[0]
    path.write_bytes(pickle.dumps({"scene_metadata": {}, "frames": [], "path": PurePosixPath("x"), "bomb": bomb}, 4))
    assert "lacks log_name" in source(copy).scan().unreadable[f"{FOLDER}/{path.name}"]


class _Harm:
    def __reduce__(self) -> Any:
        return os.system, ("echo nuplan",)


def test_a_pickle_that_would_run_something_is_refused(copy: Path) -> None:
    path = sorted((copy / FOLDER / "synthetic_scene_pickles").iterdir())[0]
    path.write_bytes(pickle.dumps(_Harm(), 4))
    reason = source(copy).scan().unreadable[f"{FOLDER}/{path.name}"]
    assert "nothing of it was run" in reason


def test_images_are_looked_for_before_the_run(copy: Path, root: Path) -> None:
    shutil.copytree(root / FOLDER / "sensor_blobs", copy / FOLDER / "sensor_blobs")
    token = sorted((copy / FOLDER / "sensor_blobs").iterdir())[0].name
    next((copy / FOLDER / "sensor_blobs" / token / "CAM_L0").glob(f"{token}.jpg")).unlink()
    scan = source(copy).look({"left": frozenset({(0, "CAM_L0")}), "ahead": frozenset({(1, "CAM_F0")})})
    second = {ref.token for ref in scan.refs if ref.start == START}
    assert second & scan.missing["left"].keys() == {token}
    assert second <= scan.missing["ahead"].keys()  # what follows now was never rendered
