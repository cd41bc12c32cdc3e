"""The NAVSIM source on a generated log of 40 frames (tests/data/navsim) and on damaged copies of it."""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError

from pickles.unpickle import load_pickle
from pipeline.sources.base import Scan, Source
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import CHANNELS, Scene

FILE = next((Path(__file__).parents[2] / "data" / "navsim").glob("*.pkl"))
LOG = FILE.stem
Frames = list[dict[str, Any]]
EVERY = {"frame_interval": 1}


def raw_frames() -> Frames:
    frames: Frames = load_pickle(FILE.read_bytes(), "test log")
    return frames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    logs = tmp_path / "data" / "navsim_logs" / "mini"
    logs.mkdir(parents=True)
    shutil.copy(FILE, logs)
    return tmp_path / "data"


def write(root: Path, log: str, frames: Any) -> None:
    (root / "navsim_logs" / "mini" / f"{log}.pkl").write_bytes(pickle.dumps(frames, 5))


def copy(root: Path, log: str, mark: str, change: Callable[[Frames], object] = lambda frames: None) -> None:
    """The log under another name, its tokens ending in `mark`, after `change`."""
    frames = raw_frames()
    for frame in frames:
        frame["token"] = frame["token"][:-2] + mark
    change(frames)
    write(root, log, frames)


def source(root: Path | str, filter: Any = EVERY, **fields: Any) -> NavsimSource:
    return NavsimSource(NavsimConfig(root=str(root), split=fields.pop("split", "mini"), filter=filter, **fields))


def scenes(root: Path | str, log: str = LOG, filter: Any = EVERY, **fields: Any) -> list[Scene | SampleError]:
    made = source(root, filter, **fields)
    return made.scenes(log, [ref for ref in made.scan().refs if ref.log == log])


def good(found: list[Scene | SampleError]) -> list[Scene]:
    assert all(isinstance(scene, Scene) for scene in found), found
    return [scene for scene in found if isinstance(scene, Scene)]


# --- windows


@pytest.mark.parametrize(
    ("filter", "starts"),
    [
        (EVERY, range(27)),
        (None, (0, 14)),
        ({"frame_interval": 3, "num_history_frames": 2, "num_future_frames": 8}, range(0, 31, 3)),
        ({"frame_interval": 1, "num_history_frames": 1, "num_future_frames": 0}, range(40)),
        ({"frame_interval": 1, "num_future_frames": 37}, ()),
        ({"frame_interval": 1, "max_scenes": 5}, range(5)),
    ],
)
def test_windows(root: Path, filter: Any, starts: Any) -> None:
    scan = source(root, filter).scan()
    history = (filter or {}).get("num_history_frames", 4)
    frames = raw_frames()
    want = [SceneRef(LOG, frames[s + history - 1]["timestamp"], frames[s + history - 1]["token"], s) for s in starts]
    assert list(scan.refs) == want
    assert (scan.unreadable, scan.not_found) == ({}, ())


def test_what_is_passed_over_is_counted(root: Path) -> None:
    def lose_route(frames: Frames) -> None:
        frames[3]["roadblock_ids"] = []
        frames[4]["roadblock_ids"] = [""]

    copy(root, "b", "_b", lose_route)
    scan = source(root).scan()
    assert scan.skipped == {"too_short": 26, "no_route": 2}
    assert len(scan.refs) == 52
    assert len(source(root, {**EVERY, "has_route": False}).scan().refs) == 54
    tokens = [scan.refs[0].token, scan.refs[30].token, "f" * 16, "0" * 16]
    few = source(root, {**EVERY, "tokens": tokens}).scan()
    assert [ref.token for ref in few.refs] == tokens[:2]
    assert few.skipped == {"too_short": 26, "no_route": 2, "not_in_tokens": 50}
    assert few.not_found == ("0" * 16, "f" * 16)


def test_the_later_of_two_windows_with_one_token_counts(root: Path) -> None:
    def repeat(frames: Frames) -> None:
        frames[9]["token"] = frames[3]["token"]

    copy(root, LOG, "_a", repeat)
    scan = source(root).scan()
    assert scan.skipped == {"too_short": 13, "repeated_token": 1}
    assert len(scan.refs) == 26
    assert {ref.token: ref.start for ref in scan.refs}[raw_frames()[3]["token"][:-2] + "_a"] == 6


