"""The dataset on disk: layout, maps, equal bytes for equal configs, and what happens in folders that are not empty."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
import simplejpeg
from pyproj import Transformer

from jobs.config import load
from jobs.data import DataConfig, main
from shards_schema.errors import ConfigError, HeldError, MismatchError
from shards_schema.records import CHANNELS
from synthetic import MARKER, SyntheticConfig, generate, is_synthetic
from synthetic.lidar import RECORD
from synthetic.world import LOCATIONS, town

TINY = SyntheticConfig(
    logs=1, frames=2, width=96, height=54, lidar_points=300, traffic=0.3, manoeuvres=("straight",), processes=1
)


def digest(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(TINY, tmp_path_factory.mktemp("made") / "synthetic")


def test_layout(made: Path) -> None:
    (log,) = (made / "navsim_logs" / "mini").iterdir()
    frames = pickle.loads(log.read_bytes())
    assert log.name == f"{frames[0]['log_name']}.pkl"
    for frame in frames:
        blobs = made / "sensor_blobs" / "mini"
        for channel in CHANNELS:
            image = simplejpeg.decode_jpeg((blobs / frame["cams"][channel]["data_path"]).read_bytes())
            assert image.shape == (54, 96, 3)
            assert image.std() > 10.0
        header, _, body = (blobs / frame["lidar_path"]).read_bytes().partition(b"DATA binary\n")
        count = int(header.split(b"POINTS ")[1].split()[0])
        points = np.frombuffer(body, dtype=RECORD)
        assert len(points) == count > 50
        assert np.median(np.abs(points["z"][points["intensity"] == 18])) < 0.2  # the ground is at the ego's feet
    assert not list(made.glob(".*"))
    marker = json.loads((made / MARKER).read_text())
    assert marker["synthetic"] is True
    assert "must not be mistaken" in marker["notice"]
    assert is_synthetic(made)


def test_only_the_chosen_cameras_see_something(made: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"cameras": ("CAM_F0",)})
    root = generate(config, tmp_path / "front")
    everything, front = digest(made / "sensor_blobs"), digest(root / "sensor_blobs")
    assert everything.keys() == front.keys()
    changed = {Path(name).parent.name for name, value in front.items() if everything[name] != value}
    assert changed == set(CHANNELS) - {"CAM_F0"}
    assert len({value for name, value in front.items() if Path(name).parent.name in changed}) == 1  # plain grey
    assert "cameras" not in TINY.identity()  # as before there was a choice
    assert config.identity()["cameras"] == ["CAM_F0"]
    with pytest.raises(ValueError, match="expected some of CAM_F0"):
        SyntheticConfig(cameras=("CAM_X",))


def test_maps_have_what_the_devkit_reads(made: Path) -> None:
    index = json.loads((made / "maps" / "nuplan-maps-v1.0.json").read_text())
    assert set(index) == set(LOCATIONS)
    layers = {
        "lanes_polygons", "lane_connectors", "gen_lane_connectors_scaled_width_polygons", "baseline_paths",
        "boundaries", "lane_groups_polygons", "lane_group_connectors", "intersections", "stop_polygons",
        "crosswalks", "walkways", "carpark_areas", "road_segments", "generic_drivable_areas",
    }  # fmt: skip
    for location, entry in index.items():
        path = made / "maps" / location / entry["version"] / "map.gpkg"
        assert {name for name, _ in pyogrio.list_layers(path)} == layers | {"meta"}
        _, _, _, (keys, values) = pyogrio.raw.read(path, layer="meta")
        epsg = dict(zip(keys, values, strict=True))["projectedCoordSystem"]
        assert epsg == f"EPSG:{LOCATIONS[location][1]}"
        ids: list[int] = []
        for name in layers:
            meta, fids, shapes, columns = pyogrio.raw.read(path, layer=name, return_fids=True)
            assert meta["crs"] == "EPSG:4326"
            assert all(shapely.is_valid(shapely.from_wkb(shapes))), name
            ids += fids.tolist()
            if name == "lanes_polygons":
                fields = dict(zip(meta["fields"], columns, strict=True))
                np.testing.assert_array_equal(fields["lane_fid"], fids)
                first = shapely.from_wkb(shapes)[0]
                lane = town(TINY.seed, location).lanes[int(fids[0])]
                to_utm = Transformer.from_crs(4326, epsg, always_xy=True)
                middle = shapely.Point(*lane.path.point(5.0) + town(TINY.seed, location).origin)
                assert shapely.transform(first, to_utm.transform, interleaved=False).contains(middle)
        assert len(ids) == len(set(ids))


def test_route_and_light_ids_are_in_the_map(made: Path) -> None:
    (log,) = (made / "navsim_logs" / "mini").iterdir()
    frame = pickle.loads(log.read_bytes())[0]
    path = next((made / "maps" / frame["map_location"]).rglob("map.gpkg"))
    ids = {
        name: set(pyogrio.raw.read(path, layer=name, return_fids=True)[1].tolist())
        for name in ("lane_groups_polygons", "lane_group_connectors", "lane_connectors")
    }
    assert {int(r) for r in frame["roadblock_ids"]} <= ids["lane_groups_polygons"] | ids["lane_group_connectors"]
    assert {n for n, _ in frame["traffic_lights"]} <= ids["lane_connectors"]


def test_equal_configs_give_equal_bytes_and_a_finished_set_is_left_alone(made: Path, tmp_path: Path) -> None:
    again = generate(TINY.model_copy(update={"processes": 2}), tmp_path / "again")
    assert digest(again) == digest(made)
    times = {p: p.stat().st_mtime_ns for p in again.rglob("*")}
    lines: list[str] = []
    generate(TINY, again, lines.append)
    assert {p: p.stat().st_mtime_ns for p in again.rglob("*")} == times
    assert "nothing to do" in lines[0]


def test_another_config_is_refused_with_both_values(made: Path) -> None:
    with pytest.raises(MismatchError, match=r"seed is 0 there, 7 here"):
        generate(TINY.model_copy(update={"seed": 7}), made)


def test_nothing_is_written_among_other_data(tmp_path: Path) -> None:
    (tmp_path / "navsim_logs").mkdir()
    with pytest.raises(MismatchError, match="not empty"):
        generate(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["navsim_logs"]


def test_a_second_command_does_not_mix_its_world_into_one_under_way(tmp_path: Path) -> None:
    """Whether it wants the same world or another one; what is finished is everybody's."""
    root = tmp_path / "data"
    said: list[str] = []

    def during(line: str) -> None:
        said.append(line)
        before = digest(root)
        for config in (TINY, TINY.model_copy(update={"seed": 5})):
            with pytest.raises(HeldError, match=rf"pid {os.getpid()}.*or give another source\.root="):
                generate(config, root, key="source.root")
        assert digest(root) == before

    generate(TINY, root, during)
    assert len(said) == 2
    assert not list(root.glob(".*"))
    assert generate(TINY, root) == root


