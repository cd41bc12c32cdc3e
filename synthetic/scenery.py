"""What stands by the roads: parked cars and roadworks (annotated), houses, car parks, trees, lamps and signals (not).

All of it follows from the town's own seed, so that every log of a town sees the same street.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from shards_schema.poses import Float64
from synthetic.geometry import overlap, rectangle, rng_of
from synthetic.world import (
    GUTTER,
    NODE_REACH,
    SIDEWALK,
    STRIP,
    STRIP_MARGIN,
    Road,
    Town,
)  # fmt: skip

WALLS = (
    (176, 120, 96),
    (196, 176, 146),
    (150, 152, 156),
    (206, 198, 182),
    (136, 92, 78),
    (120, 132, 144),
    (184, 160, 120),
)
PAINTS = ((186, 40, 40), (40, 76, 140), (222, 224, 226), (58, 60, 66), (140, 144, 148), (70, 96, 80), (196, 168, 96))


@dataclass(frozen=True, slots=True)
class Actor:
    """A box that is annotated.

    Attributes:
        track: persists over the log.
        name: nuPlan's class.
        kind: what it looks like.
        x, y, heading: of its middle, on the ground, in the town's frame.
        size: length, width, height [m].
        vx, vy: m/s, town's axes.
        a: acceleration along the heading (brake lights).
        colour: RGB.
    """

    track: str
    name: str
    kind: str
    x: float
    y: float
    heading: float
    size: tuple[float, float, float]
    vx: float
    vy: float
    a: float
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Lot:
    """A plot by the road: a house, a car park or a small park."""

    kind: str
    x: float
    y: float
    heading: float
    length: float
    depth: float
    height: float
    colour: tuple[int, int, int]

    def ring(self) -> Float64:
        """[4, 2] its outline."""
        return rectangle(self.x, self.y, self.heading, self.length, self.depth)


@dataclass(frozen=True, slots=True)
class Upright:
    """A tree (`kind` "tree"), a street lamp ("lamp") or a signal ("signal": seen by those who come in by node, leg).

    `heading` is where a lamp's arm or a signal's face points; `reach` is the length of a signal's arm over the road.
    """

    kind: str
    x: float
    y: float
    heading: float
    height: float
    reach: float = 0.0
    node: int = -1
    leg: int = -1


@cache
def lots(town: Town) -> list[Lot]:
    """The plots along all roads, none on a road or on another."""
    rng = rng_of("lots", town.seed, town.location)
    grounds = [(r.path.xy[::3], r.half + STRIP + SIDEWALK) for r in town.roads]
    points = np.concatenate([g[0] for g in grounds])
    room = np.concatenate([np.full(len(g[0]), g[1]) for g in grounds])
    made: list[Lot] = []
    rings: list[Float64] = []
    for road in town.roads:
        for side in (-1.0, 1.0):
            s = 8.0
            while s < road.path.length - 8.0:
                length, depth = float(rng.uniform(12.0, 25.0)), float(rng.uniform(11.0, 17.0))
                setback = float(rng.uniform(0.8, 4.5))
                pose = road.path.pose(s + length / 2, side * (road.half + STRIP + SIDEWALK + setback + depth / 2))
                kind = str(rng.choice(["house", "car_park", "park"], p=[0.76, 0.1, 0.14]))
                height = 3.2 * float(rng.integers(2, 8)) + 1.0 if kind == "house" else 0.0
                colour = WALLS[int(rng.integers(len(WALLS)))]
                x, y, heading = (float(v) for v in pose)
                lot = Lot(kind, x, y, heading, length, depth, height, colour)
                ring = lot.ring()
                probe = np.concatenate((ring, (ring + np.roll(ring, 1, axis=0)) / 2))
                free = np.all(np.hypot(*(probe[:, None] - points[None]).transpose(2, 0, 1)) > room + 0.4)
                middles = np.array([n.xy for n in town.nodes])
                free = free and np.all(
                    np.hypot(*(probe[:, None] - middles[None]).transpose(2, 0, 1)) > NODE_REACH + 1.5
                )
                if free and not any(
                    np.hypot(o.x - x, o.y - y) < 32.0 and overlap(ring, other)
                    for o, other in zip(made, rings, strict=True)
                ):
                    made.append(lot)
                    rings.append(ring)
                    s += length + float(rng.uniform(0.5, 6.0))
                else:
                    s += 4.0
    return made


@cache
def fixtures(town: Town) -> list[Actor]:
    """Parked cars, cones, barriers and signs; they never move."""
    rng = rng_of("fixtures", town.seed, town.location)
    made: list[Actor] = []
    for index, road in enumerate(town.roads):
        for forward in (True, False):
            if road.strips[0 if forward else 1] == "parking":
                if rng.uniform() < 0.22:
                    made += _roadworks(index, road, forward, rng)
                else:
                    made += _parked(index, road, forward, rng)
    for index, lot in enumerate(lots(town)):
        if lot.kind == "car_park":
            made += _in_car_park(index, lot, rng)
    return made


def _still(
    track: str, name: str, kind: str, pose: Float64, size: tuple[float, float, float], colour: tuple[int, int, int]
) -> Actor:
    return Actor(track, name, kind, float(pose[0]), float(pose[1]), float(pose[2]), size, 0.0, 0.0, 0.0, colour)


def _car(track: str, pose: Float64, rng: np.random.Generator) -> Actor:
    size = (float(rng.uniform(4.1, 4.8)), float(rng.uniform(1.76, 1.88)), float(rng.uniform(1.42, 1.62)))
    return _still(track, "vehicle", "car", pose, size, PAINTS[int(rng.integers(len(PAINTS)))])


def _strip_places(road: Road, step: float, rng: np.random.Generator) -> Float64:
    s = np.arange(STRIP_MARGIN + 4.0, road.path.length - STRIP_MARGIN - 4.0, step)
    s = s + rng.uniform(0.0, 0.5, len(s))
    return s if road.crossing is None else s[np.abs(s - road.crossing) > 10.0]


def _parked(index: int, road: Road, forward: bool, rng: np.random.Generator) -> list[Actor]:
    side = -1.0 if forward else 1.0
    made: list[Actor] = []
    for n, s in enumerate(_strip_places(road, 6.3, rng)):
        if rng.uniform() < 0.62:
            pose = road.path.pose(s, side * (road.half + STRIP / 2 + 0.2)) + np.array(
                [0.0, 0.0, 0.0 if forward else np.pi]
            )
            made.append(_car(f"parked{index}.{forward:d}.{n}", pose, rng))
    return made


def _roadworks(index: int, road: Road, forward: bool, rng: np.random.Generator) -> list[Actor]:
    side, key = (-1.0 if forward else 1.0), f"{index}.{forward:d}"
    begin = STRIP_MARGIN + 6.0
    made: list[Actor] = []
    for n in range(8):
        pose = road.path.pose(begin + 3.0 * n, side * (road.half + 0.7))
        made.append(_still(f"cone{key}.{n}", "traffic_cone", "cone", pose, (0.42, 0.42, 0.78), (236, 98, 28)))
    for n in range(3):
        pose = road.path.pose(begin + 4.0 + 6.0 * n, side * (road.half + 1.7))
        made.append(_still(f"barrier{key}.{n}", "barrier", "barrier", pose, (1.9, 0.45, 1.0), (228, 120, 40)))
    turned = np.array([0.0, 0.0, np.pi / 2])
    sign = road.path.pose(begin - 3.0 if forward else begin + 27.0, side * (road.half + 1.5)) + turned
    made.append(_still(f"sign{key}", "czone_sign", "sign", sign, (0.9, 0.3, 1.7), (240, 140, 30)))
    bin_ = road.path.pose(begin + 24.0, side * (road.half + STRIP + 0.5))
    made.append(_still(f"bin{key}", "generic_object", "bin", bin_, (0.7, 0.7, 1.1), (70, 84, 76)))
    return made


def _in_car_park(index: int, lot: Lot, rng: np.random.Generator) -> list[Actor]:
    made: list[Actor] = []
    c, s = np.cos(lot.heading), np.sin(lot.heading)
    for n, u in enumerate(np.arange(-lot.length / 2 + 2.2, lot.length / 2 - 1.8, 2.9)):
        if rng.uniform() < 0.6:
            pose = np.array([lot.x + c * u, lot.y + s * u, lot.heading + np.pi / 2])
            made.append(_car(f"lot{index}.{n}", pose, rng))
    return made


@cache
def uprights(town: Town) -> list[Upright]:
    """Street trees, lamps, and the signals of all crossings."""
    rng = rng_of("uprights", town.seed, town.location)
    made: list[Upright] = []
    for road in town.roads:
        for side in (-1.0, 1.0):
            kerb = side * (road.half + STRIP + 0.55)
            for n, s in enumerate(np.arange(9.0, road.path.length - 7.0, 11.0)):
                if road.crossing is not None and abs(s - road.crossing) < 5.0:
                    continue
                x, y, heading = (float(v) for v in road.path.pose(s, kerb))
                if n % 3 == (1 if side > 0 else 2):
                    made.append(Upright("lamp", x, y, heading - side * np.pi / 2, 7.0, 2.0))
                elif rng.uniform() < 0.7:
                    made.append(Upright("tree", x, y, float(rng.uniform(0, 6.28)), float(rng.uniform(4.5, 7.5))))
    for lot in lots(town):
        if lot.kind == "park":
            c, s = np.cos(lot.heading), np.sin(lot.heading)
            for u in np.arange(-lot.length / 2 + 2.5, lot.length / 2 - 2.0, 4.5):
                w = float(rng.uniform(-lot.depth / 3, lot.depth / 3))
                x, y = lot.x + c * u - s * w, lot.y + s * u + c * w
                made.append(Upright("tree", float(x), float(y), float(rng.uniform(0, 6.28)), float(rng.uniform(5, 9))))
    for node in range(len(town.nodes)):
        made += _signals(town, node)
    return made


def _signals(town: Town, node: int) -> list[Upright]:
    """For each approach: a post by the stop line on the right, and a mast with an arm beyond the crossing."""
    made: list[Upright] = []
    for leg in range(4):
        xy, angle = town.leg_frame(node, leg)
        out = np.array([np.cos(angle), np.sin(angle)])
        left = np.array([-out[1], out[0]])  # seen outwards; who comes in has it to the right
        half = town.roads[town.nodes[node].roads[leg]].half
        near = xy + out * (NODE_REACH - 0.6) + left * (half + GUTTER + 0.8)
        made.append(Upright("signal", float(near[0]), float(near[1]), angle, 3.3, 0.0, node, leg))
        far = xy - out * (NODE_REACH - 1.5) + left * (half + GUTTER + 1.0)
        made.append(Upright("signal", float(far[0]), float(far[1]), angle, 5.9, half + 0.6, node, leg))
    return made
