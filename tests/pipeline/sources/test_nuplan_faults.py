"""nuPlan logs with gaps, with missing files, and damaged ones: what is counted, quarantined, refused."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.sources.base import Scan
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from shards_schema.errors import ConfigError, MismatchError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import CHANNELS, Scene
from synthetic.nuplan_dataset import generate_nuplan
from tests import made_once

EVERY: dict[str, Any] = {"num_history_frames": 2, "num_future_frames": 1, "frame_interval": 1}
"""Windows of 3 frames: 6 of the log's 8."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once.nuplan(tmp_path_factory)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "data", symlinks=True))


def logs(root: Path) -> Path:
    return root / "nuplan-v1.1" / "splits" / "mini"


def file_of(root: Path) -> Path:
    return next(file for file in sorted(logs(root).glob("*.db")) if file.stem.endswith("_00004"))


def source(root: Path | str, filter: Any = EVERY, **fields: Any) -> NuplanSource:
    maps = fields.pop("maps_root", f"{root}/maps")
    return NuplanSource(NuplanConfig(root=f"{root}/nuplan-v1.1", split="mini", maps_root=maps, filter=filter, **fields))


def statement(*statements: str) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            for one in statements:
                db.execute(one)

    return change


def alter(root: Path, *statements: str) -> None:
    statement(*statements)(file_of(root))