def test_a_killed_run_is_finished_and_another_config_starts_over(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "killed"

    class KilledError(Exception):
        pass

    def kill(line: str) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        generate(TINY, root, kill)
    assert not is_synthetic(root)
    assert (root / "maps").is_dir()
    # Half of a log, as a kill between images leaves it, and a sensor folder whose pickle never came.
    (root / ".generating" / "mini" / "half").mkdir(parents=True)
    (log,) = (made / "navsim_logs" / "mini").iterdir()
    (root / "sensor_blobs" / "mini" / log.stem / "CAM_F0").mkdir(parents=True)
    generate(TINY, root)
    assert digest(root) == digest(made)

    (root / MARKER).unlink()
    (root / ".generating").mkdir()
    (root / ".generating" / "config.json").write_text(json.dumps({"config": {"seed": 99}}))
    stale = root / "navsim_logs" / "mini" / "stale.pkl"
    stale.write_bytes(b"of another config")
    generate(TINY, root)
    assert digest(root) == digest(made)


def test_command_line(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(DataConfig, ["out=x/y", "logs=3", "splits=mini,test", "manoeuvres=left_turn"])
    assert config.out == "x/y"
    assert (config.logs, config.splits, config.manoeuvres) == (3, ("mini", "test"), ("left_turn",))
    for wrong in (["logs"], ["logs=0"], ["nonsense=1"], ["manoeuvres=fly"]):
        with pytest.raises(ConfigError):
            load(DataConfig, wrong)
    arguments = [f"{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in TINY.model_dump().items() if v != ""]
    main([f"out={made}", *arguments])
    assert "SYNTHETIC" in capsys.readouterr().out
    with pytest.raises(MismatchError, match="seed is 0 there, 9 here"):
        main([f"out={made}", "seed=9"])
