"""The way ahead: the log's route made whole, the lane one is in, and the centerline; spec section 4.9, points 1 to 3.

A log's route may begin elsewhere than the ego, have gaps, or cross itself. The corrected one decides which lanes count
as on route and where the centerline runs. Where candidates are equal the first one wins, in the order of the map file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from shards_schema.errors import SampleError
from teachers.pdm.nuplan_map import Block, Lane, NuplanMap

Float64 = NDArray[np.float64]

_NEAR_M = 1.0
_MAX_HEADING = math.pi / 4
_MAX_DISTANCE_M = 3.0
_BACKWARD_DEPTH, _FORWARD_DEPTH = 15, 30
_LOOP_AREA_M2 = 1.0
_WINDOW = 30


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
    def of(cls, world: NuplanMap, blocks: Sequence[Block]) -> Route:
        """Of blocks, repeated ones once."""
        unique = tuple(dict.fromkeys(blocks))
        return cls(unique, {lane.id: lane for block in unique for lane in world.interior(block)})


def logged_route(world: NuplanMap, ids: Sequence[str]) -> Route:
    """The route as the log has it.

    Raises:
        SampleError: code ``no_route``, it is empty; ``route_not_on_map``, an id is not on the map.
    """
    if not ids:
        raise SampleError("no_route", "the log has no route here, so there is no centerline to measure progress by")
    blocks = []
    for name in ids:
        block = world.block(int(name)) if name.isdecimal() else None
        if block is None:
            raise SampleError("route_not_on_map", f"roadblock {name!r} of the route is not on the map of this location")
        blocks.append(block)
    return Route.of(world, blocks)


def corrected_route(world: NuplanMap, route: Route, pose: Float64) -> Route:
    """`route` begun where the rear axle is (`pose`, global [3]), gaps filled, cut before it crosses itself."""
    blocks = _from_ego(world, list(route.blocks), pose)
    return Route.of(world, _without_loops(world, _linked(world, blocks)))


def starting_lane(
    world: NuplanMap, route: Route, intersecting: Sequence[int], pose: Float64, centre: Float64, box: shapely.Geometry
) -> Lane:
    """The lane of the route that the ego is in.

    Args:
        world: the map.
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
        errors = []
        for lane in inside:
            line = world.centre(lane)
            nearest = line[np.argmin(_distances(line, pose))]
            errors.append(abs(_wrapped(nearest[2] - pose[2])))
        return inside[int(np.argmin(errors))]
    point = shapely.Point(centre)
    best: Lane | None = None
    closest = math.inf
    for lane in route.lanes.values():
        polygon = world.polygon(lane)
        if shapely.contains(polygon, point):
            return lane
        distance = shapely.distance(polygon, box)
        if distance < closest:
            best, closest = lane, distance
    if best is None:
        raise SampleError("no_route", "the blocks of the route have no lanes")
    return best


def centerline(world: NuplanMap, route: Route, start: Lane) -> Float64:
    """float64 [P, 3] global poses: the baselines of the shortest lane path to the route's end, from the start of
    `start`. Points in which two lanes meet stand twice. If the end cannot be reached: the path of most lanes.
    """
    ids = [block.id for block in route.blocks]
    first = ids.index(start.block) if start.block in ids else 0
    target = ids[first : first + _WINDOW][-1]
    return np.concatenate([world.centre(lane) for lane in _lane_path(world, route, start, target)])


def _from_ego(world: NuplanMap, blocks: list[Block], pose: Float64) -> list[Block]:
    start, candidates = _blocks_at(world, {b.id for b in blocks}, pose)
    ids = [b.id for b in blocks]
    if start.id in ids:
        return blocks
    back = _search(blocks[0], {c.id for c in candidates}, world.previous_blocks, _BACKWARD_DEPTH)
    if back is not None:
        return back[::-1][:-1] + blocks
    forward = _search(start, set(ids[:3]), world.next_blocks, _FORWARD_DEPTH)
    if forward is not None:
        return forward + blocks[ids.index(forward[-1].id) + 1 :]
    return blocks


