"""One generated world through NAVSIM's pickles and through nuPlan's ``.db``: equal scenes, shards of equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jobs.data import main as make_data
from pipeline.reading.reader import Dataset
from pipeline.sources import registry
from pipeline.sources.base import Source
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from pipeline.sources.nuplan_log import rotation_matrix
from pipeline.writing import run as runs
from shards_schema.plan import SceneRef
from shards_schema.records import CHANNELS, Scene
from teachers import registry as teachers
from tests.committed import commit

FILTER = {"num_history_frames": 2, "num_future_frames": 4, "frame_interval": 1, "has_route": False}
MADE = [
    *("nuplan=true", "logs=1", "frames=9", "width=64", "height=36", "lidar_points=40", "traffic=0.3"),
    *("manoeuvres=follow", "cameras=CAM_F0,CAM_L0", "processes=1"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One log of 4.5 s; the front camera has images at 10 Hz."""
    out = tmp_path_factory.mktemp("world") / "data"
    make_data([f"out={out}", *MADE])
    return out


def navsim(world: Path, **fields: Any) -> NavsimSource:
    return NavsimSource(NavsimConfig(root=world, split="mini", filter=FILTER, **fields))


def nuplan(world: Path, filter: Any = FILTER, **fields: Any) -> NuplanSource:
    """On the very files of the NAVSIM tree."""
    blobs = fields.pop("sensor_root", world / "sensor_blobs" / "mini")
    return NuplanSource(
        NuplanConfig(
            root=world / "nuplan-v1.1",
            split="mini",
            maps_root=world / "maps",
            sensor_root=blobs,
            filter=filter,
            **fields,
        )
    )


def scenes(source: Source, refs: Sequence[SceneRef]) -> list[Scene]:
    found = source.scenes(refs[0].log, refs)
    assert all(isinstance(scene, Scene) for scene in found), found
    return [scene for scene in found if isinstance(scene, Scene)]


def check_equal(a: Any, b: Any, where: str = "scene") -> None:
    """Every field of two records, down to the arrays; but for the calibration's size, which no pickle has."""
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            if field.name == "calibrated":
                assert {a.calibrated, b.calibrated} <= {None, (64, 36)}  # of the generated images
                continue
            check_equal(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert_array_equal(a, b, err_msg=where)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            check_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, tuple):
        assert len(a) == len(b), where
        for one, other in zip(a, b, strict=True):
            check_equal(one, other, where)
    else:
        assert a == b, where


def test_the_same_scenes(world: Path) -> None:
    a, b = navsim(world).scan(), nuplan(world).scan()
    assert [(r.log, r.token, r.timestamp) for r in a.refs] == [(r.log, r.token, r.timestamp) for r in b.refs]
    assert [r.start * 10 for r in a.refs] == [r.start for r in b.refs]
    assert a.skipped == b.skipped == {"too_short": 5}
    assert len(b.refs) == 4
    ours, theirs = scenes(nuplan(world), b.refs), scenes(navsim(world), a.refs)
    for one, other in zip(theirs, ours, strict=True):
        check_equal(one, other)
    assert all(list(frame.cameras) == list(CHANNELS) for scene in ours for frame in scene.frames)
    assert [len(scene.before) for scene in ours] == [0, 1, 1, 1]
    assert any(frame.annotations and len(frame.annotations.names) > 5 for frame in ours[0].frames)
    assert all(frame.traffic_lights and frame.roadblock_ids for frame in ours[0].frames)


def test_it_is_a_source_and_pickles(world: Path) -> None:
    source = nuplan(world)
    assert isinstance(source, Source)
    assert (source.num_history, source.num_future, source.synthetic) == (2, 4, True)
    assert pickle.loads(pickle.dumps(source)).scan() == source.scan()
    fields = {"root": str(world / "nuplan-v1.1"), "split": "mini", "maps_root": str(world / "maps"), "filter": FILTER}
    built = registry.build({"kind": "nuplan", **fields})
    assert built.scan() == source.scan()
    described = json.loads(json.dumps(built.describe()))
    assert (described["kind"], described["rate"], described["synthetic"]) == ("nuplan", 2, True)
    # sensor_blobs of nuPlan's own layout are the same files under another name
    (mine, *_), (linked, *_) = scenes(source, source.scan().refs), scenes(built, built.scan().refs)
    for channel, camera in mine.current.cameras.items():
        assert Path(camera.image).samefile(linked.current.cameras[channel].image)


def test_ten_frames_a_second(world: Path) -> None:
    slow = {frame.token: frame for scene in scenes(nuplan(world), nuplan(world).scan().refs) for frame in scene.frames}
    fields = {"num_history_frames": 1, "num_future_frames": 40, "frame_interval": 1}
    fast = nuplan(world, fields, rate=10, channels=("CAM_F0",))
    scan = fast.scan()
    assert len(scan.refs) == 5
    assert scan.skipped == {"too_short": 40}
    (first, *_) = scenes(fast, scan.refs)
    assert len(first.frames) == 41
    assert first.period == pytest.approx(0.1)
    assert_allclose(np.diff([frame.timestamp for frame in first.frames]), 100_000, atol=20)
    seen = [frame for frame in first.frames if frame.token in slow]
    assert [first.frames.index(frame) for frame in seen] == list(range(0, 41, 5))
    for frame in seen:
        there = slow[frame.token]
        assert frame.timestamp == there.timestamp
        assert frame.cameras["CAM_F0"].image == there.cameras["CAM_F0"].image
        assert_array_equal(frame.ego_translation, there.ego_translation)
    images = [frame.cameras["CAM_F0"].image for frame in first.frames]
    assert len(set(images)) == 41
    assert all(Path(image).is_file() for image in images)
    assert first.frames[3].lidar is not None
    assert Path(first.frames[3].lidar).is_file()


