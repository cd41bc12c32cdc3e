"""The route that a log has, made whole, on a small map; and the geometry of polygons and paths."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import shapely

from maps.nuplan_map import load_map
from maps.roads import Roads
from maps.ways import centerline
from scoring.devkit.frames import local_polygons
from shards_schema.errors import SampleError
from teachers.pdm.closed import DiscretePath, shifted
from teachers.pdm.route import Route, corrected_route, logged_route, starting_lane

DATA = Path(__file__).parents[1] / "data" / "pdm"


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Roads:
    path = tmp_path_factory.mktemp("map") / "map.gpkg"
    path.write_bytes(gzip.decompress((DATA / "maps" / "two_logs.gpkg.gz").read_bytes()))
    return load_map(path).roads


def test_gaps_are_filled_and_starts_moved(roads: Roads) -> None:
    """Every route of three blocks, its middle left out or its start: from the first lane it is whole again."""
    tried = 0
    for first in roads.blocks.values():
        if first.connector:
            continue
        for middle in first.after:
            (last,) = middle.after
            lane = first.lanes[0]
            pose = lane.centre[1]
            whole = (first, middle, last)
            for given_ in ((first, last), (middle, last), (last,)):
                fixed = corrected_route(roads, Route.of(given_), pose)
                assert fixed.blocks == whole, given_
            line = centerline(whole, Route.of(whole).lanes, lane)
            np.testing.assert_array_equal(line[0], lane.centre[0])
            tried += 1
    assert tried >= 3


def test_start_lane_off_every_lane(roads: Roads) -> None:
    """Far from the route, the nearest of its lanes is taken."""
    route = Route.of([next(block for block in roads.blocks.values() if not block.connector)])
    lanes = list(route.lanes.values())
    for lane in lanes:
        x, y = shapely.get_coordinates(lane.polygon.representative_point())[0]
        pose = np.array([x, y, 0.0])
        assert starting_lane(route, [], pose, pose[:2], shapely.Point(x, y)) == lane
    away = np.array([*lanes[0].centre[0, :2] + 500.0, 0.0])
    found = starting_lane(route, [], away, away[:2], shapely.Point(away[:2]))
    distances = [lane.polygon.distance(shapely.Point(away[:2])) for lane in lanes]
    assert found == lanes[int(np.argmin(distances))]


def test_route_is_refused(roads: Roads) -> None:
    with pytest.raises(SampleError, match="no route"):
        logged_route(roads, ())
    with pytest.raises(SampleError, match="'0' of the route"):
        logged_route(roads, ("0",))


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
