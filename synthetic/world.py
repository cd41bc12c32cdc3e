"""The town: a road network that a seed decides, in a local frame (metres, origin in the middle, flat, z = 0).

Nine signalised four-way crossings on a bent grid, joined by curving roads with one or two lanes a direction; roads at
the rim lead out of town. Traffic keeps to the right in all four towns (in Singapore's too, which is not so in life).

    cross-section of a road:   | sidewalk | parking or bike strip | lanes ... || ... lanes | strip | sidewalk |

Names are NAVSIM's map terms: a *roadblock* is all lanes of one direction of a road; a *connector* joins two lanes
across a crossing; the connectors from one roadblock to another form a *roadblock connector*. Ids are unique across
everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np

from shards_schema.poses import Float64
from synthetic.geometry import Path, bezier, rng_of, rotated, strip, unit

LANE_WIDTH = 3.5
GUTTER = 0.5
"""Asphalt right of the outermost lane; part of its roadblock, as lanes reach to the kerb in nuPlan's maps."""
STRIP = 2.4
SIDEWALK = 3.2
NODE_REACH = 22.0
"""From the middle of a crossing to where its lanes end (the stop lines)."""
STRIP_MARGIN = 12.0
"""The strip along the lanes begins and ends this far from the ends of a road."""
LANE_SPEED = 10.5
TURN_SPEED = 8.0

Turn = Literal["left", "straight", "right"]
TURNS: dict[Turn, int] = {"left": 3, "straight": 2, "right": 1}
"""Who comes in by leg k leaves by leg (k + TURNS[turn]) % 4; legs are counted counter-clockwise."""

LOCATIONS: dict[str, tuple[str, int, float, float]] = {
    "us-nv-las-vegas-strip": ("9.15.1915", 32611, 664_430.0, 3_998_220.0),
    "us-ma-boston": ("9.12.1817", 32619, 331_270.0, 4_690_610.0),
    "us-pa-pittsburgh-hazelwood": ("9.17.1937", 32617, 587_640.0, 4_475_180.0),
    "sg-one-north": ("9.17.1964", 32648, 365_380.0, 143_920.0),
}
"""Location -> version of its map, EPSG code of its UTM zone, easting and northing of the town's origin [m]."""


@dataclass(frozen=True, eq=False)
class Lane:
    """A lane, or (with `turn`) a lane connector.

    Attributes:
        id: of the lane or connector.
        block: id of its roadblock or roadblock connector.
        path: centre line in driving direction.
        index: 0 is next to the middle of the road.
        bounds: ids of the left and the right boundary.
        road: index of its road; -1 for a connector.
        forward: whether it runs along the road's own direction.
        node, leg, turn: of a connector: its crossing, the leg it comes in by, and where it goes.
        before, after: of a connector: the lanes that it joins.
    """

    id: int
    block: int
    path: Path
    index: int
    bounds: tuple[int, int]
    speed: float
    road: int = -1
    forward: bool = True
    node: int = -1
    leg: int = -1
    turn: Turn | None = None
    before: int = -1
    after: int = -1


@dataclass(frozen=True, eq=False)
class Road:
    """A road from crossing `a` (node, leg) to `b`, or out of town (`b` None).

    Attributes:
        path: the middle line, from a to b.
        lanes: lanes a direction.
        strips: what the strip right of (forward, backward) traffic is for.
        crossing: arc length of a zebra crossing in the middle, or None.
    """

    a: tuple[int, int]
    b: tuple[int, int] | None
    path: Path
    lanes: int
    strips: tuple[str, str]
    crossing: float | None

    @property
    def half(self) -> float:
        """From the middle to the right edge of the outermost lane."""
        return self.lanes * LANE_WIDTH


@dataclass(frozen=True, eq=False)
class Node:
    """A crossing: position, angle of leg 0, road of each leg (counter-clockwise)."""

    xy: Float64
    angle: float
    roads: list[int]


