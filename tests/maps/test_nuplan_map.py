"""The map reader, on a small map: what it holds, what is read when, and what is said of a broken one."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pyproj
import pytest
import shapely

from maps.areas import Areas
from maps.geopackage import Layer
from maps.lanes import Lane
from maps.nuplan_map import NuplanMap, load_map
from maps.roads import Roads
from shards_schema.errors import SampleError

DATA = Path(__file__).parents[1] / "data"
ROADS = (
    "lane_groups_polygons",
    "lane_group_connectors",
    "lanes_polygons",
    "lane_connectors",
    "gen_lane_connectors_scaled_width_polygons",
    "baseline_paths",
    "meta",
)


def unpack(packed: str, path: Path) -> Path:
    path.write_bytes(gzip.decompress((DATA / packed).read_bytes()))
    return path


@pytest.fixture(scope="module")
def gpkg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("pdm/maps/two_logs.gpkg.gz", tmp_path_factory.mktemp("map") / "map.gpkg")


@pytest.fixture(scope="module")
def roads(gpkg: Path) -> Roads:
    return load_map(gpkg).roads


@pytest.fixture
def layers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    read = pyogrio.raw.read

    def counted(path: Path, *, layer: str, **options: Any) -> Any:
        seen.append(layer)
        return read(path, layer=layer, **options)

    monkeypatch.setattr(pyogrio.raw, "read", counted)
    return seen


def changed(gpkg: Path, folder: Path, *statements: str) -> Path:
    """A copy of the map with SQL run on it (the spatial triggers need functions that sqlite3 has not)."""
    path = Path(shutil.copy(gpkg, folder / "changed.gpkg"))
    with sqlite3.connect(path) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{trigger}"')
        for statement in statements:
            db.execute(statement)
    return path


def lanes_of(roads: Roads) -> dict[int, Lane]:
    return {lane.id: lane for block in roads.blocks.values() for lane in block.lanes}


def test_ids_and_links(roads: Roads) -> None:
    lanes = [lane for lane in lanes_of(roads).values() if not lane.connector]
    assert len(lanes) == 9
    for lane in lanes:
        block = roads.blocks[lane.block]
        assert not block.connector
        for connector in lane.onward:
            assert connector.connector
            (onward,) = connector.onward
            end, start = connector.centre[-1, :2], onward.centre[0, :2]
            assert np.hypot(*(end - start)) < 1.0, "exit_lane_fid is where a connector comes from"
            assert roads.blocks[connector.block] in block.after
            assert block in roads.blocks[connector.block].before
    assert roads.block(str(lanes[0].block)) is roads.blocks[lanes[0].block]
    assert roads.block(str(10**9)) is None
    assert roads.block("not a number") is None


def test_coordinates_are_the_projected_ones(gpkg: Path, roads: Roads) -> None:
    with sqlite3.connect(gpkg) as db:
        ((zone,),) = db.execute("SELECT value FROM meta WHERE key = 'projectedCoordSystem'").fetchall()
    meta, ids, wkb, _ = pyogrio.raw.read(gpkg, layer="lane_groups_polygons", return_fids=True)
    move = pyproj.Transformer.from_crs(meta["crs"], zone, always_xy=True)
    lonlat = shapely.get_coordinates(shapely.from_wkb(wkb[0]))
    found = shapely.get_coordinates(roads.blocks[int(ids[0])].area)
    np.testing.assert_array_equal(found, np.column_stack(move.transform(lonlat[:, 0], lonlat[:, 1])))
    assert 1.0 < np.ptp(found, axis=0).max() < 1000.0, "metres, not degrees"


def test_blocks_at_a_place(roads: Roads) -> None:
    for lane in lanes_of(roads).values():
        x, y = lane.centre[len(lane.centre) // 2, :2]
        here = roads.at(x, y)
        assert roads.blocks[lane.block] in here
        square = shapely.box(x - 1, y - 1, x + 1, y + 1)
        assert here == [b for kind in (False, True) for b in roads.blocks.values()
                        if b.connector == kind and shapely.intersects(b.area, square)]  # fmt: skip
    nowhere = roads.at(x + 1e4, y)
    assert [block.connector for block in nowhere] == [False, True]
    for kind, found in zip((False, True), nowhere, strict=True):
        distances = [shapely.distance(b.area, shapely.Point(x + 1e4, y)) for b in roads.blocks.values()
                     if b.connector == kind]  # fmt: skip
        assert shapely.distance(found.area, shapely.Point(x + 1e4, y)) == min(distances)


def test_areas() -> None:
    shapes = np.array([shapely.box(x, 0, x + 1.5, 1) for x in (4, 0, 1, 9)], dtype=object)
    areas = Areas.of(Layer(np.array([7, 5, 6, 8]), shapes, {}))
    assert areas.meeting(shapely.box(1.2, 0, 4.0, 9)) == [0, 1, 2], "in the order of the file"
    assert areas.meeting(shapely.Point(99, 99)) == []
    assert areas.nearest(shapely.Point(1.25, 0.5)) == [1], "the first of equals"
    nothing = Areas.of(Layer(np.zeros(0, np.int64), np.empty(0, dtype=object), {}))
    assert (nothing.meeting(shapely.Point(0, 0)), nothing.nearest(shapely.Point(0, 0))) == ([], [])


@pytest.mark.parametrize("broken", [None, shapely.Polygon()], ids=["unread", "empty"])
def test_an_area_that_is_none_is_near_nothing(broken: shapely.Geometry | None) -> None:
    shapes = np.array([broken, shapely.box(4, 0, 5, 1), broken, shapely.box(0, 0, 1, 1)], dtype=object)
    areas = Areas.of(Layer(np.arange(4), shapes, {}))
    assert areas.nearest(shapely.Point(9, 9)) == [1]
    assert areas.meeting(shapely.box(-9, -9, 9, 9)) == [1, 3]
    assert Areas.of(Layer(np.arange(1), shapes[:1], {})).nearest(shapely.Point(9, 9)) == []


def test_headings_and_offsets(roads: Roads) -> None:
    lane = next(iter(lanes_of(roads).values()))
    step = np.diff(lane.centre[:, :2], axis=0)
    np.testing.assert_allclose(np.hypot(*step.T) * np.cos(lane.centre[:-1, 2]), step[:, 0], atol=1e-9)
    assert lane.centre[-1, 2] == lane.centre[-2, 2]
    assert not lane.centre.flags.writeable
    assert lane.baseline.length == pytest.approx(np.hypot(*step.T).sum())
    at = lane.centre[3]
    beside = np.array([at[0] - 3.0 * np.sin(at[2]), at[1] + 3.0 * np.cos(at[2]), at[2] - 0.5 + 4 * np.pi])
    assert lane.offset(beside) == pytest.approx((3.0, 0.5))
    assert lane.offset(at) == (0.0, 0.0)


def test_only_what_is_asked_for_is_read_and_once(gpkg: Path, tmp_path: Path, layers_read: list[str]) -> None:
    world = load_map(Path(shutil.copy(gpkg, tmp_path / "map.gpkg")))
    assert not layers_read
    roads = world.roads
    assert sorted(layers_read) == sorted(ROADS)
    assert world.intersections is world.intersections
    assert len(world.carparks.ids) > 0
    assert sorted(layers_read) == sorted((*ROADS, "intersections", "carpark_areas"))
    assert load_map(tmp_path / "." / "map.gpkg").roads is roads
    os.utime(tmp_path / "map.gpkg", (1, 1))
    assert load_map(tmp_path / "map.gpkg").roads is not roads, "another file"


def test_a_map_of_roads_alone(tmp_path: Path) -> None:
    world = NuplanMap(unpack("nuplan/town.gpkg.gz", tmp_path / "map.gpkg"))
    assert len(world.roads.blocks) == 156
    for part in ("intersections", "carparks"):
        with pytest.raises(SampleError, match="not a nuPlan map") as refused:
            getattr(world, part)
        assert refused.value.code == "bad_map"


def test_unknown_speed_limits_and_text_ids(gpkg: Path, tmp_path: Path, roads: Roads) -> None:
    path = changed(
        gpkg,
        tmp_path,
        "UPDATE lanes_polygons SET speed_limit_mps = NULL",
        "ALTER TABLE baseline_paths RENAME COLUMN lane_fid TO old_fid",
        "ALTER TABLE baseline_paths ADD COLUMN lane_fid TEXT",
        "UPDATE baseline_paths SET lane_fid = CAST(CAST(old_fid AS INTEGER) AS TEXT) WHERE old_fid IS NOT NULL",
    )
    other = lanes_of(NuplanMap(path).roads)
    assert {lane.speed_limit is None for lane in lanes_of(roads).values() if not lane.connector} == {True, False}
    for theirs in lanes_of(roads).values():
        mine = other[theirs.id]
        assert mine.speed_limit == (theirs.speed_limit if theirs.connector else None)
        np.testing.assert_array_equal(mine.centre, theirs.centre)


def test_links_to_what_is_not_there_are_dropped(gpkg: Path, tmp_path: Path, roads: Roads) -> None:
    lane = next(lane for lane in lanes_of(roads).values() if not lane.connector and lane.onward)
    connector = lane.onward[0]
    path = changed(
        gpkg,
        tmp_path,
        f"UPDATE lane_group_connectors SET to_lane_group_fid = NULL WHERE fid = {connector.block}",
        f"UPDATE lane_connectors SET entry_lane_fid = 999999 WHERE fid = {connector.id}",
        f"UPDATE lane_connectors SET lane_group_connector_fid = -1 WHERE fid = {connector.id}",
    )
    found = NuplanMap(path).roads
    assert found.blocks[connector.block].after == []
    assert [block.id for block in found.blocks[connector.block].before] == [lane.block]
    assert connector.id not in lanes_of(found), "no block holds it"
    (same,) = [each for each in lanes_of(found)[lane.id].onward if each.id == connector.id]
    assert same.onward == []


@pytest.mark.parametrize(
    ("statement", "message", "part"),
    [
        ("DELETE FROM meta", "no projectedCoordSystem", "roads"),
        ("ALTER TABLE lanes_polygons DROP COLUMN lane_group_fid", "lanes_polygons lacks lane_group_fid", "roads"),
        ("UPDATE meta SET value = 'nowhere' WHERE key = 'projectedCoordSystem'", "not a nuPlan map", "roads"),
        (
            "ALTER TABLE lane_connectors DROP COLUMN exit_lane_fid; "
            "ALTER TABLE lane_connectors ADD COLUMN exit_lane_fid TEXT DEFAULT 'x'",
            "not a nuPlan map",
            "roads",
        ),
        ("DELETE FROM gpkg_contents WHERE table_name = 'lane_groups_polygons'", "lane_groups_polygons", "roads"),
        ("DELETE FROM gpkg_contents WHERE table_name = 'carpark_areas'", "not a nuPlan map", "carparks"),
        ("DELETE FROM gpkg_contents WHERE table_name = 'intersections'", "not a nuPlan map", "intersections"),
    ],
)
def test_broken_maps_are_named(gpkg: Path, tmp_path: Path, statement: str, message: str, part: str) -> None:
    world = NuplanMap(changed(gpkg, tmp_path, *statement.split("; ")))
    with pytest.raises(SampleError, match=message) as refused:
        getattr(world, part)
    assert refused.value.code == "bad_map"
    assert "changed.gpkg" in refused.value.reason


@pytest.mark.parametrize(
    ("statement", "get", "message"),
    [
        (
            "DELETE FROM baseline_paths WHERE lane_fid = 101",
            lambda lane: lane.centre,
            "lane 101 should have one baseline, has 0",
        ),
        (
            "UPDATE baseline_paths SET geom = X'4750' WHERE lane_fid = 101",
            lambda lane: lane.baseline,
            "lane 101 should have one baseline, has 0",
        ),
        (
            "UPDATE baseline_paths SET lane_fid = 101 WHERE fid = (SELECT min(fid) FROM baseline_paths"
            " WHERE lane_connector_fid > 0)",
            lambda lane: lane.offset(np.zeros(3)),
            "lane 101 should have one baseline, has 2",
        ),
        (
            "UPDATE baseline_paths SET geom = (SELECT geom FROM lanes_polygons WHERE fid = 101) WHERE lane_fid = 101",
            lambda lane: lane.baseline,
            "baseline of lane 101 is no line, but POLYGON",
        ),
    ],
)
def test_a_broken_lane_costs_itself_alone(
    gpkg: Path, tmp_path: Path, statement: str, get: Callable[[Lane], object], message: str
) -> None:
    lanes = lanes_of(NuplanMap(changed(gpkg, tmp_path, statement)).roads)
    with pytest.raises(SampleError, match=message) as refused:
        get(lanes.pop(101))
    assert refused.value.code == "bad_map"
    assert "changed.gpkg" in refused.value.reason
    assert all(len(lane.centre) > 1 and lane.polygon.area > 0 for lane in lanes.values())


def test_a_connector_without_an_area(gpkg: Path, tmp_path: Path) -> None:
    path = changed(gpkg, tmp_path, "DELETE FROM gen_lane_connectors_scaled_width_polygons")
    lane = next(lane for lane in lanes_of(NuplanMap(path).roads).values() if lane.connector)
    with pytest.raises(SampleError, match=f"lane connector {lane.id} should have one polygon, has 0"):
        _ = lane.polygon


def test_a_map_without_blocks(gpkg: Path, tmp_path: Path) -> None:
    path = changed(gpkg, tmp_path, "DELETE FROM lane_groups_polygons", "DELETE FROM lane_group_connectors")
    with pytest.raises(SampleError, match="no roadblocks"):
        NuplanMap(path).roads.at(0.0, 0.0)


def test_not_a_map_at_all(tmp_path: Path) -> None:
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"no")
    with pytest.raises(SampleError, match="not a nuPlan map"):
        _ = load_map(path).roads