def test_a_token_in_two_logs_stops_the_scan(root: Path) -> None:
    shutil.copy(FILE, root / "navsim_logs" / "mini" / "copy.pkl")
    with pytest.raises(ConfigError, match=r"27 tokens are held by two logs.*in 2021\S* and copy"):
        source(root).scan()
    assert len(source(root, {**EVERY, "log_names": ["copy"]}).scan().refs) == 27


def test_log_names_are_a_filter_before_reading(root: Path) -> None:
    (root / "navsim_logs" / "mini" / "broken.pkl").write_bytes(b"nothing")
    scan = source(root, {**EVERY, "log_names": [LOG, "gone"]}).scan()
    assert list(scan.unreadable) == ["gone"]
    assert scan.unreadable["gone"].startswith("no such log file in ")
    assert len(scan.refs) == 27


def test_other_files_are_passed_over(root: Path) -> None:
    (root / "navsim_logs" / "mini" / "notes.txt").write_text("x")
    assert len(source(root).scan().refs) == 27


def lacking(key: str) -> Callable[[Frames], object]:
    return lambda frames: [frame.pop(key) for frame in frames]


def test_unreadable_logs_do_not_harm_others(root: Path) -> None:
    logs = root / "navsim_logs" / "mini"
    whole = FILE.read_bytes()
    (logs / "a_cut.pkl").write_bytes(whole[: len(whole) // 2])
    (logs / "b_bad.pkl").write_bytes(pickle.dumps([len], 5))
    write(root, "c_dict", {"a": 1})
    write(root, "d_list", [1, 2])
    copy(root, "e_keys", "_e", lacking("roadblock_ids"))
    copy(root, "f_token", "/../../x")
    (logs / "g_folder.pkl").mkdir()
    scan = source(root).scan()
    assert len(scan.refs) == 27
    assert list(scan.unreadable) == ["a_cut", "b_bad", "c_dict", "d_list", "e_keys", "f_token", "g_folder"]
    for log, words in {
        "a_cut": "is not a whole pickle",
        "b_bad": "asks for builtins.len",
        "c_dict": "should hold a list of frames",
        "d_list": "should hold a list of frames",
        "e_keys": "lacks roadblock_ids",
        "f_token": "token should be",
        "g_folder": "IsADirectoryError",
    }.items():
        assert words in scan.unreadable[log]
    for log, code in {"a_cut": "log_unreadable", "b_bad": "unsafe_pickle", "gone": "log_unreadable"}.items():
        with pytest.raises(SampleError) as caught:
            source(root).scenes(log, scan.refs[:1])
        assert caught.value.code == code


@pytest.mark.parametrize("limit", [None, 40])
def test_any_number_of_processes_finds_the_same(root: Path, limit: int | None) -> None:
    for i in range(5):
        copy(root, f"log{i}", f"_{i}")
    (root / "navsim_logs" / "mini" / "log2.pkl").write_bytes(b"\x80\x05")
    found: list[Scan] = [source(root, {**EVERY, "max_scenes": limit}).scan(processes=n) for n in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    assert len(found[0].refs) == (limit or 27 * 5)
    assert ("log2" in found[0].unreadable) == (limit is None)
    assert {ref.log for ref in found[0].refs[-13:]} == {"log0" if limit else "log4"}


# --- configuration


def test_the_split_comes_from_the_train_test_split_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "scene_filter").mkdir()
    (tmp_path / "scene_filter" / "all.yaml").write_text("frame_interval: 1\nmax_scenes: 3\n")
    path = tmp_path / "some.yaml"
    path.write_text("defaults: [scene_filter: all]\ndata_split: mini\n")
    assert len(NavsimSource(NavsimConfig(root=str(root), filter=path)).scan().refs) == 3
    with pytest.raises(ValidationError, match="split is 'test' and the filter's own data_split is 'mini'"):
        source(root, path, split="test")
    with pytest.raises(ConfigError, match=r"navsim_logs/test should hold <log>.pkl files.*logs of the splits mini"):
        source(root, split="test").scan()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": None}, "split should be a folder"),
        ({"split": "../x"}, "split should be a folder"),
        ({"filter": {"frame_intervall": 1}}, "frame_intervall"),
        ({"filter": {"include_synthetic_scenes": True}}, "include_synthetic_scenes: false"),
        ({"context_frames": -1}, "context_frames"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_impossible_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NavsimConfig(**{"root": "x", "split": "mini", **fields})


def test_synthetic_scenes_that_are_not_read_are_counted(root: Path) -> None:
    filter = {**EVERY, "include_synthetic_scenes": True, "reactive_synthetic_initial_tokens": ["a" * 17, "b" * 17]}
    assert source(root, filter).scan().skipped == {"synthetic_scene": 2, "too_short": 13}


def test_describe(root: Path) -> None:
    tokens = [f"{i:016x}" for i in range(100)]
    made = source(root, {**EVERY, "tokens": tokens, "log_names": ["a"]})
    described = json.loads(json.dumps(made.describe()))
    assert (described["kind"], described["root"], described["split"]) == ("navsim", str(root), "mini")
    assert described["filter"]["tokens"]["count"] == 100
    assert described["filter"]["log_names"] == ["a"]
    assert described["synthetic"] is False
    assert source(root, {**EVERY, "tokens": tokens[::-1], "log_names": ["a"]}).describe() == described
    assert source(root, {**EVERY, "tokens": tokens[1:], "log_names": ["a"]}).describe() != described
    (root / "SYNTHETIC.json").write_text("{}")
    assert made.synthetic
    assert made.describe()["synthetic"] is True


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://host/a?sig=secret", "https://host/a"),
        ("/data/what?/a@b", "/data/what?/a@b"),
    ],
)
def test_credentials_are_not_shown(root: str, shown: str) -> None:
    assert NavsimConfig(root=root, split="mini").shown_root == shown


def test_it_is_a_source_and_pickles(root: Path) -> None:
    made = source(root)
    assert isinstance(made, Source)
    assert (made.num_history, made.num_future) == (4, 10)
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.fixture
def memory() -> Iterator[str]:
    url = f"memory://{uuid.uuid4().hex}"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe(f"{path}/navsim_logs/mini/{LOG}.pkl", FILE.read_bytes())
    yield url
    fs.rm(path, recursive=True)


def test_a_root_that_is_a_url(memory: str) -> None:
    found = good(scenes(memory))
    assert len(found) == 27
    image = found[0].camera(0, "CAM_F0").image
    assert image.startswith(f"{memory}/sensor_blobs/mini/{LOG}/CAM_F0/")
    assert source(memory).synthetic is False


# --- records


def rotated(q: Any, v: tuple[float, float, float]) -> Any:
    """`v` turned by the unit quaternion `q` (w, x, y, z)."""
    w, u = q[0], np.asarray(q[1:])
    return 2 * np.dot(u, v) * u + (w * w - np.dot(u, u)) * np.asarray(v) + 2 * w * np.cross(u, v)


def test_records_say_what_the_log_says(root: Path) -> None:
    frames = raw_frames()
    found = good(scenes(root))
    assert len(found) == 27
    for start, scene in enumerate(found):
        window = frames[start : start + 14]
        current = window[3]
        assert (scene.token, scene.timestamp, scene.log) == (current["token"], current["timestamp"], LOG)
        assert (scene.scene_token, scene.map_name) == (current["scene_token"], "us-ma-boston")
        assert (scene.num_history, scene.num_future) == (4, 10)
        assert [frame.token for frame in scene.frames] == [raw["token"] for raw in window]
        # NAVSIM's heading, from the turned axes: the y axis's x component, with a minus sign (not the usual yaw)
        xy = np.array([complex(*raw["ego2global_translation"][:2]) for raw in window])
        turn = np.array(
            [
                complex(rotated(q, (1, 0, 0))[0], -rotated(q, (0, 1, 0))[0])
                for q in (raw["ego2global_rotation"] for raw in window)
            ]
        )
        turn /= abs(turn)
        local = (xy - xy[3]) * turn[3].conj()
        for got, part in ((scene.history_trajectory(), slice(0, 4)), (scene.future_trajectory(), slice(4, 14))):
            want = np.stack((local[part].real, local[part].imag, np.angle(turn[part] * turn[3].conj())), axis=1)
            assert_allclose(got, want, atol=1e-9)
        for frame, raw in zip(scene.frames, window, strict=True):
            assert_array_equal(np.concatenate((frame.velocity, frame.acceleration)), raw["ego_dynamic_state"])
            assert frame.command == tuple(raw["driving_command"])
            assert all(type(bit) is int for bit in frame.command)
            assert frame.roadblock_ids == tuple(raw["roadblock_ids"])
            assert frame.traffic_lights == tuple(raw["traffic_lights"])
            assert frame.annotations is not None
            assert_array_equal(frame.annotations.boxes, raw["anns"]["gt_boxes"])
            assert_array_equal(frame.annotations.velocity, raw["anns"]["gt_velocity_3d"])
            assert frame.annotations.names == tuple(raw["anns"]["gt_names"])
            assert frame.annotations.track_tokens == tuple(raw["anns"]["track_tokens"])
            assert frame.lidar == f"{root}/sensor_blobs/mini/{raw['lidar_path']}"
            assert tuple(frame.cameras) == CHANNELS
            for channel, camera in frame.cameras.items():
                cam = raw["cams"][channel]
                assert camera.channel == channel
                assert camera.image == f"{root}/sensor_blobs/mini/{cam['data_path']}"
                assert_array_equal(camera.intrinsics, cam["cam_intrinsic"])
                assert_array_equal(camera.distortion, cam["distortion"])
                assert_array_equal(camera.sensor2ego_rotation, cam["sensor2lidar_rotation"])
                assert_array_equal(camera.sensor2ego_translation, cam["sensor2lidar_translation"])


def test_some_log_moves_turns_and_has_every_kind_of_thing() -> None:
    """So that the test above says something."""
    frames = raw_frames()
    assert np.ptp([frame["ego2global_translation"][0] for frame in frames]) > 10
    assert abs(frames[0]["ego2global_rotation"][1] * frames[0]["ego2global_rotation"][2]) > 1e-6
    assert any(len(frame["anns"]["gt_boxes"]) for frame in frames)


def test_overlapping_windows_share_frames(root: Path) -> None:
    found = good(scenes(root))
    assert found[0].frames[1] is found[1].frames[0]
    assert found[0].camera(0, "CAM_L1").intrinsics is found[20].camera(5, "CAM_L1").intrinsics


@pytest.mark.parametrize("count", [0, 1, 3])
def test_context_frames(root: Path, count: int) -> None:
    found = good(scenes(root, context_frames=count))
    frames = raw_frames()
    for start in (0, 1, 2, 20):
        have = min(count, start)
        assert [f.token for f in found[start].before] == [f["token"] for f in frames[start - have : start]]
        assert found[start].has_step(-4) == (have > 0)


def test_context_ends_at_a_gap_and_at_a_bad_frame(root: Path) -> None:
    def later(frames: Frames) -> None:
        for frame in frames[10:]:
            frame["timestamp"] += 150_000
        frames[4]["driving_command"] = [0, 0, 0, 0]

    copy(root, LOG, "_a", later)
    found = [len(s.before) if isinstance(s, Scene) else s.code for s in scenes(root, context_frames=3)]
    assert found[:15] == ["bad_frame"] * 5 + [0, 1, 2, 3, 3, 0, 1, 2, 3, 3]


def test_the_camera_frame_that_believes_the_name(root: Path) -> None:
    turn = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    copy(root, LOG, "_a", lambda frames: [frame.update(lidar2ego=turn) for frame in frames])
    as_is, composed = (good(scenes(root, camera_frame=f))[0].camera(0, "CAM_R1") for f in ("ego", "lidar"))
    point = np.array([0.3, -0.2, 5.0])
    lidar = as_is.sensor2ego_rotation @ point + as_is.sensor2ego_translation
    ego = composed.sensor2ego_rotation @ point + composed.sensor2ego_translation
    assert_allclose(ego, (turn @ [*lidar, 1])[:3])
    assert abs(ego - lidar).max() > 1


def test_hidden_test_data_and_sparse_frames(root: Path) -> None:
    def strip(frames: Frames) -> None:
        for frame in frames:
            del frame["anns"]
            del frame["lidar2ego"]
            frame["lidar_path"] = None
            frame["cams"] = {"CAM_F0": frame["cams"]["CAM_F0"], "CAM_B0": {}}
            frame["roadblock_ids"] = ["2", "1", "2"]
            frame["driving_command"] = [np.False_, np.False_, np.True_, np.False_]
            frame["traffic_lights"] = [(np.int64(7), np.True_)]

    copy(root, LOG, "_a", strip)
    for scene in good(scenes(root)):
        assert scene.current.annotations is None
        assert scene.current.lidar is None
        assert list(scene.current.cameras) == ["CAM_F0"]
        assert scene.current.roadblock_ids == ("2", "1")
        assert scene.current.command == (0, 0, 1, 0)
        assert scene.current.traffic_lights == ((7, True),)


def test_a_frame_without_objects(root: Path) -> None:
    empty = {"gt_boxes": np.zeros((0, 7)), "gt_names": np.array([]), "gt_velocity_3d": np.zeros((0, 3))}
    empty |= {"instance_tokens": [], "track_tokens": []}
    copy(root, LOG, "_a", lambda frames: [frame.update(anns=empty) for frame in frames])
    annotations = good(scenes(root))[0].current.annotations
    assert annotations is not None
    assert (annotations.boxes.shape, annotations.velocity.shape, annotations.names) == ((0, 7), (0, 3), ())


def test_an_unknown_velocity_stays_unknown(root: Path) -> None:
    copy(
        root,
        LOG,
        "_a",
        lambda frames: [frame["anns"]["gt_velocity_3d"].__setitem__((0, 1), np.inf) for frame in frames],
    )
    annotations = good(scenes(root))[0].current.annotations
    assert annotations is not None
    assert np.isnan(annotations.velocity[0, 1])
    assert np.isfinite(annotations.velocity).sum() == annotations.velocity.size - 1


NAN = float("nan")


def cam(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda frame: frame["cams"]["CAM_L2"].update({key: value})


def anns(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda frame: frame["anns"].update({key: value})


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda f: f.update(ego2global_translation=[NAN, 0, 0]), "bad_pose", "ego2global_translation: not finite"),
        (lambda f: f.update(ego2global_translation=[0, 0]), "bad_pose", "expected shape [3], got [2]"),
        (lambda f: f.update(ego2global_translation="abc"), "bad_pose", "ego2global_translation"),
        (lambda f: f.update(ego2global_rotation=[0, 0, 0, 0]), "bad_pose", "no quaternion"),
        (lambda f: f.update(ego_dynamic_state=[1, 2, 3, NAN]), "bad_pose", "ego_dynamic_state: not finite"),
        (lambda f: f.pop("ego_dynamic_state"), "bad_frame", "lacks ego_dynamic_state"),
        (lambda f: [f.pop(k) for k in ("cams", "driving_command")], "bad_frame", "lacks driving_command, cams"),
        (lambda f: f.update(driving_command=[0, 0, 0, 0]), "bad_frame", "one-hot"),
        (lambda f: f.update(driving_command=[0, 0.5, 0.5, 0]), "bad_frame", "one-hot"),
        (lambda f: f.update(driving_command="abcd"), "bad_frame", "one-hot"),
        (lambda f: f.update(traffic_lights=[1]), "bad_frame", "traffic_lights"),
        (lambda f: f.update(roadblock_ids="12"), "bad_frame", "roadblock_ids"),
        (lambda f: f.update(lidar_path="../x.pcd"), "bad_frame", "lidar_path: expected a path within"),
        (lambda f: f.update(lidar_path=np.zeros(2)), "bad_frame", "ambiguous"),
        (lambda f: f.update(cams=[1]), "bad_frame", "cams should map"),
        (lambda f: f["cams"]["CAM_L2"].pop("distortion"), "bad_frame", "cams.CAM_L2 lacks distortion"),
        (cam("data_path", "/etc/passwd"), "bad_frame", "cams.CAM_L2.data_path: expected a path within"),
        (cam("data_path", "a/../../b.jpg"), "bad_frame", "data_path"),
        (cam("data_path", "http://x/b.jpg"), "bad_frame", "data_path"),
        (cam("data_path", 7), "bad_frame", "data_path"),
        (cam("cam_intrinsic", np.zeros((3, 3))), "bad_calibration", "cam_intrinsic is singular"),
        (cam("cam_intrinsic", np.full((3, 3), NAN)), "bad_calibration", "not finite"),
        (cam("sensor2lidar_rotation", np.eye(3) * 1.01), "bad_calibration", "no rotation (off by 0.02"),
        (cam("sensor2lidar_rotation", np.diag([1, 1, -1])), "bad_calibration", "no rotation"),
        (cam("sensor2lidar_translation", [0, 0]), "bad_calibration", "expected shape [3]"),
        (cam("distortion", [0, 0, 0, 0]), "bad_calibration", "expected shape [5]"),
        (anns("gt_names", ["vehicle"]), "bad_annotations", "unequal lengths"),
        (anns("gt_boxes", np.full((4, 7), NAN)), "bad_annotations", "gt_boxes: not finite"),
        (anns("gt_boxes", np.zeros((4, 9))), "bad_annotations", "expected shape [4, 7]"),
        (anns("gt_boxes", None), "bad_annotations", "one list or array a key"),
        (lambda f: f["anns"].pop("track_tokens"), "bad_annotations", "lacks track_tokens"),
        (lambda f: f.update(timestamp="now"), "bad_frame", "integer microseconds"),
    ],
)  # fmt: skip
def test_a_bad_frame_harms_the_scenes_that_hold_it_and_no_others(
    root: Path, change: Callable[[dict[str, Any]], object], code: str, words: str
) -> None:
    refs = source(root).scan().refs
    frames = raw_frames()
    assert len(frames[33]["anns"]["gt_boxes"]) == 4
    change(frames[33])
    write(root, LOG, frames)
    found = source(root).scenes(LOG, refs)
    assert [isinstance(scene, Scene) for scene in found] == [start + 13 < 33 for start in range(27)]
    error = found[-1]
    assert isinstance(error, SampleError)
    assert error.code == code
    assert words in error.reason
    assert f"scene {refs[-1].token} of log {LOG}: " in error.reason


