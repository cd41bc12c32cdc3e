"""The way ahead: the log's route made whole, and the lane one is in.

A log's route may begin elsewhere than the ego, have gaps, or cross itself. The corrected one decides which lanes count
as on route and where the centerline runs. Where candidates are equal the first one wins, in the order of the map file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import shapely

from maps.lanes import Lane
from maps.roads import Block, Roads
from maps.ways import AFTER, FORWARD_DEPTH, begun_at, block_at, search, without_gaps
from shards_schema.errors import SampleError
from shards_schema.poses import Float64

_LOOP_AREA_M2 = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Blocks in driving order and their lanes.

    Attributes:
        blocks: roadblocks and roadblock connectors in turn, each once.
        lanes: by id, in the order of the blocks.
    """

    blocks: tuple[Block, ...]
    lanes: dict[int, Lane]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Route:
        """Of blocks, repeated ones once."""
        unique = tuple(dict.fromkeys(blocks))
        return cls(unique, {lane.id: lane for block in unique for lane in block.lanes})


def logged_route(roads: Roads, ids: Sequence[str]) -> Route:
    """The route as the log has it.

    Raises:
        SampleError: code ``no_route``, it is empty; ``route_not_on_map``, an id is not on the map.
    """
    if not ids:
        raise SampleError("no_route", "the log has no route here, so there is no centerline to measure progress by")
    blocks = []
    for name in ids:
        block = roads.block(name)
        if block is None:
            raise SampleError("route_not_on_map", f"roadblock {name!r} of the route is not on the map of this location")
        blocks.append(block)
    return Route.of(blocks)


def corrected_route(roads: Roads, route: Route, pose: Float64) -> Route:
    """`route` begun where the rear axle is (`pose`, global [3]), gaps filled, cut before it crosses itself."""
    return Route.of(_without_loops(without_gaps(_from_ego(roads, route.blocks, pose))))


def starting_lane(
    route: Route, intersecting: Sequence[int], pose: Float64, centre: Float64, box: shapely.Geometry
) -> Lane:
    """The lane of the route that the ego is in.

    Args:
        route: the corrected one.
        intersecting: ids of the map polygons that hold the rear axle, in the order in which ties are decided.
        pose: global rear axle [3].
        centre: global centre of the ego [2].
        box: its outline.

    Raises:
        SampleError: code ``no_route``, the route has no lanes.
    """
    inside = [route.lanes[i] for i in intersecting if i in route.lanes]
    if inside:
        return min(inside, key=lambda lane: lane.offset(pose)[1])
    point = shapely.Point(centre)
    best: Lane | None = None
    closest = math.inf
    for lane in route.lanes.values():
        polygon = lane.polygon
        if shapely.contains(polygon, point):
            return lane
        distance = shapely.distance(polygon, box)
        if distance < closest:
            best, closest = lane, distance
    if best is None:
        raise SampleError("no_route", "the blocks of the route have no lanes")
    return best


def _from_ego(roads: Roads, blocks: Sequence[Block], pose: Float64) -> Sequence[Block]:
    start, candidates = block_at(roads, pose, blocks)
    begun = begun_at(blocks, start, candidates)
    if begun is not None:
        return begun
    forward = search(start, blocks[:3], AFTER, FORWARD_DEPTH)
    return blocks if forward is None else [*forward, *blocks[blocks.index(forward[-1]) + 1 :]]


def _without_loops(blocks: Sequence[Block]) -> Sequence[Block]:
    """Up to the first roadblock connector that overlaps an earlier one."""
    crossed: list[shapely.Geometry] = []
    for n, block in enumerate(blocks):
        if not block.connector:
            continue
        if crossed and (shapely.area(shapely.intersection(crossed, block.area)) > _LOOP_AREA_M2).any():
            return blocks[:n]
        crossed.append(block.area)
    return blocks
