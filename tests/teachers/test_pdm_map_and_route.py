"""The map reader, and the graph search of the route, on small worlds."""

from __future__ import annotations

import gzip
import shutil
import sqlite3
from collections import deque
from pathlib import Path

import numpy as np
import pyogrio.raw
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from shards_schema.errors import SampleError
from teachers.pdm.frames import local_polygons
from teachers.pdm.nuplan_map import Block, Lane, NuplanMap, load_map
from teachers.pdm.path import DiscretePath, shifted
from teachers.pdm.route import Route, _search, centerline, corrected_route, logged_route, starting_lane

DATA = Path(__file__).parents[1] / "data" / "pdm"


@pytest.fixture(scope="module")
def gpkg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.gpkg"
    path.write_bytes(gzip.decompress((DATA / "maps" / "two_logs.gpkg.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def world(gpkg: Path) -> NuplanMap:
    return load_map(gpkg)


def changed(gpkg: Path, folder: Path, *statements: str) -> Path:
    """A copy of the map with SQL run on it (the spatial triggers need functions that sqlite3 has not)."""
    path = Path(shutil.copy(gpkg, folder / "changed.gpkg"))
    with sqlite3.connect(path) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{trigger}"')
        for statement in statements:
            db.execute(statement)
    return path


def test_ids_and_links(world: NuplanMap) -> None:
    lanes = [lane for i in world.blocks.ids.tolist() for lane in world.interior(Block(i, connector=False))]
    assert len({lane.id for lane in lanes}) == len(lanes) == 9
    for lane in lanes:
        assert not lane.connector
        for connector in world.next_lanes(lane):
            assert connector.connector
            (onward,) = world.next_lanes(connector)
            end, start = world.centre(connector)[-1, :2], world.centre(onward)[0, :2]
            assert np.hypot(*(end - start)) < 1.0, "exit_lane_fid is where a connector comes from"
            assert Block(connector.block, connector=True) in world.next_blocks(Block(lane.block, connector=False))
            assert Block(lane.block, connector=False) in world.previous_blocks(Block(connector.block, connector=True))
    assert world.block(10**9) is None


def test_coordinates_are_the_projected_ones(gpkg: Path, world: NuplanMap) -> None:
    with sqlite3.connect(gpkg) as db:
        ((zone,),) = db.execute("SELECT value FROM meta WHERE key = 'projectedCoordSystem'").fetchall()
    meta, ids, wkb, _ = pyogrio.raw.read(gpkg, layer="lane_groups_polygons", return_fids=True)
    move = pyproj.Transformer.from_crs(meta["crs"], zone, always_xy=True)
    lonlat = shapely.get_coordinates(shapely.from_wkb(wkb[0]))
    found = shapely.get_coordinates(world.area(Block(int(ids[0]), connector=False)))
    np.testing.assert_array_equal(found, np.column_stack(move.transform(lonlat[:, 0], lonlat[:, 1])))
    assert 1.0 < np.ptp(found, axis=0).max() < 1000.0, "metres, not degrees"


def test_unknown_speed_limits_and_text_ids(gpkg: Path, tmp_path: Path, world: NuplanMap) -> None:
    path = changed(
        gpkg,
        tmp_path,
        "UPDATE lanes_polygons SET speed_limit_mps = NULL",
        "ALTER TABLE baseline_paths RENAME COLUMN lane_fid TO old_fid",
        "ALTER TABLE baseline_paths ADD COLUMN lane_fid TEXT",
        "UPDATE baseline_paths SET lane_fid = CAST(CAST(old_fid AS INTEGER) AS TEXT) WHERE old_fid IS NOT NULL",
    )
    other = NuplanMap(path)
    block = Block(int(other.blocks.ids[0]), connector=False)
    for mine, theirs in zip(other.interior(block), world.interior(block), strict=True):
        assert mine.speed_limit is None
        assert theirs.speed_limit is not None
        np.testing.assert_array_equal(other.centre(mine), world.centre(theirs))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM meta", "no projectedCoordSystem"),
        ("ALTER TABLE lanes_polygons DROP COLUMN lane_group_fid", "lanes_polygons lacks lane_group_fid"),
        ("UPDATE meta SET value = 'nowhere' WHERE key = 'projectedCoordSystem'", "not a nuPlan map"),
        ("DELETE FROM gpkg_contents WHERE table_name = 'carpark_areas'", "not a nuPlan map"),
    ],
)
def test_broken_maps_are_named(gpkg: Path, tmp_path: Path, statement: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as refused:
        NuplanMap(changed(gpkg, tmp_path, statement))
    assert refused.value.code == "bad_map"
    assert "changed.gpkg" in refused.value.reason


def test_a_lane_without_a_baseline(gpkg: Path, tmp_path: Path) -> None:
    world = NuplanMap(changed(gpkg, tmp_path, "DELETE FROM baseline_paths WHERE lane_fid = 101"))
    with pytest.raises(SampleError, match="lane 101 should have one baseline, has 0"):
        world.centre(Lane(101, connector=False, block=0, speed_limit=None))


def test_not_a_map_at_all(tmp_path: Path) -> None:
    path = tmp_path / "map.gpkg"
    path.write_bytes(b"no")
    with pytest.raises(SampleError, match="not a nuPlan map"):
        load_map(path)


def naive(start: int, targets: set[int], edges: dict[int, list[int]], max_depth: int) -> list[int] | None:
    """What the devkit does: a queue in which a node stands as often as it is reached, and the last parent wins."""
    queue: deque[tuple[int, int]] = deque([(start, 1)])
    parent: dict[tuple[int, int], int] = {}
    while queue:
        node, depth = queue.popleft()
        if depth > max_depth:
            return None
        if node in targets:
            path = [node]
            while (node, depth) in parent:
                node, depth = parent[node, depth], depth - 1
                path.append(node)
            return path[::-1]
        for following in edges.get(node, []):
            queue.append((following, depth + 1))
            parent[following, depth + 1] = node
    return None


@settings(max_examples=300, deadline=None)
@given(
    edges=st.dictionaries(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=3), max_size=8),
    targets=st.sets(st.integers(0, 7), min_size=1, max_size=3),
    depth=st.integers(1, 6),
)
def test_search_is_the_devkits(edges: dict[int, list[int]], targets: set[int], depth: int) -> None:
    found = _search(
        Block(0, connector=False),
        targets,
        lambda block: [Block(i, connector=False) for i in edges.get(block.id, [])],
        depth,
    )
    assert (None if found is None else [b.id for b in found]) == naive(0, targets, edges, depth)


def test_search_does_not_explode() -> None:
    """Three ways on at each of 30 levels are 2e14 queue entries, but few blocks."""
    found = _search(
        Block(0, connector=False),
        {10**6},
        lambda b: [Block((b.id * 3 + k) % 50, connector=False) for k in range(3)],
        30,
    )
    assert found is None


def on_lane(world: NuplanMap, lane: Lane) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return world.centre(lane)[1]


def test_gaps_are_filled_and_starts_moved(world: NuplanMap) -> None:
    """Every route of three blocks, its middle left out or its start: from the first lane it is whole again."""
    tried = 0
    for i in world.blocks.ids.tolist():
        first = Block(i, connector=False)
        for middle in world.next_blocks(first):
            (last,) = world.next_blocks(middle)
            lane = world.interior(first)[0]
            pose = on_lane(world, lane)
            whole = (first, middle, last)
            for given_ in ((first, last), (middle, last), (last,)):
                fixed = corrected_route(world, Route.of(world, given_), pose)
                assert fixed.blocks == whole, given_
            line = centerline(world, Route.of(world, whole), lane)
            np.testing.assert_array_equal(line[0], world.centre(lane)[0])
            tried += 1
    assert tried >= 3


def test_start_lane_off_every_lane(world: NuplanMap) -> None:
    """Far from the route, the nearest of its lanes is taken."""
    block = Block(int(world.blocks.ids[0]), connector=False)
    route = Route.of(world, [block])
    lanes = list(route.lanes.values())
    for lane in lanes:
        x, y = shapely.get_coordinates(world.polygon(lane).representative_point())[0]
        pose = np.array([x, y, 0.0])
        assert starting_lane(world, route, [], pose, pose[:2], shapely.Point(x, y)) == lane
    away = np.array([*world.centre(lanes[0])[0, :2] + 500.0, 0.0])
    found = starting_lane(world, route, [], away, away[:2], shapely.Point(away[:2]))
    distances = [world.polygon(lane).distance(shapely.Point(away[:2])) for lane in lanes]
    assert found == lanes[int(np.argmin(distances))]


def test_route_is_refused(world: NuplanMap) -> None:
    with pytest.raises(SampleError, match="no route"):
        logged_route(world, ())
    with pytest.raises(SampleError, match="'0' of the route"):
        logged_route(world, ("0",))


def test_holes_and_multipolygons() -> None:
    hole = shapely.Polygon([(0, 0), (4, 0), (4, 4), (0, 4)], [[(1, 1), (2, 1), (2, 2)]])
    two = shapely.MultiPolygon([shapely.box(10, 0, 11, 1), shapely.box(20, 0, 21, 1)])
    found = local_polygons([hole, two, shapely.box(0, 0, 1, 1)], np.array([1.0, 2.0, np.pi / 2]))
    assert found.polygons.tolist() == [0, 2, 4, 5]
    assert np.diff(found.rings).tolist() == [4, 3, 4, 4, 4]
    np.testing.assert_allclose(found.xy[0], [-2.0, 1.0])
    assert len(local_polygons([], np.zeros(3))) == 0
    with pytest.raises(SampleError, match="LineString"):
        local_polygons([shapely.LineString([(0, 0), (1, 1)])], np.zeros(3))


def test_paths() -> None:
    poses = np.array([[0.0, 0, 0], [3, 0, 0], [3, 0, np.pi / 2], [3, 4, np.pi / 2]])
    path = DiscretePath(poses)
    assert path.length == 7.0
    np.testing.assert_allclose(
        path.at(np.array([-1.0, 1.5, 5.0, 99.0]))[:, :2], [[0, 0], [1.5, 0], [3, 2], [3, 4]], atol=1e-4
    )
    np.testing.assert_array_equal(path.at(np.array([np.nan]))[0], 0.0)
    assert path.project(shapely.Point(1.0, -2.0)) == 1.0
    assert path.part(2.0, 6.5).length == 0.0, "only the doubled point lies between, as upstream"
    assert path.part(0.5, 1.5).length == pytest.approx(1.0)
    np.testing.assert_allclose(shifted(poses, 1.0)[[0, 3], :2], [[0, 1], [2, 4]], atol=1e-12)
