"""Batched predicates against shapely, one by one: random shapes, and integer ones, where touching is exact."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import torch
from shapely.geometry import LineString, MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry

from scoring.context import Polygons, _centerlines, _polygon_edges
from scoring.geometry import EdgeSet, bounds, contains, distances, edges_meet_box, oriented_boxes_meet, pairs


def rings(shape: BaseGeometry) -> list[np.ndarray]:
    return [np.array(r.coords) for part in shapely.get_parts(shape) for r in (part.exterior, *part.interiors)]


def edge_set(scenes: list[list[BaseGeometry]]) -> EdgeSet:
    return _polygon_edges([Polygons.of([rings(s) for s in shapes]) for shapes in scenes])


def star(rng: np.random.Generator, centre: tuple[float, float], radius: float, corners: int) -> Polygon:
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    r = radius * rng.uniform(0.4, 1.0, corners)
    return Polygon(np.column_stack((centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle))))


def shapes(rng: np.random.Generator) -> list[BaseGeometry]:
    big = star(rng, (0, 0), 10, 40).buffer(0)
    hole = big.difference(star(rng, (0, 0), 3, 7).buffer(0))
    apart = MultiPolygon([box(-9, -9, -5, -4), box(3, 3, 8, 9).difference(box(4, 4, 6, 5))])
    return [big, hole, apart, box(-2, -2, 2, 2), star(rng, (5, -5), 4, 9).buffer(0), Polygon()]


def inside(scenes: list[list[BaseGeometry]], points: np.ndarray, max_bytes: int = 1 << 24) -> np.ndarray:
    """bool [S, M, Q] for points [S, Q, 2]."""
    edges = edge_set(scenes)
    scene = torch.arange(len(scenes))
    at = torch.from_numpy(points)
    row, item = pairs(edges, scene, bounds(at))
    out = np.zeros((len(scenes), max(map(len, scenes)), points.shape[1]), dtype=bool)
    out[row, item] = contains(edges, scene, at, row, item, max_bytes).numpy()
    return out


@pytest.mark.parametrize("max_bytes", [1, 1 << 24])
def test_points_in_polygons_with_holes_and_parts(max_bytes: int) -> None:
    rng = np.random.default_rng(0)
    scenes = [shapes(rng)[: 6 - k] for k in range(4)] + [[]]
    points = rng.uniform(-12, 12, (5, 400, 2))
    found = inside(scenes, points, max_bytes)
    for s, some in enumerate(scenes):
        for m, shape in enumerate(some):
            assert (found[s, m] == shapely.contains_xy(shape, *points[s].T)).all()
        assert not found[s, len(some) :].any()
    assert found.any()
    assert not found.all()


def test_points_on_edges_and_corners_are_outside() -> None:
    lattice = Polygon([(0, 0), (4, 0), (4, 2), (6, 2), (6, 6), (3, 3), (0, 6)], [[(1, 1), (2, 1), (2, 2), (1, 2)]])
    x, y = np.meshgrid(np.arange(-1, 8, 0.5), np.arange(-1, 8, 0.5))
    points = np.stack((x.ravel(), y.ravel()), axis=-1)
    expected = shapely.contains_xy(lattice, *points.T)
    on_edge = shapely.distance(shapely.points(points), lattice.boundary) == 0
    assert on_edge.sum() > 30
    assert (inside([[lattice]], points[None])[0, 0] == expected).all()


def boxes(rng: np.random.Generator, count: int, *, grid: bool) -> tuple[torch.Tensor, ...]:
    if grid:  # right angles and whole metres: many pairs touch exactly
        centre = rng.integers(-4, 5, (count, 2)).astype(float)
        heading = rng.integers(0, 4, count)
        axis = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])[heading]
        half = rng.integers(1, 4, (count, 2)) / 2.0
    else:
        centre, angle = rng.uniform(-5, 5, (count, 2)), rng.uniform(-4, 4, count)
        axis, half = np.stack((np.cos(angle), np.sin(angle)), axis=-1), rng.uniform(0.1, 3, (count, 2))
    return torch.from_numpy(centre), torch.from_numpy(axis), torch.from_numpy(half)


def outline(centre: torch.Tensor, axis: torch.Tensor, half: torch.Tensor) -> Polygon | LineString:
    c, a = centre.numpy(), axis.numpy()
    left = np.array([-a[1], a[0]])
    length, width = half.tolist()
    corners = [c + sx * length * a + sy * width * left for sx, sy in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return LineString([corners[0], corners[3]]) if length == 0 else Polygon(corners)


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("segment", [True, False])
def test_rectangles_meet(grid: bool, segment: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = boxes(rng, 1500, grid=grid), boxes(rng, 1500, grid=grid)
    if segment:
        a[2][:, 0] = 0.0
    found = oriented_boxes_meet(*a, *b)
    expected = [outline(*(t[k] for t in a)).intersects(outline(*(t[k] for t in b))) for k in range(1500)]
    assert found.tolist() == expected
    assert 100 < sum(expected) < 1400


@pytest.mark.parametrize("grid", [True, False])
def test_segments_meet_a_rectangle(grid: bool) -> None:
    rng = np.random.default_rng(2)
    centre, axis, _ = boxes(rng, 300, grid=grid)
    ends = rng.integers(-6, 7, (300, 4, 5)).astype(float) if grid else rng.uniform(-6, 6, (300, 4, 5))
    found = edges_meet_box(torch.from_numpy(ends), centre, axis, 2.0, 1.0)
    half = torch.tensor([2.0, 1.0])
    for k in range(300):
        shape = outline(centre[k], axis[k], half)
        for e in range(5):
            x0, y0, x1, y1 = ends[k, :, e]
            line = shapely.points(x0, y0) if (x0, y0) == (x1, y1) else LineString([(x0, y0), (x1, y1)])
            assert bool(found[k, e]) == shape.intersects(line)


def test_distance_and_place_on_a_polyline_with_a_point_given_twice() -> None:
    rng = np.random.default_rng(3)
    lines = [
        np.cumsum(rng.uniform(-1, 2, (30, 2)), axis=0),
        np.array([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0], [0.0, 4.0]]),
    ]
    _, edges, start = _centerlines(lines)
    for s, line in enumerate(lines):
        shape = LineString(line)
        # On the second line (2, 2) is as near to three segments; shapely takes the first.
        points = np.concatenate((rng.uniform(-5, 20, (200, 2)), [[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0]]))
        for point in points:
            distance, where = distances(edges[s], torch.from_numpy(point))
            nearest = int(distance.nan_to_num(torch.inf).argmin())
            length = float(torch.hypot(*(edges[s, 2:, nearest] - edges[s, :2, nearest])))
            place = float(start[s, nearest] + where[nearest] * length)
            assert float(distance[nearest]) == pytest.approx(shape.distance(shapely.Point(point)), abs=1e-9)
            assert place == pytest.approx(shape.project(shapely.Point(point)), abs=1e-9)
