"""People on foot and on bicycles: polylines and timetables, so their place at any time needs no simulation.

Those who cross a road at its zebra crossing close that crossing for the traffic on the half that they are about to
walk on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards_schema.poses import Float64
from synthetic.geometry import Path
from synthetic.scenery import Actor
from synthetic.traffic import Zebras
from synthetic.world import SIDEWALK, STRIP, STRIP_MARGIN, Road, Town

COATS = ((176, 48, 52), (40, 70, 120), (232, 190, 60), (60, 110, 70), (210, 210, 205), (50, 48, 56), (200, 110, 50))
PACE = 1.35


@dataclass(frozen=True, eq=False)
class Walk:
    """Somebody's way: at `times` [K] they are at arc length `s` [K] of `path`; they stand before and after."""

    track: str
    kind: str
    path: Path
    times: Float64
    s: Float64
    size: tuple[float, float, float]
    colour: tuple[int, int, int]

    def at(self, t: float) -> Actor:
        """Where they are at time `t` [s]."""
        s = float(np.interp(t, self.times, self.s))
        v = float(np.interp(t + 0.05, self.times, self.s) - np.interp(t - 0.05, self.times, self.s)) / 0.1
        x, y, heading = (float(q) for q in self.path.pose(s))
        name = "bicycle" if self.kind == "cyclist" else "pedestrian"
        vx, vy = v * np.cos(heading), v * np.sin(heading)
        return Actor(self.track, name, self.kind, x, y, heading, self.size, float(vx), float(vy), 0.0, self.colour)


def _pedestrian(track: str, path: Path, times: Float64, s: Float64, rng: np.random.Generator) -> Walk:
    size = (float(rng.uniform(0.55, 0.75)), float(rng.uniform(0.55, 0.7)), float(rng.uniform(1.6, 1.88)))
    return Walk(track, "pedestrian", path, times, s, size, COATS[int(rng.integers(len(COATS)))])


def _crossing_path(road: Road, right_first: bool, left_after: bool, along: float) -> Path:
    """Kerb to kerb over a zebra crossing, then on along the sidewalk."""
    assert road.crossing is not None
    edge = (road.half + STRIP + 1.2) * (-1.0 if right_first else 1.0)
    onward = 18.0 if left_after else -18.0
    s = np.array([road.crossing + along] * 2 + [road.crossing + along + onward])
    return Path(road.path.point(s, np.array([edge, -edge, -edge]))).smoothed(0.6)


def crossings(
    made: Town,
    zebras: Zebras,
    ego_road: int,
    ego_forward: bool,
    duration: float,
    density: float,
    rng: np.random.Generator,
) -> list[Walk]:
    """People who cross: two of them right before the ego on `ego_road` (-1: nowhere), others by chance."""
    walks: list[Walk] = []
    for index, road in enumerate(made.roads):
        if road.crossing is None or (index != ego_road and rng.uniform() > 0.45 * density):
            continue
        right_first = ego_forward if index == ego_road else bool(rng.integers(2))
        begin = 1.6 if index == ego_road else float(rng.uniform(0.0, max(1.0, duration - 6.0)))
        for number in range(2 if index == ego_road else int(rng.integers(1, 3))):
            path = _crossing_path(road, right_first, bool(rng.integers(2)), float(rng.uniform(-1.1, 1.1)))
            start = begin + 1.3 * number
            pace = PACE * float(rng.uniform(0.92, 1.08))
            times, s = np.array([start, start + path.length / pace]), np.array([0.0, path.length])
            walk = _pedestrian(f"cross{index}.{number}", path, times, s, rng)
            walks.append(walk)
            _close(zebras, index, road, walk)
    return walks


def _close(zebras: Zebras, index: int, road: Road, walk: Walk) -> None:
    """Take the crossing from 2.5 s before the walker enters a half of the road until it is clear again."""
    t = np.arange(walk.times[0] - 0.1, walk.times[1], 0.1)
    xy = walk.path.point(np.interp(t, walk.times, walk.s))
    assert road.crossing is not None
    middle = road.path.pose(road.crossing)
    side = (xy[:, 1] - middle[1]) * np.cos(middle[2]) - (xy[:, 0] - middle[0]) * np.sin(middle[2])
    for forward, low, high in ((1, -road.half - 1.2, 1.2), (0, -1.2, road.half + 1.2)):
        on = t[(side > low) & (side < high)]
        if len(on):
            zebras.taken[(index, forward)].append((float(on[0]) - 2.5, float(on[-1])))


def walkers(made: Town, density: float, rng: np.random.Generator) -> list[Walk]:
    """People on the sidewalks, in both directions, some of them standing."""
    walks: list[Walk] = []
    for index, road in enumerate(made.roads):
        for side in (-1.0, 1.0):
            for number in range(int(rng.poisson(density * road.path.length / 42.0))):
                left = side * (road.half + STRIP + float(rng.uniform(0.7, SIDEWALK - 0.7)))
                path = road.path.offset(left)
                path = path if rng.integers(2) else path.reversed()
                s0 = float(rng.uniform(6.0, path.length - 6.0))
                pace = 0.0 if rng.uniform() < 0.15 else float(rng.uniform(0.9, 1.6))
                far = max(path.length - 6.0, s0)
                times = np.array([-1.0, (far - s0) / pace if pace else 0.0])
                s = np.array([s0 - pace, far if pace else s0])
                walks.append(_pedestrian(f"walk{index}.{side:+.0f}.{number}", path, times, s, rng))
    return walks


def cyclists(made: Town, density: float, rng: np.random.Generator) -> list[Walk]:
    """At most one cyclist a bicycle strip, who stops at its end."""
    walks: list[Walk] = []
    for index, road in enumerate(made.roads):
        for forward in (True, False):
            if road.strips[0 if forward else 1] != "bike" or rng.uniform() > 0.7 * density:
                continue
            path = (road.path if forward else road.path.reversed()).offset(-(road.half + STRIP / 2 + 0.1))
            far = path.length - STRIP_MARGIN - 2.0
            s0, pace = float(rng.uniform(STRIP_MARGIN + 2.0, far - 20.0)), float(rng.uniform(3.2, 5.2))
            times, s = np.array([0.0, (far - s0) / pace]), np.array([s0, far])
            colour = COATS[int(rng.integers(len(COATS)))]
            walks.append(Walk(f"bike{index}.{forward:d}", "cyclist", path, times, s, (1.8, 0.62, 1.75), colour))
    return walks
