"""The ground as painted quads, lowest layer first: lawns, sidewalks, kerbs, asphalt, strips, markings.

Every quad is convex and lies at z = 0; a later one covers an earlier one. One list a town, made once.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from shards_schema.poses import Float64
from synthetic.geometry import Path, rectangle, rng_of, rotated
from synthetic.scenery import lots
from synthetic.world import (
    GUTTER,
    LANE_WIDTH,
    NODE_REACH,
    SIDEWALK,
    STRIP,
    STRIP_MARGIN,
    Road,
    Town,
)  # fmt: skip

Colour = tuple[float, float, float]
GRASS: Colour = (104, 124, 74)
PAVING: Colour = (164, 160, 152)
KERB: Colour = (190, 188, 182)
ASPHALT: Colour = (84, 86, 90)
BAY: Colour = (76, 77, 80)
BIKE: Colour = (70, 110, 92)
WHITE: Colour = (232, 232, 226)
YELLOW: Colour = (226, 178, 52)


class _Layers:
    def __init__(self) -> None:
        self.quads: list[Float64] = []
        self.rgb: list[Colour] = []

    def add(self, quads: Float64, colour: Colour) -> None:
        """Quads [K, 4, 2] or one [4, 2]."""
        many = quads.reshape(-1, 4, 2)
        self.quads.append(many)
        self.rgb += [colour] * len(many)

    def band(self, path: Path, s: Float64, left: float, right: float, colour: Colour) -> None:
        """The band between two offsets, cut at arc lengths `s` [N]: N - 1 quads."""
        a, b = path.point(s, left), path.point(s, right)
        self.add(np.stack((a[:-1], a[1:], b[1:], b[:-1]), axis=1), colour)

    def dashes(self, path: Path, begins: Float64, length: float, left: float, half: float, colour: Colour) -> None:
        """Dashes of `length` at arc lengths `begins`."""
        p = [path.point(begins + ds, left + side * half) for ds, side in ((0, 1), (length, 1), (length, -1), (0, -1))]
        self.add(np.stack(p, axis=1), colour)

    def fan(self, middle: Float64, ring: Float64, colour: Colour) -> None:
        """A star-shaped area."""
        after = np.roll(ring, -1, axis=0)
        m = np.broadcast_to(middle, ring.shape)
        self.add(np.stack((m, ring, after, after), axis=1), colour)


@cache
def ground(town: Town) -> tuple[Float64, Float64]:
    """Quads [K, 4, 3] in painting order and their colours [K, 3]."""
    out, rng = _Layers(), rng_of("ground", town.seed, town.location)
    for lot in lots(town):
        if lot.kind == "park":
            out.add(lot.ring(), (88, 128, 62))
        else:
            out.add(rectangle(lot.x, lot.y, lot.heading, lot.length + 1.6, lot.depth + 1.6), (148, 144, 138))
        if lot.kind == "car_park":
            out.add(lot.ring(), BAY)
            for u in np.arange(-lot.length / 2 + 0.75, lot.length / 2, 2.9):
                bar = rotated(rectangle(u, 0.0, 0.0, 0.14, 5.2), lot.heading) + np.array([lot.x, lot.y])
                out.add(bar, WHITE)
    for margin, colour in ((STRIP + SIDEWALK, PAVING), (GUTTER + 0.22, KERB), (GUTTER, ASPHALT)):
        for road in town.roads:
            s = _cuts(road)
            out.band(road.path, s, road.half + margin, -road.half - margin, colour)
            if colour != PAVING:
                _strips(out, road, margin, colour)
        for index, node in enumerate(town.nodes):
            out.fan(node.xy, town.node_ring(index, margin, rounded=colour != PAVING), colour)
    for road in town.roads:
        tone = float(rng.uniform(-6.0, 6.0))
        patch = (ASPHALT[0] + tone, ASPHALT[1] + tone, ASPHALT[2] + tone)
        out.band(road.path, _cuts(road), road.half + GUTTER, -road.half - GUTTER, patch)
        _mark_strips(out, road)
        _mark_lanes(out, road)
    for index in range(len(town.nodes)):
        _mark_crossing(out, town, index)
    quads = np.concatenate(out.quads)
    return np.concatenate((quads, np.zeros((len(quads), 4, 1))), axis=2), np.array(out.rgb)


def _cuts(road: Road) -> Float64:
    return np.linspace(0.0, road.path.length, max(2, round(road.path.length / 5.0)))


def _strip_pieces(road: Road) -> list[tuple[float, float]]:
    begin, end = STRIP_MARGIN, road.path.length - STRIP_MARGIN
    if road.crossing is None:
        return [(begin, end)]
    return [(begin, road.crossing - 6.0), (road.crossing + 6.0, end)]


def _strips(out: _Layers, road: Road, margin: float, colour: Colour) -> None:
    for begin, end in _strip_pieces(road):
        s = np.linspace(begin - (margin - GUTTER), end + (margin - GUTTER), 12)
        for side in (1.0, -1.0):
            out.band(road.path, s, side * (road.half + STRIP + margin - GUTTER), side * road.half, colour)


def _mark_strips(out: _Layers, road: Road) -> None:
    for begin, end in _strip_pieces(road):
        s = np.linspace(begin, end, 12)
        for side, use in ((-1.0, road.strips[0]), (1.0, road.strips[1])):
            inner, outer = side * (road.half + 0.15), side * (road.half + STRIP)
            out.band(road.path, s, outer, inner, BIKE if use == "bike" else BAY)
            if use == "parking":
                ticks = np.arange(begin, end + 0.1, 6.3)
                for t in ticks:
                    pair = np.array([t, min(t + 0.12, end)])
                    out.band(road.path, pair, outer, inner, WHITE)


def _mark_lanes(out: _Layers, road: Road) -> None:
    path, length = road.path, road.path.length
    pieces = [(0.0, length)]
    if road.crossing is not None:
        pieces = [(0.0, road.crossing - 3.4), (road.crossing + 3.4, length)]
        for left in np.arange(-road.half - 0.3, road.half + 0.3, 0.95):
            out.band(path, np.array([road.crossing - 1.8, road.crossing + 1.8]), left + 0.5, left, WHITE)
        for side in (1.0, -1.0):
            at = road.crossing - side * 2.9
            out.band(path, np.array([at - 0.2, at + 0.2]), 0.1 * -side, -side * road.half, WHITE)
    for begin, end in pieces:
        s = np.linspace(begin, end, 18)
        for left in (0.16, -0.16):
            out.band(path, s, left + 0.07, left - 0.07, YELLOW)
        for side in (1.0, -1.0):
            out.band(path, s, side * road.half + 0.07, side * road.half - 0.07, WHITE)
            for i in range(1, road.lanes):
                if end - begin > 30.0:
                    dashes = np.arange(begin + 5.0, end - 6.0, 6.5)
                    out.dashes(path, dashes, 3.0, side * i * LANE_WIDTH, 0.07, WHITE)


def _mark_crossing(out: _Layers, town: Town, index: int) -> None:
    """Zebra stripes over the four legs, stop lines, arrows."""
    node = town.nodes[index]
    for leg in range(4):
        road = town.roads[node.roads[leg]]
        for left in np.arange(-road.half - GUTTER + 0.4, road.half + GUTTER - 0.3, 0.95):
            out.add(town.leg_rectangle(index, leg, (NODE_REACH - 4.6, NODE_REACH - 1.5), (left, left + 0.5)), WHITE)
        out.add(town.leg_rectangle(index, leg, (NODE_REACH - 0.1, NODE_REACH + 0.4), (0.3, road.half - 0.1)), WHITE)
        for lane in town.at_leg(index, leg, incoming=True):
            turns = [c.turn for c in town.connectors.values() if c.before == lane.id]
            x, y, heading = lane.path.pose(lane.path.length - 9.0)
            for shape in _arrow([str(t) for t in turns]):
                out.add(rotated(shape, heading) + np.array([x, y]), WHITE)


def _arrow(turns: list[str]) -> list[Float64]:
    """A lane's arrow about its own origin, pointing to +x: convex quads [4, 2]."""
    shapes = [np.array([[-2.2, 0.09], [1.0, 0.09], [1.0, -0.09], [-2.2, -0.09]])]
    if "straight" in turns:
        shapes.append(np.array([[1.0, 0.42], [2.5, 0.0], [2.5, 0.0], [1.0, -0.42]]))
    for turn, sign in (("left", 1.0), ("right", -1.0)):
        if turn in turns:
            shapes.append(np.array([[-0.5, 0.0], [0.1, 0.0], [0.9, 0.65 * sign], [0.5, 0.75 * sign]]))
            shapes.append(np.array([[0.1, 0.75 * sign], [1.2, 0.4 * sign], [1.3, 1.25 * sign], [1.3, 1.25 * sign]]))
    return shapes