@dataclass(eq=False)
class Town:
    """Everything that does not move, and who joins whom."""

    seed: int
    location: str
    nodes: list[Node] = field(default_factory=list)
    roads: list[Road] = field(default_factory=list)
    lanes: dict[int, Lane] = field(default_factory=dict)
    connectors: dict[int, Lane] = field(default_factory=dict)

    @property
    def origin(self) -> Float64:
        """[2] UTM easting and northing of the local origin."""
        return np.array(LOCATIONS[self.location][2:])

    def lanes_of(self, road: int, forward: bool) -> list[Lane]:
        """The lanes of one direction, from the middle of the road outwards."""
        return [self.lanes[_lane_id(road, forward, i)] for i in range(self.roads[road].lanes)]

    def at_leg(self, node: int, leg: int, incoming: bool) -> list[Lane]:
        """The lanes that come in (or go out) by a leg of a crossing."""
        road = self.nodes[node].roads[leg]
        return self.lanes_of(road, (self.roads[road].a != (node, leg)) == incoming)

    def end_node(self, lane: Lane) -> tuple[int, int] | None:
        """(node, leg) that a lane leads to; None out of town."""
        road = self.roads[lane.road]
        return road.b if lane.forward else road.a

    def connector(self, lane: Lane, turn: Turn) -> Lane | None:
        """The connector that goes on from a lane; None where that lane has no such turn."""
        found = (c for c in self.connectors.values() if c.before == lane.id and c.turn == turn)
        return next(found, None)

    def blocks(self) -> dict[int, list[Lane]]:
        """Roadblocks: id -> lanes, left to right."""
        return _grouped(self.lanes)

    def connector_blocks(self) -> dict[int, list[Lane]]:
        """Roadblock connectors: id -> connectors, left to right."""
        return _grouped(self.connectors)

    def node_ring(self, node: int, margin: float, rounded: bool = True) -> Float64:
        """[N, 2] outline of a crossing `margin` outside its lanes; star-shaped; rounded corners follow turning lanes.

        It reaches 10 cm into the roads: their ends are cut to a degree only, and a gap would be off the drivable area.
        """
        n = self.nodes[node]
        half = [self.roads[r].half + margin for r in n.roads]
        arc = np.linspace(0.0, np.pi / 2, 13)
        ring: list[Float64] = []
        for k in range(4):
            here, there = NODE_REACH - half[k], NODE_REACH - half[(k + 1) % 4]
            curve = np.stack((-there * np.sin(arc), -here * np.cos(arc)), axis=-1)
            curve = np.concatenate(([[0.1, -here]], curve, [[-there, 0.1]]))
            points = curve if rounded else np.array([[0.0, -here], [-there, -here], [-there, 0.0]])
            ring.append(rotated(points + NODE_REACH, n.angle + k * np.pi / 2) + n.xy)
        return np.concatenate(ring)

    def leg_frame(self, node: int, leg: int) -> tuple[Float64, float]:
        """Middle of a crossing, and the direction [rad] of a leg out of it."""
        n = self.nodes[node]
        return n.xy, n.angle + leg * np.pi / 2

    def leg_rectangle(self, node: int, leg: int, reach: tuple[float, float], sides: tuple[float, float]) -> Float64:
        """[4, 2] rectangle across a leg: `reach` outwards from the middle, `sides` to the left (seen outwards)."""
        xy, angle = self.leg_frame(node, leg)
        (r0, r1), (s0, s1) = reach, sides
        return rotated([[r0, s0], [r1, s0], [r1, s1], [r0, s1]], angle) + xy


def block_ring(lanes: list[Lane], gutter: float = 0.0) -> Float64:
    """[N, 2] outline of neighbouring lanes (or connectors), given left to right, with `gutter` to the right of them."""
    left, right = lanes[0].path.offset(LANE_WIDTH / 2), lanes[-1].path.offset(-LANE_WIDTH / 2 - gutter)
    return np.concatenate((left.xy, right.xy[::-1]))


def crossing_ring(road: Road, half_width: float = 1.8) -> Float64:
    """[N, 2] the zebra crossing in the middle of a road, kerb to kerb."""
    assert road.crossing is not None
    piece = Path(road.path.point(np.array([road.crossing - half_width, road.crossing + half_width])))
    return strip(piece, road.half + GUTTER, -road.half - GUTTER)


def _grouped(lanes: dict[int, Lane]) -> dict[int, list[Lane]]:
    groups: dict[int, list[Lane]] = {}
    for lane in lanes.values():
        groups.setdefault(lane.block, []).append(lane)
    return {k: sorted(v, key=lambda lane: lane.index) for k, v in groups.items()}


def _block_id(road: int, forward: bool) -> int:
    return 20_000 + road * 10 + (0 if forward else 1)


def _lane_id(road: int, forward: bool, index: int) -> int:
    return 10_000 + road * 10 + (0 if forward else 5) + index