def places(root: Path, scan: Scan) -> list[int]:
    """Which frame of the undamaged log each scene's window begins with."""
    return [ref.start // 10 for ref in scan.refs]


def found(root: Path, refs: tuple[SceneRef, ...] | None = None, **fields: Any) -> list[Scene | SampleError]:
    refs = source(root, **fields).scan().refs if refs is None else refs
    return source(root, **fields).scenes(refs[0].log, refs)


def codes(results: list[Scene | SampleError]) -> list[str]:
    return [one.code if isinstance(one, SampleError) else "good" for one in results]


FRAME = "(SELECT token FROM lidar_pc ORDER BY timestamp LIMIT 1 OFFSET {})"
STAMP = "(SELECT timestamp FROM lidar_pc ORDER BY timestamp LIMIT 1 OFFSET {})"


def test_the_undamaged_log(root: Path) -> None:
    scan = source(root).scan()
    assert (places(root, scan), scan.skipped) == ([0, 1, 2, 3, 4, 5], {"too_short": 2})
    assert codes(found(root)) == ["good"] * 6


def test_a_missing_image_file(root: Path) -> None:
    scene = found(root)[3]
    assert isinstance(scene, Scene)
    os.unlink(scene.frames[0].cameras["CAM_R1"].image)  # frame 3
    scan = source(root).scan()
    assert places(root, scan) == [0, 4, 5]
    assert scan.skipped == {"missing_image_file": 3, "too_short": 2}
    (_, first, second) = found(root)
    assert isinstance(first, Scene)
    assert isinstance(second, Scene)
    assert first.before == ()  # frame 3 is no context either
    assert len(second.before) == 1
    # those who do not look through that camera do not miss it
    front = source(root, channels=("CAM_F0", "CAM_L0")).scan()
    assert places(root, front) == [0, 1, 2, 3, 4, 5]


def test_a_missing_sweep_file(root: Path) -> None:
    scene = found(root)[5]
    assert isinstance(scene, Scene)
    os.unlink(scene.frames[2].lidar or "")
    scan = source(root).scan()
    assert (places(root, scan), scan.skipped) == ([0, 1, 2, 3, 4], {"missing_lidar_file": 1, "too_short": 2})
    without = source(root, lidar=False)
    assert len(without.scan().refs) == 6
    assert [scene.current.lidar for scene in found(root, lidar=False) if isinstance(scene, Scene)] == [None] * 6


def test_a_camera_that_stops(root: Path) -> None:
    camera = "(SELECT token FROM camera WHERE channel = 'CAM_B0')"
    alter(root, f"DELETE FROM image WHERE camera_token = {camera} AND timestamp > {STAMP.format(45)}")
    scan = source(root).scan()
    assert (places(root, scan), scan.skipped) == ([0, 1, 2], {"missing_camera": 3, "too_short": 2})
    shutil.rmtree(root / "sensor_blobs")
    assert source(root).scan().skipped == {"missing_image_file": 5, "missing_camera": 1}  # by a window's first gap


def test_a_gap_in_time(root: Path) -> None:
    alter(root, f"DELETE FROM lidar_pc WHERE timestamp > {STAMP.format(31)} AND timestamp < {STAMP.format(42)}")
    scan = source(root).scan()
    # 70 sweeps are left: frames at 0..3 as before, then at sweeps 50 and so on, 0.5 s later than they should
    assert [ref.start for ref in scan.refs] == [0, 10, 40]
    assert scan.skipped == {"time_gap": 2, "too_short": 2}
    assert codes(found(root)) == ["good"] * 3
    # a plan of before the damage is refused, scene by scene
    whole = [SceneRef(ref.log, ref.timestamp, ref.token, 30) for ref in scan.refs[:1]]
    assert codes(found(root, tuple(whole))) == ["log_changed"]


def test_windows_apart(root: Path) -> None:
    scan = source(root, {**EVERY, "frame_interval": None}).scan()
    assert (places(root, scan), scan.skipped) == ([0, 3], {"too_short": 1})


@pytest.mark.parametrize(("early", "first"), [(0, 20), (20_000, 20), (30_000, 19)])
def test_where_the_first_frame_is(root: Path, early: int, first: int) -> None:
    """OpenScene's rule: the first sweep with eight images, or the next if that is no further from its front camera."""
    alter(
        root,
        f"DELETE FROM image WHERE timestamp < {STAMP.format(12)}",
        f"UPDATE image SET timestamp = timestamp - {early}",
    )
    scan = source(root, lidar=False).scan()  # sweep 19 has no file
    assert [ref.start for ref in scan.refs] == [first + 10 * i for i in range(4)]
    assert scan.skipped["too_short"] == 2


def test_the_last_of_two_exposures(root: Path) -> None:
    """Two within 50 ms: OpenScene's dictionary keeps the later one."""
    row = "lidar_pc ORDER BY timestamp LIMIT 1 OFFSET 20"
    alter(
        root,
        "INSERT INTO image SELECT x'0102030405060708', NULL, NULL, ego_pose_token, camera_token, 'a/b.jpg', "
        f"timestamp + 40000 FROM image WHERE timestamp = (SELECT timestamp FROM {row}) AND camera_token = "
        "(SELECT token FROM camera WHERE channel = 'CAM_L1')",
    )
    (root / "nuplan-v1.1" / "sensor_blobs" / "a").mkdir()
    (root / "nuplan-v1.1" / "sensor_blobs" / "a" / "b.jpg").touch()
    scene = found(root)[2]
    assert isinstance(scene, Scene)
    assert scene.frames[0].cameras["CAM_L1"].image.endswith("sensor_blobs/a/b.jpg")
    assert not scene.frames[1].cameras["CAM_L1"].image.endswith("a/b.jpg")


def test_filters(root: Path) -> None:
    refs = source(root).scan().refs
    chosen = source(root, {**EVERY, "tokens": [refs[4].token, "f" * 16]}).scan()
    assert chosen.refs == (refs[4],)
    assert (chosen.not_found, chosen.skipped) == (("f" * 16,), {"not_in_tokens": 5, "too_short": 2})
    assert source(root, {**EVERY, "max_scenes": 2}).scan().refs == refs[:2]
    named = source(root, {**EVERY, "log_names": ["other"]})
    assert list(named.scan().unreadable) == ["other"]
    alter(root, "UPDATE scene SET roadblock_ids = ''")
    assert source(root).scan().skipped == {"no_route": 6, "too_short": 2}
    assert len(source(root, {**EVERY, "has_route": False}).scan().refs) == 6
    scene = found(root, filter={**EVERY, "has_route": False})[0]
    assert isinstance(scene, Scene)
    assert scene.current.command == (0, 0, 0, 1)


def cut(size: Callable[[int], int]) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        os.truncate(file, size(file.stat().st_size))

    return change


def scribble(file: Path) -> None:
    """Every page but the first is overwritten: the size is right, and nothing else."""
    with open(file, "r+b") as out:
        out.seek(4096)
        out.write(b"\xa5" * (file.stat().st_size - 4096))


def misspell(file: Path) -> None:
    """Bytes that are no text, in the schema itself: sqlite3 then trips over its own message."""
    file.write_bytes(file.read_bytes().replace(b"CREATE TABLE image", b"CREATE TABLE \xff\xfe(ge"))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/nuplan-was-here",)


def pickled(column: str, data: bytes) -> Callable[[Path], object]:
    return statement(f"UPDATE camera SET {column} = x'{data.hex()}' WHERE channel = 'CAM_R2'")


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "not an SQLite file"),
    "text": (lambda file: file.write_text("<html>404</html>" * 100), "not an SQLite file"),
    "half": (cut(lambda size: size // 2), "its header says"),
    "last page": (cut(lambda size: size - 4096), "its header says"),
    "last byte": (cut(lambda size: size - 1), "its header says"),
    "header only": (cut(lambda size: 50), "not an SQLite file"),
    "scribbled": (scribble, "malformed|not a database"),
    "misspelt": (misspell, "malformed|decode|unrecognized|near"),
    "journal": (lambda file: Path(f"{file}-journal").write_bytes(b"x"), "not in the file yet"),
    "no table": (statement("DROP TABLE image"), "no such table: image"),
    "no column": (statement("ALTER TABLE scene DROP COLUMN roadblock_ids"), "no such column: roadblock_ids"),
    "no log row": (statement("DELETE FROM log"), "one row that names the map"),
    "unknown map": (statement("UPDATE log SET map_version = 'mars'"), "map_version should be one of"),
    "text as time": (statement("UPDATE lidar_pc SET timestamp = 'noon'"), "should be an integer"),
    "cut blob": (pickled("intrinsic", pickle.dumps([[1.0, 2.0, 3.0]] * 3)[:-9]), "CAM_R2, intrinsic.*not a whole"),
    "no width": (statement("UPDATE camera SET width = 0"), "width and height should be pixels, got 0, "),
    "null blob": (statement("UPDATE camera SET rotation = NULL"), "rotation: expected a pickled list, got None"),
    "wrong shape": (pickled("translation", pickle.dumps([1.0, 2.0])), r"shape \[3\], got \[2\]: \[1.0, 2.0\]"),
    "no rotation": (pickled("rotation", pickle.dumps([0.0] * 4)), r"shape \[4\], got \[0.0"),
    "unsafe": (pickled("distortion", pickle.dumps(Evil())), "system: not on the list"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_log_is_named_and_harms_no_other(root: Path, what: str) -> None:
    change, message = DAMAGED[what]
    good = file_of(root)
    bad = good.with_name("bad.db")
    shutil.copy(good, bad)
    change(bad)
    scan = source(root).scan()
    assert {ref.log for ref in scan.refs} == {good.stem}
    assert len(scan.refs) == 6
    assert list(scan.unreadable) == ["bad"]
    with pytest.raises(SampleError, match=message) as error:
        source(root).scenes("bad", scan.refs)
    assert error.value.reason == scan.unreadable["bad"]
    assert error.value.code == ("unsafe_pickle" if what == "unsafe" else "log_unreadable")
    assert "splits/mini/bad.db" in error.value.reason
    assert not Path("/tmp/nuplan-was-here").exists()


POSE = "(SELECT ego_pose_token FROM lidar_pc WHERE token = " + FRAME.format(40) + ")"
BOX = f"(SELECT token FROM lidar_box WHERE lidar_pc_token = {FRAME.format(40)} LIMIT 1)"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (f"DELETE FROM ego_pose WHERE token = {POSE}", "bad_pose"),
        (f"UPDATE ego_pose SET qw = 0, qx = 0, qy = 0, qz = 0 WHERE token = {POSE}", "bad_pose"),
        (f"UPDATE ego_pose SET qw = 1e200 WHERE token = {POSE}", "bad_pose"),
        (f"UPDATE ego_pose SET x = NULL WHERE token = {POSE}", "bad_pose"),
        (f"UPDATE ego_pose SET x = 9e999 WHERE token = {POSE}", "bad_pose"),
        (f"UPDATE lidar_box SET x = NULL WHERE token = {BOX}", "bad_annotations"),
        (f"UPDATE lidar_pc SET ego_pose_token = 'text' WHERE token = {FRAME.format(40)}", "bad_pose"),
        (f"UPDATE lidar_pc SET lidar_token = x'00' WHERE token = {FRAME.format(40)}", "bad_frame"),
        (f"UPDATE lidar_pc SET filename = '../../etc/passwd' WHERE token = {FRAME.format(40)}", "bad_frame"),
    ],
)
def test_a_bad_frame_harms_the_scenes_that_hold_it_and_no_others(root: Path, change: str, code: str) -> None:
    refs = source(root).scan().refs
    alter(root, change)
    assert codes(found(root, refs)) == ["good", "good", code, code, code, "good"]


def test_a_frame_without_a_token_costs_its_window_and_not_the_log(root: Path) -> None:
    before = source(root).scan()
    alter(root, f"UPDATE lidar_pc SET token = x'00' WHERE token = x'{before.refs[2].token}'")
    scan = source(root).scan()
    assert scan.unreadable == {}
    assert [ref.token for ref in scan.refs] == [r.token for i, r in enumerate(before.refs) if i != 2]
    assert scan.skipped["bad_frame"] == 1
    assert "lidar_pc.token" in scan.examples["bad_frame"]
    alter(root, "UPDATE lidar_pc SET token = CAST(rowid AS BLOB)")
    assert "lidar_pc.token" in next(iter(source(root).scan().unreadable.values()))


def test_an_unknown_velocity_stays_unknown(root: Path) -> None:
    alter(root, f"UPDATE lidar_box SET vx = NULL WHERE token = {BOX}")
    scene = found(root)[4]
    assert isinstance(scene, Scene)
    annotations = scene.frames[0].annotations
    assert annotations is not None
    assert np.isnan(annotations.velocity).any(axis=1).sum() == 1


def test_an_index_changes_nothing(root: Path) -> None:
    before = found(root)
    alter(root, "CREATE INDEX a ON lidar_box (lidar_pc_token)", "CREATE INDEX b ON lidar_pc (timestamp)")
    for one, other in zip(before, found(root), strict=True):
        assert isinstance(one, Scene)
        assert isinstance(other, Scene)
        assert one.current.annotations is not None
        assert other.current.annotations is not None
        assert np.array_equal(one.current.annotations.boxes, other.current.annotations.boxes)
        assert one.current.annotations.track_tokens == other.current.annotations.track_tokens


def test_a_log_that_was_last_written_with_a_wal(root: Path) -> None:
    alter(root, "PRAGMA journal_mode = WAL")
    assert file_of(root).read_bytes()[18:20] == bytes([2, 2])
    assert codes(found(root)) == ["good"] * 6


def test_nothing_is_written(root: Path) -> None:
    before = file_of(root).read_bytes()
    os.chmod(logs(root), 0o555)
    assert codes(found(root)) == ["good"] * 6
    assert [file.name for file in logs(root).iterdir()] == [file_of(root).name]
    assert file_of(root).read_bytes() == before


def test_tokens_of_two_logs_stop_the_scan_and_processes_agree(root: Path) -> None:
    shutil.copy(file_of(root), file_of(root).with_name("twin.db"))
    with pytest.raises(ConfigError, match="6 tokens are held by two logs"):
        source(root).scan()
    with closing(sqlite3.connect(logs(root) / "twin.db")) as db, db:
        db.execute("UPDATE lidar_pc SET token = randomblob(8)")
    (logs(root) / "broken.db").write_bytes(b"no")
    shutil.copy(file_of(root), os.fsencode(logs(root)) + b"/\xff\x1b[2J.db")  # a name that is no text
    alone, together = source(root).scan(processes=1), source(root).scan(processes=2)
    assert alone == together
    assert alone.unreadable.pop("broken")
    assert list(alone.unreadable.values()) == ["its name is no printable text; rename it"]
    for processes in (1, 2):
        with pytest.raises(ConfigError, match="Set maps_root"):
            source(root, maps_root=root).scan(processes=processes)


@pytest.fixture
def memory(root: Path) -> Iterator[str]:
    name = f"nuplan-{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.put(f"{root / 'nuplan-v1.1'}/splits", f"/{name}/nuplan-v1.1/splits", recursive=True)
    fs.put(f"{root / 'sensor_blobs' / 'mini'}", f"/{name}/nuplan-v1.1/sensor_blobs", recursive=True)
    yield f"memory://{name}"
    fs.rm(f"/{name}", recursive=True)


def test_a_root_that_is_a_url(memory: str, root: Path) -> None:
    far, near = source(memory, maps_root=root / "maps"), source(root)
    assert far.scan().refs == near.scan().refs
    scene = far.scenes(file_of(root).stem, far.scan().refs[:1])[0]
    assert isinstance(scene, Scene)
    assert scene.current.cameras["CAM_F0"].image.startswith(f"{memory}/nuplan-v1.1/sensor_blobs/")


def test_no_logs(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"should hold <log>\.db files"):
        NuplanSource(NuplanConfig(root=root, split="mini", maps_root=root / "maps")).scan()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "../x"}, "split should be a folder"),
        ({"split": None}, "split should be a folder"),
        ({"rate": 7}, "2 or 10"),
        ({"channels": ()}, "distinct"),
        ({"channels": ("CAM_F0", "CAM_X")}, "distinct"),
        ({"camera_frame": "lidar"}, "camera_frame\n  unknown key"),
        ({"filter": {"include_synthetic_scenes": True}}, "lists none"),
    ],
)
def test_impossible_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=message):
        NuplanConfig(**{"root": "r", "split": "mini", "maps_root": "m", **fields})


@pytest.mark.parametrize("key", ["root", "sensor_root"])
def test_a_url_with_credentials_is_refused(key: str) -> None:
    fields = {"root": "r", key: "memory://me:secret@host/x?key=1"}
    config = NuplanConfig(**fields, split="mini", maps_root="m", filter=EVERY)
    with pytest.raises(ConfigError) as refused:
        NuplanSource(config)
    assert "secret" not in str(refused.value)
    assert config.channels == CHANNELS


def test_another_config_in_the_same_folder_is_refused(root: Path) -> None:
    with pytest.raises(MismatchError, match="another config"):
        generate_nuplan(made_once.NUPLAN, root, ("CAM_F0",))
    with pytest.raises(ConfigError, match="CAM_X"):
        generate_nuplan(made_once.NUPLAN, root, ("CAM_X",))
