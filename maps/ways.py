"""Ways along the road graph, step by step as NAVSIM and OpenScene go: what the routes of score and command share.

Where candidates are equal the first one wins, in the order of the map file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Final

import numpy as np

from maps.lanes import Lane
from maps.roads import Block, Roads
from shards_schema.poses import Float64

FORWARD_DEPTH: Final = 30
"""Blocks that a search ahead may be long, both ends included."""
_BACKWARD_DEPTH = 15
_WINDOW = 30
_MAX_HEADING = math.pi / 4
_MAX_DISTANCE_M = 3.0

Neighbours = Callable[[Block], Sequence[Block]]
AFTER: Final[Neighbours] = attrgetter("after")
BEFORE: Final[Neighbours] = attrgetter("before")


def block_at(roads: Roads, pose: Float64, on_route: Collection[Block]) -> tuple[Block, list[Block]]:
    """The block that the rear axle (`pose`, global [3]) is most likely in, and all that it may be in.

    Those near whose lanes run as one heads, of the route if there are such; else what is near, however it runs.

    Raises:
        SampleError: code ``bad_map``, the map has no blocks, or a lane near is broken.
    """
    near = roads.at(pose[0], pose[1])
    fitting: dict[bool, list[tuple[float, Block]]] = {True: [], False: []}
    closest: list[float] = []
    for block in near:
        offsets = [lane.offset(pose) for lane in block.lanes]
        closest.append(min((metres for metres, _ in offsets), default=math.inf))
        fitting[block in on_route] += [
            (metres, block) for metres, turned in offsets if turned < _MAX_HEADING and metres < _MAX_DISTANCE_M
        ]
    for wanted in (fitting[True], fitting[False]):
        if wanted:
            return min(wanted, key=lambda item: item[0])[1], [block for _, block in wanted]
    return near[closest.index(min(closest))], near


def begun_at(route: Sequence[Block], start: Block, candidates: Collection[Block]) -> list[Block] | None:
    """`route` with what leads to its beginning from `start`, or another of `candidates`; None if nothing does."""
    if start in route:
        return list(route)
    back = search(route[0], candidates, BEFORE, _BACKWARD_DEPTH)
    return None if back is None else [*back[:0:-1], *route]


def without_gaps(route: Sequence[Block]) -> list[Block]:
    """`route` with what lies between consecutive blocks that are no neighbours, where there is a way."""
    out = list(route[:1])
    for last, following in pairwise(route):
        if last not in following.before:
            out += (search(last, {following}, AFTER, FORWARD_DEPTH) or [])[1:-1]
        out.append(following)
    return out


def search(start: Block, goals: Collection[Block], neighbours: Neighbours, depth: int) -> list[Block] | None:
    """Breadth first from `start` to any of `goals`, both included; None if that takes more than `depth` blocks.

    Where several blocks of one level lead to a block, the last one is its parent: the devkit overwrites. It also queues
    a block as often as it is reached, which grows exponentially; here each stands once in a level, and two orders, by
    first and by last appearance, are kept, since the first decides which goal is met and the last who the parent is.
    """
    by_first, by_last = [start], [start]
    parents: list[Mapping[Block, Block]] = []
    for _ in range(depth):
        hit = next((block for block in by_first if block in goals), None)
        if hit is not None:
            path = [hit]
            for level in reversed(parents):
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


def centerline(blocks: Sequence[Block], lanes: Mapping[int, Lane], start: Lane) -> Float64:
    """float64 [P, 3] global poses: the baselines of the shortest lane path to the end of `blocks`, from the start of
    `start`. Points in which two lanes meet stand twice. If the end cannot be reached: the path of most lanes.

    Raises:
        SampleError: code ``bad_map``, a lane on the way is broken.
    """
    ids = [block.id for block in blocks]
    first = ids.index(start.block) if start.block in ids else 0
    return np.concatenate([lane.centre for lane in _lane_path(lanes, start, ids[first : first + _WINDOW][-1])])


def _lane_path(lanes: Mapping[int, Lane], start: Lane, target: int) -> list[Lane]:
    """Dijkstra over `lanes` from `start` to one of the block `target`, by length; the path of most lanes if none is.

    Raises:
        SampleError: code ``bad_map``, a lane on the way is broken.
    """
    parent: dict[int, Lane | None] = {start.id: None}
    frontier: dict[int, tuple[float, int, Lane]] = {start.id: (1.0, 1, start)}
    done: dict[int, tuple[float, int, Lane]] = {}
    end: Lane | None = None
    while frontier:
        here = min(frontier, key=lambda i: frontier[i][0])
        cost, depth, lane = frontier.pop(here)
        if lane.block == target:
            end = lane
            break
        done[here] = cost, depth, lane
        for following in lane.onward:
            if following.id not in lanes or following.id in done:
                continue
            alternative = cost + following.baseline.length
            if following.id not in frontier or alternative < frontier[following.id][0]:
                frontier[following.id] = alternative, depth + 1, following
                parent[following.id] = lane
    if end is None:
        end = min(done.values(), key=lambda item: (-item[1], item[0]))[2]
    path: list[Lane] = []
    step: Lane | None = end
    while step is not None:
        path.append(step)
        step = parent[step.id]
    return path[::-1]