@cache
def town(seed: int, location: str) -> Town:
    """The town of a location: the same object for the same arguments; treat it as read-only."""
    rng = rng_of(seed, "town", location)
    made = Town(seed, location)
    spacing = [np.concatenate(([0.0], np.cumsum(rng.uniform(142.0, 160.0, 2)))) for _ in range(2)]
    xs, ys = (s - s.mean() for s in spacing)
    turn = float(rng.uniform(-0.6, 0.6))
    row_lanes, column_lanes = rng.permutation([2, 2, 1]), rng.permutation([2, 1, 1])
    for j in range(3):
        for i in range(3):
            xy = np.array([xs[i], ys[j]]) + rng.uniform(-7.0, 7.0, 2)
            made.nodes.append(Node(rotated(xy, turn), turn + float(rng.uniform(-0.09, 0.09)), [-1] * 4))
    for j in range(3):
        for i in range(3):
            for leg, (di, dj) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
                lanes = int(row_lanes[j] if leg % 2 == 0 else column_lanes[i])
                inside = 0 <= i + di < 3 and 0 <= j + dj < 3
                if inside and leg >= 2:
                    continue  # made from the other end
                _add_road(made, 3 * j + i, leg, 3 * (j + dj) + i + di if inside else None, lanes, rng)
    for index, road in enumerate(made.roads):
        for forward in (True, False):
            middle = road.path if forward else road.path.reversed()
            for i in range(road.lanes):
                bound = 70_000 + index * 20 + (0 if forward else 10) + i
                lane = Lane(
                    id=_lane_id(index, forward, i),
                    block=_block_id(index, forward),
                    path=middle.offset(-(i + 0.5) * LANE_WIDTH),
                    index=i,
                    bounds=(bound, bound + 1),
                    speed=LANE_SPEED,
                    road=index,
                    forward=forward,
                )
                made.lanes[lane.id] = lane
    for node in range(9):
        for leg in range(4):
            _add_connectors(made, node, leg)
    return made


def _add_road(made: Town, node: int, leg: int, other: int | None, lanes: int, rng: np.random.Generator) -> None:
    xy, angle = made.leg_frame(node, leg)
    start, along = xy + NODE_REACH * unit(angle), unit(angle)
    kinds = ("parking", "parking", "bike")
    strips = (str(rng.choice(kinds)), str(rng.choice(kinds)))
    index = len(made.roads)
    made.nodes[node].roads[leg] = index
    if other is None:
        bend = float(rng.uniform(-0.35, 0.35))
        end = start + 190.0 * unit(angle + bend / 2)
        path = Path(bezier(start, along, end, unit(angle + bend), 75.0))
        made.roads.append(Road((node, leg), None, path.resampled(1.0), lanes, strips, None))
        return
    back = (leg + 2) % 4
    xy2, angle2 = made.leg_frame(other, back)
    end = xy2 + NODE_REACH * unit(angle2)
    path = Path(bezier(start, along, end, -unit(angle2), 0.4 * float(np.hypot(*(end - start))))).resampled(1.0)
    made.nodes[other].roads[back] = index
    made.roads.append(Road((node, leg), (other, back), path, lanes, strips, path.length / 2))


def _add_connectors(made: Town, node: int, leg: int) -> None:
    """Straight on from every lane; left from the innermost, right from the outermost."""
    incoming = made.at_leg(node, leg, incoming=True)
    for turn, step in TURNS.items():
        outgoing = made.at_leg(node, (leg + step) % 4, incoming=False)
        if turn == "straight":
            pairs = list(zip(incoming, outgoing, strict=True))
        else:
            pairs = [(incoming[0], outgoing[0]) if turn == "left" else (incoming[-1], outgoing[-1])]
        block = 40_000 + node * 100 + leg * 10 + step
        for index, (a, b) in enumerate(pairs):
            number = node * 100 + leg * 20 + step * 4 + index
            bound = 80_000 + number * 2
            connector = Lane(
                id=30_000 + number,
                block=block,
                path=_connecting(a, b, turn),
                index=index,
                bounds=(bound, bound + 1),
                speed=LANE_SPEED if turn == "straight" else TURN_SPEED,
                node=node,
                leg=leg,
                turn=turn,
                before=a.id,
                after=b.id,
            )
            made.connectors[connector.id] = connector


def _connecting(a: Lane, b: Lane, turn: Turn) -> Path:
    """A curve from the end of `a` to the beginning of `b`: near to a quarter of an ellipse for a turn."""
    p0, p1 = a.path.xy[-1], b.path.xy[0]
    d0, d1 = unit(a.path.heading[-1]), unit(b.path.heading[0])
    span = float(np.hypot(*(p1 - p0)))
    handle = span / 3.0 if turn == "straight" else 0.5523 * span / np.sqrt(2.0)
    return Path(bezier(p0, d0, p1, d1, handle)).resampled(1.0)
