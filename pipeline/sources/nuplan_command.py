"""The driving command as OpenScene made it of a log: left, straight, right or unknown (spec/navsim.md 3).

    route, made whole -> the lane one is in -> the lanes ahead -> 20 m on along their middle: how far to the side?

This is not the route correction of PDM-Closed (`teachers.pdm.route`), though most steps are alike: a route that the
ego is not on is mended backwards only, or the command is unknown; loops are not cut; the lane is the first on the
route that holds the rear axle, whatever its heading. A route that names a block which the map lacks stopped OpenScene;
here it is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import shapely

from pipeline.sources.nuplan_roads import Lane, Roads
from shards_schema.poses import Float64, to_local
from shards_schema.records import COMMANDS

AHEAD_M: Final = 20.0
SIDEWAYS_M: Final = 2.0
_MAX_HEADING, _MAX_DISTANCE_M = math.pi / 4, 3.0
_BACKWARD_DEPTH, _FORWARD_DEPTH, _WINDOW = 15, 30, 30
_FIRST_M: Final = 1e-5
"""The nearest to its beginning that one stands on a centerline."""


def driving_command(roads: Roads, pose: Float64, route: Sequence[str]) -> int:
    """Place in `COMMANDS` for a global `pose` [3] of the rear axle and the roadblock ids of the scene's route."""
    unknown = COMMANDS.index("unknown")
    if not route or not all(i.isdecimal() and int(i) in roads.blocks for i in route):
        return unknown
    blocks = _mended(roads, list(dict.fromkeys(int(i) for i in route)), pose)
    if blocks is None:
        return unknown
    blocks = list(dict.fromkeys(blocks))
    lanes = {i: roads.lanes[i] for block in blocks for i in roads.blocks[block].lanes}
    here = _lane_at(lanes, pose)
    if here is None:
        return unknown
    first = blocks.index(here.block)
    line = np.concatenate([lane.centre for lane in _lanes_ahead(lanes, here, blocks[first : first + _WINDOW][-1])])
    left = float(_further(line, pose)[1])
    return COMMANDS.index("left" if left >= SIDEWAYS_M else "right" if left <= -SIDEWAYS_M else "straight")


def _mended(roads: Roads, blocks: list[int], pose: Float64) -> list[int] | None:
    """The route from where one is, without gaps; None where it cannot be reached backwards from its beginning."""
    start, candidates = _block_at(roads, set(blocks), pose)
    if start not in blocks:
        back = _search(roads, blocks[0], candidates, forward=False, depth=_BACKWARD_DEPTH)
        if back is None:
            return None
        blocks = back[::-1][:-1] + blocks
    out = blocks[:1]
    for last, following in pairwise(blocks):
        if last not in roads.blocks[following].before:
            between = _search(roads, last, {following}, forward=True, depth=_FORWARD_DEPTH)
            out += between[1:-1] if between is not None else []
        out.append(following)
    return out


def _block_at(roads: Roads, on_route: Collection[int], pose: Float64) -> tuple[int, set[int]]:
    """The block that the rear axle is most likely in, and all that it may be in; those of the route go first."""
    near = roads.blocks_at(pose[0], pose[1])
    fitting: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    closest: list[float] = []
    for block in near:
        smallest = math.inf
        for i in roads.blocks[block].lanes:
            centre = roads.lanes[i].centre
            distances = np.hypot(centre[:, 0] - pose[0], centre[:, 1] - pose[1])
            n = int(np.argmin(distances))
            turned = centre[n, 2] - pose[2]
            smallest = min(smallest, float(distances[n]))
            if abs(math.atan2(math.sin(turned), math.cos(turned))) < _MAX_HEADING and distances[n] < _MAX_DISTANCE_M:
                fitting[block in on_route].append((float(distances[n]), block))
        closest.append(smallest)
    for wanted in (fitting[True], fitting[False]):
        if wanted:
            return min(wanted, key=lambda item: item[0])[1], {block for _, block in wanted}
    return near[int(np.argmin(closest))], set(near)


def _search(roads: Roads, start: int, goals: Collection[int], *, forward: bool, depth: int) -> list[int] | None:
    """Breadth first from `start` to one of `goals`, both included, over at most `depth` blocks; None if there is none.

    NAVSIM's search queues a block each time that it is reached, and lets the last one that led to it be its parent.
    Here a block stands once in a level, in two orders: by its first place in that queue, which decides what is found,
    and by its last, which decides the parent.
    """
    firsts, lasts = [start], [start]
    parents: list[Mapping[int, int]] = []
    for _ in range(depth):
        if (hit := next((block for block in firsts if block in goals), None)) is not None:
            path = [hit]
            for level in reversed(parents):
                path.append(level[path[-1]])
            return path[::-1]
        parent: dict[int, int] = {}
        for block in lasts:
            for following in _neighbours(roads, block, forward):
                parent.pop(following, None)
                parent[following] = block
        firsts = list(dict.fromkeys(n for block in firsts for n in _neighbours(roads, block, forward)))
        lasts = list(parent)
        parents.append(parent)
        if not firsts:
            return None
    return None


def _neighbours(roads: Roads, block: int, forward: bool) -> list[int]:
    return roads.blocks[block].after if forward else roads.blocks[block].before


def _lane_at(lanes: Mapping[int, Lane], pose: Float64) -> Lane | None:
    """The first lane that holds the rear axle, else the nearest."""
    point = shapely.Point(pose[0], pose[1])
    inside = next((lane for lane in lanes.values() if shapely.contains(lane.polygon, point)), None)
    if inside is not None or not lanes:
        return inside
    return min(lanes.values(), key=lambda lane: float(shapely.distance(lane.polygon, point)))


def _lanes_ahead(lanes: Mapping[int, Lane], start: Lane, target: int) -> list[Lane]:
    """Dijkstra over `lanes` to one of the block `target`, by length; the path of most lanes where that fails."""
    parent: dict[int, int | None] = {start.id: None}
    frontier: dict[int, tuple[float, int]] = {start.id: (1.0, 1)}
    done: dict[int, tuple[float, int]] = {}
    end: int | None = None
    while frontier:
        here = min(frontier, key=lambda i: frontier[i][0])
        cost, depth = frontier.pop(here)
        if lanes[here].block == target:
            end = here
            break
        done[here] = cost, depth
        for following in lanes[here].onward:
            if following in lanes and following not in done:
                alternative = cost + lanes[following].length
                if following not in frontier or alternative < frontier[following][0]:
                    frontier[following] = alternative, depth + 1
                    parent[following] = here
    if end is None:
        end = min(done, key=lambda i: (-done[i][1], done[i][0]))
    path: list[Lane] = []
    step: int | None = end
    while step is not None:
        path.append(lanes[step])
        step = parent[step]
    return path[::-1]


def _further(line: Float64, pose: Float64) -> Float64:
    """The pose `AHEAD_M` on along `line` [P, 3], in the frame of the place on it nearest to `pose`."""
    along = np.append(0.0, np.hypot(*np.diff(line[:, :2], axis=0).T)).cumsum()
    at = float(shapely.line_locate_point(shapely.linestrings(line[:, :2]), shapely.Point(pose[0], pose[1])))
    places = np.clip([at, at + AHEAD_M], _FIRST_M, along[-1])
    heading = np.unwrap(line[:, 2])
    here, there = np.column_stack([np.interp(places, along, values) for values in (line[:, 0], line[:, 1], heading)])
    return to_local(there, here)
