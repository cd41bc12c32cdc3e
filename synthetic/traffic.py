"""Vehicles on paths: who is ahead of whom, which stop line is closed, and how hard each driver brakes.

Longitudinal motion is the Intelligent Driver Model (Treiber, Hennecke, Helbing 2000) with a limit on jerk, slower in
bends (lateral acceleration) and with closed gates (red lights, zebra crossings in use) as standing leaders. Laterally
every vehicle keeps to its smooth path. The simulation runs at 20 Hz, nuPlan's sweep rate; `Motion` interpolates to
any time.

Each approach of a crossing has its own green phase, so paths of different approaches never cross at the same time.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from shards_schema.poses import Float64
from synthetic.geometry import Path
from synthetic.world import Town

DT = 0.05
ACCEL, BRAKE, HEADWAY, MIN_GAP, JERK = 1.5, 2.0, 1.4, 2.5, 2.5
LATERAL = 1.4
"""Lateral acceleration [m/s^2] that drivers allow themselves in a bend."""
GREEN, YELLOW, ALL_RED = 18.0, 3.0, 2.5
PHASE = GREEN + YELLOW + ALL_RED
HORIZON = 70.0

LightState = Literal["green", "yellow", "red"]
Gate = tuple[float, tuple[str, int, int]]
"""Arc length where a front bumper has to stop; what may close it: ("light", node, leg) or ("zebra", road, forward)."""
Span = tuple[int, float, float]
"""A lane on a path: lane id, arc length on the path of its beginning and of its end."""


class Lights:
    """The signals of a town: a cycle of four phases a crossing, each green for one leg.

    Args:
        starts: node -> (leg, time [s] at which this leg turns green).
    """

    def __init__(self, starts: dict[int, tuple[int, float]]) -> None:
        self._starts = starts

    def state(self, node: int, leg: int, t: float) -> LightState:
        """What the drivers who come in by `leg` see at time `t`."""
        first, begin = self._starts[node]
        into = (t - begin - ((leg - first) % 4) * PHASE) % (4 * PHASE)
        return "green" if into < GREEN else "yellow" if into < GREEN + YELLOW else "red"


@dataclass(eq=False)
class Vehicle:
    """One driver's plan.

    Attributes:
        track: a name that is unique in the log.
        path: of the reference point, which is `front` behind the front bumper and `rear` before the rear one.
        spans, gates: what lies along the path.
        s, v: at time 0.
        wish: desired speed.
        size: length, width, height.
    """

    track: str
    path: Path
    spans: list[Span]
    gates: list[Gate]
    s: float
    v: float
    wish: float
    size: tuple[float, float, float]
    front: float
    rear: float
    kind: str = "car"
    colour: tuple[int, int, int] = (90, 90, 100)

    @cached_property
    def ceiling(self) -> Float64:
        """[N] highest comfortable speed at the path's points: bends, and braking for the bends to come."""
        speed = np.sqrt(LATERAL / np.maximum(np.abs(self.path.curvature), 1e-3))
        for i in range(len(speed) - 2, -1, -1):
            speed[i] = min(speed[i], np.sqrt(speed[i + 1] ** 2 + 2 * 1.3 * (self.path.s[i + 1] - self.path.s[i])))
        return np.asarray(speed)


@dataclass(frozen=True, eq=False)
class Motion:
    """What a vehicle did: arrays [T] at 20 Hz of arc length, speed, acceleration; NaN after it has left its path."""

    vehicle: Vehicle
    s: Float64
    v: Float64
    a: Float64

    def at(self, t: float) -> tuple[float, float, float] | None:
        """Arc length, speed, acceleration at time `t` [s]; cubic between samples. None when it is gone."""
        i = min(max(int(t / DT), 0), len(self.s) - 2)
        u = t / DT - i
        s0, s1, v0, v1 = self.s[i], self.s[i + 1], self.v[i] * DT, self.v[i + 1] * DT
        if np.isnan(s1):
            return None
        c = 3 * (s1 - s0) - 2 * v0 - v1
        d = v0 + v1 - 2 * (s1 - s0)
        a = self.a[i] + (self.a[i + 1] - self.a[i]) * u
        return float(s0 + u * (v0 + u * (c + u * d))), float((v0 + u * (2 * c + 3 * u * d)) / DT), float(a)