def test_extrinsics_at_exposure(world: Path) -> None:
    """The camera stands where the ego pose of its exposure, not that of the sweep, has it."""
    fields = {"num_history_frames": 1, "num_future_frames": 40, "frame_interval": 50}
    rig, moved = (nuplan(world, fields, rate=10, channels=("CAM_F0",), extrinsics=e) for e in ("rig", "exposure"))
    (a,), (b,) = (scenes(source, source.scan().refs[:1]) for source in (rig, moved))
    (log,) = (world / "nuplan-v1.1" / "splits" / "mini").glob("*.db")
    statement = (
        "SELECT p.x, p.y, p.z, p.qw, p.qx, p.qy, p.qz FROM image AS i JOIN ego_pose AS p ON p.token = i.ego_pose_token "
        "WHERE i.filename_jpg LIKE ?"
    )
    shifts = []
    with closing(sqlite3.connect(log)) as db:
        for step in range(41):
            fixed, shifted, frame = a.camera(step, "CAM_F0"), b.camera(step, "CAM_F0"), b.at(step)
            (row,) = db.execute(statement, (f"%/{Path(fixed.image).name}",))
            place, turn, ego = (
                np.array(row[:3]),
                rotation_matrix(np.array(row[3:])),
                rotation_matrix(frame.ego_rotation),
            )
            assert_allclose(
                ego @ shifted.sensor2ego_translation + frame.ego_translation,
                turn @ fixed.sensor2ego_translation + place,
                rtol=0,
                atol=2e-9,
            )
            assert_allclose(ego @ shifted.sensor2ego_rotation, turn @ fixed.sensor2ego_rotation, rtol=0, atol=1e-14)
            shifts.append(float(np.linalg.norm(shifted.sensor2ego_translation - fixed.sensor2ego_translation)))
    assert max(shifts[::5]) < 1e-12  # exposed at the very instant of the frame
    assert max(shifts) > 0.01


TEACHERS: dict[str, dict[str, Any]] = {
    "vggt": {"weights": {"random": 0}, "network": "tiny", "width": 252, "views": ["CAM_F0", "CAM_L0"], "batch_size": 2},
    "cosmos": {
        "weights": {"random": 0},
        "model": "cv4x8x8",
        "network": "tiny",
        "layout": [0, 1, 2, 3, 4],
        "size": [64, 32],
        "batch_size": 2,
    },
}


def write(source: Source, out: Path, configs: dict[str, dict[str, Any]]) -> runs.Run:
    """The shards of a source by the real worker."""
    columns = [teachers.build(name, config, column=name) for name, config in configs.items()]
    run = commit(source, out, columns, shard_size=3, zarr=False)
    assert not any(Dataset(str(out)).quarantined(column) for column in run.columns)
    return run


def tars(out: Path, column: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / column).glob("*.tar"))}


def test_shards_are_the_same_bytes(world: Path, tmp_path: Path) -> None:
    for name, source in (("navsim", navsim(world)), ("nuplan", nuplan(world))):
        write(source, tmp_path / name, TEACHERS)
    for column in ("samples", *TEACHERS):
        found = tars(tmp_path / "navsim", column)
        assert len(found) == 2
        assert found == tars(tmp_path / "nuplan", column)


def test_a_clip_of_41_frames(world: Path, tmp_path: Path) -> None:
    fields = {"num_history_frames": 1, "num_future_frames": 40}
    source = nuplan(world, fields, rate=10, channels=("CAM_F0",))
    config = TEACHERS["cosmos"] | {"model": "cv8x8x8", "layout": list(range(41)), "batch_size": 1}
    run = write(source, tmp_path / "clip", {"cosmos": config})
    assert run.plan.samples == 1
    (latent,) = (spec for spec in run.columns["cosmos"].targets if spec.name == "latent")
    assert dict(zip(latent.dims, latent.shape, strict=True))["time"] == 6  # 1 + 40 / 8


def test_asking_again_costs_nothing(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (log,) = (world / "nuplan-v1.1" / "splits" / "mini").glob("*.db")
    before = log.stat().st_mtime_ns
    make_data([f"out={world}", *MADE])
    assert log.stat().st_mtime_ns == before
    assert "NUPLAN_DATA_ROOT" in capsys.readouterr().out


def test_which_images_there_are_is_known_by_the_scan(world: Path, tmp_path: Path) -> None:
    """Of a window that is made all are there; before it, as far back as `scenes` then has them."""
    blobs = tmp_path / "sensor_blobs"
    shutil.copytree(world / "sensor_blobs" / "mini", blobs)
    made = nuplan(world, sensor_root=blobs, context_frames=2)
    refs = made.scan().refs
    images = [scene.at(0).cameras["CAM_F0"].image for scene in scenes(made, refs)]
    Path(images[1]).unlink()  # the windows that hold it are not made, and no scene has it before its own
    wanted = {"past": frozenset({(-2, "CAM_F0"), (-3, "CAM_L0")}), "now": frozenset({(0, "CAM_F0"), (4, "CAM_B0")})}
    scan = made.look(wanted)
    assert 0 < len(scan.refs) < len(refs)
    assert "now" not in scan.missing
    lacks = scan.missing.get("past", {})
    for scene in scenes(made, scan.refs):
        there = [scene.has_step(step) for step in (-2, -3)]
        assert len(lacks.get(scene.token, ())) == there.count(False)
    assert len(lacks) > 0
    assert nuplan(world, channels=("CAM_F0",)).look({"left": frozenset({(0, "CAM_L0")})}).missing["left"].keys() == {
        ref.token for ref in nuplan(world, channels=("CAM_F0",)).scan().refs
    }