def _blocks_at(world: NuplanMap, on_route: Collection[int], pose: Float64) -> tuple[Block, list[Block]]:
    """The block that the rear axle is most likely in, and all that it may be in."""
    x, y = pose[:2]
    around = shapely.box(x - _NEAR_M, y - _NEAR_M, x + _NEAR_M, y + _NEAR_M)
    near = [Block(i, connector=False) for i in world.blocks.meeting(around)]
    near += [Block(i, connector=True) for i in world.block_connectors.meeting(around)]
    if not near:
        point = shapely.Point(x, y)
        for layer, connector in ((world.blocks, False), (world.block_connectors, True)):
            nearest = layer.nearest(point)
            if nearest is not None:
                near.append(Block(nearest, connector))
    fitting: dict[bool, list[tuple[float, Block]]] = {True: [], False: []}
    closest = []
    for block in near:
        smallest = math.inf
        for lane in world.interior(block):
            line = world.centre(lane)
            distances = _distances(line, pose)
            n = int(np.argmin(distances))
            distance, error = float(distances[n]), abs(_wrapped(line[n, 2] - pose[2]))
            smallest = min(smallest, distance)
            if error < _MAX_HEADING and distance < _MAX_DISTANCE_M:
                fitting[block.id in on_route].append((distance, block))
        closest.append(smallest)
    for wanted in (fitting[True], fitting[False]):
        if wanted:
            return min(wanted, key=lambda item: item[0])[1], [block for _, block in wanted]
    if not near:
        raise SampleError("bad_map", "the map has no roadblocks")
    return near[int(np.argmin(closest))], near


def _linked(world: NuplanMap, blocks: list[Block]) -> list[Block]:
    """With what lies between consecutive blocks that are no neighbours, where a path of one block or more does."""
    out = blocks[:1]
    for last, following in pairwise(blocks):
        if last.id not in {b.id for b in world.previous_blocks(following)}:
            path = _search(last, {following.id}, world.next_blocks, _FORWARD_DEPTH)
            if path is not None and len(path) >= 3:
                out += path[1:-1]
        out.append(following)
    return out


def _without_loops(world: NuplanMap, blocks: list[Block]) -> list[Block]:
    """Up to the first roadblock connector that overlaps an earlier one."""
    crossed: list[shapely.Geometry] = []
    for n, block in enumerate(blocks):
        if not block.connector:
            continue
        area = world.area(block)
        if crossed and (shapely.area(shapely.intersection(crossed, area)) > _LOOP_AREA_M2).any():
            return blocks[:n]
        crossed.append(area)
    return blocks


def _search(
    start: Block, targets: Collection[int], neighbours: Callable[[Block], list[Block]], max_depth: int
) -> list[Block] | None:
    """Breadth first from `start` to any of `targets`, both included; None if it is more than `max_depth` blocks long.

    Where several blocks of one level lead to a block, the last one is its parent: the devkit overwrites. It also queues
    a block as often as it is reached, which grows exponentially; here each stands once in a level, and two orders, by
    first and by last appearance, are kept, since the first decides which target is met and the last who the parent is.
    """
    by_first, by_last = [start], [start]
    parents: list[dict[Block, Block]] = [{}]
    for depth in range(max_depth):
        hit = next((block for block in by_first if block.id in targets), None)
        if hit is not None:
            path = [hit]
            for level in reversed(parents[1 : depth + 1]):
                path.append(level[path[-1]])
            return path[::-1]
        parent: dict[Block, Block] = {}
        for block in by_last:
            for following in neighbours(block):
                parent.pop(following, None)  # so that the order of keys is that of last appearance
                parent[following] = block
        by_first = list(dict.fromkeys(following for block in by_first for following in neighbours(block)))
        by_last = list(parent)
        parents.append(parent)
        if not by_first:
            return None
    return None


def _lane_path(world: NuplanMap, route: Route, start: Lane, target: int) -> list[Lane]:
    """Dijkstra on the lanes of `route` from `start` to a lane of the block `target`, by length of baseline."""
    parent: dict[int, Lane | None] = {start.id: None}
    open_: dict[int, tuple[float, int, Lane]] = {start.id: (1.0, 1, start)}
    closed: dict[int, tuple[float, int, Lane]] = {}
    end: Lane | None = None
    while open_:
        lane_id = min(open_, key=lambda i: open_[i][0])
        cost, depth, lane = open_.pop(lane_id)
        if lane.block == target:
            end = lane
            break
        closed[lane_id] = (cost, depth, lane)
        for following in world.next_lanes(lane):
            if following.id not in route.lanes or following.id in closed:
                continue
            alternative = cost + world.baseline(following).length
            if following.id not in open_ or alternative < open_[following.id][0]:
                parent[following.id] = lane
                open_[following.id] = (alternative, depth + 1, following)
    if end is None:
        deepest = max(depth for _, depth, _ in closed.values())
        end = min((item for item in closed.values() if item[1] == deepest), key=lambda item: item[0])[2]
    path: list[Lane] = []
    step: Lane | None = end
    while step is not None:
        path.append(step)
        step = parent[step.id]
    return path[::-1]


def _distances(line: Float64, pose: Float64) -> Float64:
    return np.asarray(np.sqrt(((line[:, :2] - pose[:2]) ** 2).sum(axis=1)))


def _wrapped(angle: float) -> float:
    return math.atan2(math.sin(angle), math.cos(angle))