@dataclass
class Zebras:
    """When zebra crossings are taken: (road, direction of traffic) -> intervals [s]."""

    taken: dict[tuple[int, int], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def closed(self, road: int, forward: int, t: float) -> bool:
        """Whether somebody walks, or is about to, on that half of the road."""
        return any(t0 <= t <= t1 for t0, t1 in self.taken.get((road, forward), ()))


def simulate(
    town: Town, vehicles: list[Vehicle], lights: Lights | None, zebras: Zebras, duration: float
) -> list[Motion]:
    """All vehicles from 0 to `duration` [s]; with `lights` None, every light is green."""
    steps = int(np.ceil(duration / DT)) + 2
    n = len(vehicles)
    out = np.full((3, n, steps), np.nan)
    s, v, a = ([float(x) for x in column] for column in ([u.s for u in vehicles], [u.v for u in vehicles], [0.0] * n))
    present = set(range(n))
    siblings: dict[int, list[int]] = defaultdict(list)
    for _, group in itertools.groupby(sorted(town.connectors.values(), key=lambda c: c.before), lambda c: c.before):
        ids = [c.id for c in group]
        for one in ids:
            siblings[one] = [other for other in ids if other != one]
    for step in range(steps):
        t = step * DT
        for i in present:
            out[:, i, step] = s[i], v[i], a[i]
        table = _occupancy(vehicles, present, s, siblings)
        for i in list(present):
            car = vehicles[i]
            gap, leader_v = _leader(car, i, s[i], v, table)
            for where, key in car.gates:
                d = where - s[i] - car.front
                if -0.3 < d < min(gap, HORIZON) and _closed(key, t, d, v[i], lights, zebras):
                    gap, leader_v = d + MIN_GAP - 0.5, 0.0
            want = _acceleration(car, s[i], v[i], gap, leader_v)
            # Hard braking may build up faster than comfort allows.
            jerk = JERK if want > -BRAKE - 1.0 else 4 * JERK
            a[i] += min(max(want - a[i], -jerk * DT), jerk * DT)
            after = v[i] + a[i] * DT
            if after < 0.02 and want < 0.05:
                after, a[i] = max(0.0, after - 0.02), min(max(a[i], -v[i] / DT), 0.0)
            after = max(after, 0.0)
            s[i] += 0.5 * (v[i] + after) * DT
            v[i] = after
            if s[i] >= car.path.length - 1.0:
                present.discard(i)
    return [Motion(vehicles[i], *out[:, i]) for i in range(n)]


def _occupancy(
    vehicles: list[Vehicle], present: set[int], s: list[float], siblings: dict[int, list[int]]
) -> dict[int, list[tuple[float, float, int]]]:
    """Lane id -> (arc length of the reference point, of the tail, both on that lane; vehicle)."""
    table: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
    for i in present:
        car, here = vehicles[i], s[i]
        for lane, s0, s1 in car.spans:
            if s0 - 4.0 <= here and here - car.rear < s1 and s0 < here + car.front:
                where = here - s0
                table[lane].append((where, where - car.rear, i))
                if where - car.rear < 14.0:  # turning traffic still stands in the way of those who go on
                    for other in siblings.get(lane, ()):
                        table[other].append((where, where - car.rear, i))
    return table


def _leader(
    car: Vehicle, me: int, here: float, v: list[float], table: dict[int, list[tuple[float, float, int]]]
) -> tuple[float, float]:
    """Bumper-to-bumper gap and speed of whoever is next ahead on my lanes."""
    gap, speed = 1e9, 0.0
    for lane, s0, s1 in car.spans:
        if s1 < here or s0 > here + HORIZON:
            continue
        for where, tail, other in table.get(lane, ()):
            if other != me and where + s0 > here + 0.1:
                d = tail + s0 - here - car.front
                if d < gap:
                    gap, speed = d, v[other]
    return gap, speed


def _closed(
    key: tuple[str, int, int], t: float, distance: float, v: float, lights: Lights | None, zebras: Zebras
) -> bool:
    what, where, which = key
    if distance < v * v / (2 * 3.0) - 0.5:
        return False  # too late to stop: go on
    if what == "zebra":
        return zebras.closed(where, which, t)
    return lights is not None and lights.state(where, which, t) != "green"


def _acceleration(car: Vehicle, s: float, v: float, gap: float, leader_v: float) -> float:
    ceiling = float(np.interp(s + 0.6 * v, car.path.s, car.ceiling))
    target = min(car.wish, ceiling)
    free = min(max((target - v) / 1.0, -2.5), ACCEL)
    if gap > HORIZON:
        return free
    wanted = MIN_GAP + max(0.0, v * HEADWAY + v * (v - leader_v) / (2 * np.sqrt(ACCEL * BRAKE)))
    follow = ACCEL * (1.0 - (v / max(car.wish, 0.1)) ** 4 - (wanted / max(gap, 0.3)) ** 2)
    return max(min(free, float(follow)), -6.0)