def test_time_must_go_on(root: Path) -> None:
    copy(root, LOG, "_a", lambda frames: frames[20].update(timestamp=frames[19]["timestamp"]))
    found = scenes(root)
    bad = [scene for scene in found if isinstance(scene, SampleError)]
    assert {error.code for error in bad} == {"bad_timestamps"}
    assert len(bad) == 13  # windows 7..19 hold both frames


def test_a_gap_in_time_is_no_error(root: Path) -> None:
    copy(root, LOG, "_a", lambda frames: [frame.update(timestamp=frame["timestamp"] + 10**7) for frame in frames[20:]])
    assert len(good(scenes(root))) == 27


def test_a_place_that_is_no_map(root: Path) -> None:
    copy(root, LOG, "_a", lambda frames: frames[3].update(map_location="las_vegas"))
    first, *others = scenes(root)
    assert isinstance(first, SampleError)
    assert first.code == "bad_frame"
    assert "'las_vegas'" in first.reason
    assert len(good(others)) == 26


@pytest.mark.parametrize("change", ["shorter", "shifted", "renamed", "retimed"])
def test_a_log_that_changed_since_the_plan(root: Path, change: str) -> None:
    refs = source(root).scan().refs
    frames = raw_frames()
    if change == "shorter":
        frames = frames[:30]
    elif change == "shifted":
        frames = frames[1:]
    elif change == "renamed":
        frames[29]["token"] = "0" * 16
    else:
        frames[29]["timestamp"] += 1
    write(root, LOG, frames)
    last = source(root).scenes(LOG, refs)[-1]
    assert isinstance(last, SampleError)
    assert last.code == "log_changed"
    assert refs[-1].token in last.reason


def test_scenes_come_in_the_order_asked_for(root: Path) -> None:
    made = source(root)
    refs = made.scan().refs[::-5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [scene.token for scene in good(made.scenes(LOG, refs))] == [ref.token for ref in refs]
    assert made.scenes(LOG, []) == []
