"""One log's story, continuous in time: who is where at any second of it, and what the lights show.

A `Drive` is a pure function of (seed, location, manoeuvre, duration, traffic). `ego(t)`, `actors(t)` and `lights`
answer for any 0 <= t <= duration in the town's local frame; the writers (2 Hz pickles, 20 Hz .db) only sample it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from shards_schema.poses import EGO_FRONT, EGO_REAR, EGO_WIDTH, Float64, to_local
from synthetic.geometry import Path, joined, overlap, rectangle, rng_of, unit
from synthetic.people import Walk, crossings, cyclists, walkers
from synthetic.scenery import Actor, fixtures
from synthetic.traffic import PHASE, Gate, Lights, Motion, Span, Vehicle, Zebras, simulate
from synthetic.world import LANE_WIDTH, Lane, Town, Turn, town

Manoeuvre = Literal[
    "straight", "left_turn", "right_turn", "red_light", "follow", "pedestrian", "lane_change", "no_route"
]

EGO_SIZE = (EGO_FRONT + EGO_REAR, EGO_WIDTH, 1.777)
"""NAVSIM's Pacifica: length, width, height [m]."""
EGO_SPEED = 9.8
LOOK_AHEAD, SIDEWAYS = 20.0, 2.0
CAR_COLOURS = (
    (178, 32, 36), (28, 62, 128), (214, 216, 218), (42, 44, 48),
    (128, 132, 138), (226, 184, 44), (34, 96, 74), (120, 70, 40),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EgoState:
    """The rear axle on the ground, in the town's frame; velocity and acceleration along and across the car.

    `yaw` is the usual ZYX yaw: the rotation ego -> local is Rz(yaw) Ry(pitch) Rx(roll).
    """

    x: float
    y: float
    yaw: float
    pitch: float
    roll: float
    v: float
    a: float
    a_left: float
    yaw_rate: float


@dataclass(frozen=True, eq=False)
class _Route:
    lanes: list[Lane]
    path: Path
    spans: list[Span]
    gates: list[Gate]


class Drive:
    """The story of one log.

    Args:
        seed: of the towns; `key` distinguishes the log.
        location: one of `world.LOCATIONS`.
        duration: seconds.
        traffic: density, 1 is usual.
    """

    def __init__(
        self, seed: int, key: str, location: str, manoeuvre: Manoeuvre, duration: float, traffic: float = 1.0
    ) -> None:
        self.town: Town = town(seed, location)
        self.manoeuvre: Manoeuvre = manoeuvre
        self.duration = duration
        rng = rng_of(seed, key, manoeuvre)
        first, s0 = _start(self.town, manoeuvre, rng)
        self.route = _plan(self.town, first, manoeuvre, s0, 70.0 + duration * EGO_SPEED, rng)
        v0 = float(rng.uniform(7.2, 8.6))
        wish = 8.5 if manoeuvre == "follow" else EGO_SPEED
        r = self.route
        ego = Vehicle("ego", r.path, r.spans, r.gates, s0, v0, wish, EGO_SIZE, EGO_FRONT, EGO_REAR)
        self.zebras = Zebras()
        ego_road = first.road if manoeuvre == "pedestrian" else -1
        self.walks: list[Walk] = crossings(self.town, self.zebras, ego_road, first.forward, duration, traffic, rng)
        self.walks += walkers(self.town, traffic, rng) + cyclists(self.town, traffic, rng)
        company = _company(self.town, self.route, manoeuvre, s0, v0, rng)
        self.lights = self._phases([ego, *company], rng)
        others = company + _traffic(self.town, self.route, manoeuvre, s0, traffic, duration, rng)
        self.motions = self._undisturbed([ego, *others])
        # NuPlan's routes name the blocks that a log touches and those on to its goal; ours run to the path's end.
        self.roadblock_ids = (
            [] if manoeuvre == "no_route" else list(dict.fromkeys(str(x.block) for x in self.route.lanes))
        )

    def ego(self, t: float) -> EgoState:
        """The ego at time `t` [s]."""
        motion = self.motions[0]
        state = motion.at(t)
        assert state is not None, "the ego left its path"
        s, v, a = state
        path = motion.vehicle.path
        x, y, yaw = (float(q) for q in path.pose(s))
        k = float(np.interp(s, path.s, path.curvature))
        # The body squats and leans a little about a constant tilt: enough for NAVSIM's heading formula to matter.
        pitch, roll = 0.004 - 0.0025 * a, 0.003 + 0.002 * v * v * k
        return EgoState(x, y, yaw, pitch, roll, v, a, v * v * k, v * k)

    def actors(self, t: float) -> list[Actor]:
        """Everybody and everything that is annotated, at time `t` [s], but for the ego."""
        moving: list[Actor] = []
        for motion in self.motions[1:]:
            state = motion.at(t)
            if state is not None:
                s, v, a = state
                car = motion.vehicle
                x, y, yaw = (float(q) for q in car.path.pose(s))
                moving.append(
                    Actor(
                        car.track,
                        "vehicle",
                        car.kind,
                        x,
                        y,
                        yaw,
                        car.size,
                        v * np.cos(yaw),
                        v * np.sin(yaw),
                        a,
                        car.colour,
                    )
                )
        return moving + [walk.at(t) for walk in self.walks] + fixtures(self.town)

    def command(self, t: float) -> int:
        """Place in (left, straight, right, unknown): OpenScene's rule: 20 m on along the route."""
        if not self.roadblock_ids:
            return 3
        s = self.motions[0].at(t)
        assert s is not None
        here = self.route.path.pose(s[0])
        line = self._centerline(here)
        at = line.project(here[:2])
        y = to_local(line.pose(min(at + LOOK_AHEAD, line.length)), line.pose(at))[1]
        return 0 if y >= SIDEWAYS else 2 if y <= -SIDEWAYS else 1

    def _centerline(self, here: Float64) -> Path:
        """From the on-route lane that the ego is on to the last roadblock, over on-route lanes only."""
        known = {**self.town.lanes, **self.town.connectors}
        blocks = list(dict.fromkeys(lane.block for lane in self.route.lanes))
        on_route = {i: lane for i, lane in known.items() if lane.block in blocks}

        def away(lane: Lane) -> float:
            at = lane.path.pose(lane.path.project(here[:2]))
            turned = abs(np.arctan2(np.sin(at[2] - here[2]), np.cos(at[2] - here[2])))
            return float(np.hypot(*(at[:2] - here[:2]))) + (2.0 * turned if turned < np.pi / 4 else 1e6)

        start = min(on_route.values(), key=away)
        queue, seen = [[start]], {start.id}
        best = queue[0]
        while queue:
            chain = queue.pop(0)
            if blocks.index(chain[-1].block) > blocks.index(best[-1].block):
                best = chain
            last = chain[-1]
            ahead = [last.after] if last.turn else [c.id for c in on_route.values() if c.before == last.id]
            for number in ahead:
                if number in on_route and number not in seen:
                    seen.add(number)
                    queue.append([*chain, on_route[number]])
        return joined([lane.path for lane in best])

    def _phases(self, cars: list[Vehicle], rng: np.random.Generator) -> Lights:
        """Lights that are green when the ego comes, but for the one that it is to wait at."""
        starts = {i: (int(rng.integers(4)), float(rng.uniform(0, 4 * PHASE))) for i in range(len(self.town.nodes))}
        due = [key for _, key in cars[0].gates if key[0] == "light"]
        for count, (_, node, leg) in enumerate(due):
            # Known so far: the crossings before this one. Those after it do not matter yet.
            ego = replace(cars[0], gates=[g for g in cars[0].gates if g[1][0] == "zebra" or g[1] in due[:count]])
            motion = simulate(self.town, [ego, *cars[1:]], Lights(starts), self.zebras, self.duration)[0]
            line = next(where for where, key in cars[0].gates if key == ("light", node, leg)) - EGO_FRONT
            arrival = float(np.argmax(np.append(motion.s, np.inf) >= line)) * 0.05
            wait = count == 0 and self.manoeuvre == "red_light"
            starts[node] = (leg, arrival + 4.5 if wait else arrival - 10.0)
        return Lights(starts)

    def _undisturbed(self, cars: list[Vehicle]) -> list[Motion]:
        """Simulate; take whoever bumps into somebody out of the story, and tell it again until nobody does."""
        while True:
            motions = simulate(self.town, cars, self.lights, self.zebras, self.duration)
            guilty = _bumped(motions, self.walks, self.duration)
            if not guilty:
                return motions
            cars = [car for car in cars if car.track not in guilty]
            self.walks = [walk for walk in self.walks if walk.track not in guilty]


def _start(made: Town, manoeuvre: Manoeuvre, rng: np.random.Generator) -> tuple[Lane, float]:
    """A lane between two crossings that the manoeuvre can begin on, and where on it."""
    lanes = [x for x in made.lanes.values() if made.roads[x.road].b is not None]
    if manoeuvre == "lane_change":
        lanes = [x for x in lanes if made.roads[x.road].lanes == 2]
    if manoeuvre in ("left_turn", "right_turn"):
        lanes = [x for x in lanes if made.connector(x, "left" if manoeuvre == "left_turn" else "right")]
    lane = lanes[int(rng.integers(len(lanes)))]
    if manoeuvre in ("pedestrian", "lane_change"):
        return lane, 4.0
    return lane, lane.path.length - float(rng.uniform(55.0, 68.0))


def _plan(
    made: Town, first: Lane, manoeuvre: Manoeuvre, s0: float, need: float, rng: np.random.Generator, smooth: float = 2.5
) -> _Route:
    """Lanes from `first` on, and the smooth path along them; the turn of the manoeuvre comes first."""
    turns: dict[str, Turn] = {"left_turn": "left", "right_turn": "right"}
    lanes, lane, length = [first], first, first.path.length - s0
    if manoeuvre == "lane_change":
        lane = next(x for x in made.lanes_of(first.road, first.forward) if x is not first)
        lanes.append(lane)
    turn: Turn | None = turns.get(manoeuvre, "straight")
    while made.end_node(lane) is not None and length < need + 60.0:
        connector = made.connector(lane, turn or _onwards(made, lane, need + 60.0 - length, rng))
        assert connector is not None
        lane, turn = made.lanes[connector.after], None
        lanes += [connector, lane]
        length += connector.path.length + lane.path.length
    if manoeuvre == "lane_change":
        centre, middle = _changing(lanes[0], lanes[1], s0 + 16.0), lanes[2:]
        path = joined([centre, *[x.path for x in middle]]).smoothed(smooth)
    else:
        path = joined([x.path for x in lanes]).smoothed(smooth)
    spans, gates = _along(made, path, lanes)
    return _Route(lanes, path, spans, gates)


def _along(made: Town, path: Path, lanes: list[Lane]) -> tuple[list[Span], list[Gate]]:
    """Where the lanes lie on a path, and the places on it where one may have to stop."""
    spans: list[Span] = []
    gates: dict[tuple[str, int, int], float] = {}
    for i, lane in enumerate(lanes):
        begin, end = (path.project(lane.path.xy[j]) for j in (0, -1))
        spans.append((lane.id, begin, end))
        if lane.turn is None:
            road, node = made.roads[lane.road], made.end_node(lane)
            if road.crossing is not None:
                gates["zebra", lane.road, int(lane.forward)] = path.project(road.path.point(road.crossing)) - 3.2
            if node is not None and i + 1 < len(lanes):
                gates["light", *node] = end - 1.4
    return spans, sorted((where, key) for key, where in gates.items())


def _onwards(made: Town, lane: Lane, missing: float, rng: np.random.Generator) -> Turn:
    """Straight on, unless that leads out of town long before the route is long enough."""
    choices: list[Turn] = ["straight", "left", "right"]
    for turn in choices[:1] + [choices[1 + int(i)] for i in rng.permutation(2)]:
        connector = made.connector(lane, turn)
        if connector is not None:
            road = made.roads[made.lanes[connector.after].road]
            if road.b is not None or missing < road.path.length:
                return turn
    return "straight"


def _changing(a: Lane, b: Lane, begin: float, over: float = 45.0) -> Path:
    """The centre line of `a` that goes over to `b`'s between `begin` and `begin + over`."""
    u = np.clip((a.path.s - begin) / over, 0.0, 1.0)
    side = (a.index - b.index) * LANE_WIDTH * (u**3 * (10.0 - 15.0 * u + 6.0 * u * u))
    normal = np.stack((-np.sin(a.path.heading), np.cos(a.path.heading)), axis=-1)
    return Path(a.path.xy + normal * side[:, None])


def _vehicle(made: Town, track: str, lane: Lane, s: float, need: float, rng: np.random.Generator) -> Vehicle:
    """Somebody who drives from `s` on `lane` and turns as chance will have it."""
    lanes, here, length = [lane], lane, lane.path.length - s
    while made.end_node(here) is not None and length < need:
        options = [c for c in made.connectors.values() if c.before == here.id]
        connector = options[int(rng.integers(len(options)))]
        here = made.lanes[connector.after]
        lanes += [connector, here]
        length += connector.path.length + here.path.length
    path = joined([x.path for x in lanes]).smoothed(1.5)
    spans, gates = _along(made, path, lanes)
    kind = str(rng.choice(["car", "van", "truck", "bus"], p=[0.8, 0.12, 0.05, 0.03]))
    size = {
        "car": (float(rng.uniform(4.2, 4.9)), float(rng.uniform(1.78, 1.92)), float(rng.uniform(1.42, 1.62))),
        "van": (5.4, 2.0, 2.2),
        "truck": (7.6, 2.4, 3.2),
        "bus": (11.5, 2.5, 3.1),
    }[kind]
    colour = CAR_COLOURS[int(rng.integers(len(CAR_COLOURS)))]
    ahead = [where - s - size[0] / 2 for where, _ in gates if where - s - size[0] / 2 > 0]
    v = min(float(rng.uniform(5.0, 9.0)), float(np.sqrt(2 * 1.2 * min(ahead, default=60.0))))
    wish = float(rng.uniform(7.5, 10.0))
    return Vehicle(track, path, spans, gates, s, v, wish, size, size[0] / 2, size[0] / 2, kind, colour)


def _company(
    made: Town, route: _Route, manoeuvre: Manoeuvre, s0: float, v0: float, rng: np.random.Generator
) -> list[Vehicle]:
    """Whom the manoeuvre needs: the slow car to follow."""
    if manoeuvre != "follow":
        return []
    size = (4.5, 1.85, 1.5)
    colour = CAR_COLOURS[int(rng.integers(3))]
    s = s0 + EGO_FRONT + size[0] / 2 + float(rng.uniform(16.0, 20.0))
    gates = [g for g in route.gates if g[0] > s]
    return [
        Vehicle("lead", route.path, route.spans, gates, s, v0 - 1.0, 6.2, size, size[0] / 2, size[0] / 2, "car", colour)
    ]


def _traffic(
    made: Town,
    route: _Route,
    manoeuvre: Manoeuvre,
    s0: float,
    density: float,
    duration: float,
    rng: np.random.Generator,
) -> list[Vehicle]:
    """Cars on the lanes around the ego's way, none of them where it begins."""
    way = route.path.point(np.arange(s0, route.path.length, 10.0))
    begin = route.path.pose(s0)
    cars: list[Vehicle] = []
    for lane in made.lanes.values():
        s = float(rng.uniform(6.0, 30.0))
        while s < lane.path.length - 8.0:
            at = lane.path.point(s)
            rel = to_local(np.array([*at, 0.0]), begin)
            room = (46.0, 5.0) if manoeuvre in ("lane_change", "pedestrian", "follow") else (27.0, 1.9)
            blocked = -24.0 < rel[0] < room[0] and abs(rel[1]) < room[1]
            if np.hypot(*(way - at).T).min() < 110.0 and not blocked and rng.uniform() < 0.75:
                cars.append(_vehicle(made, f"car{len(cars)}", lane, s, 40.0 + 10.0 * duration, rng))
            s += float(rng.uniform(18.0, 55.0)) / max(density, 1e-3)
    return cars


def _bumped(motions: list[Motion], walks: list[Walk], duration: float) -> set[str]:
    """Who touches somebody, at 4 Hz: of a pair the one that is not the ego."""
    times = np.arange(0.0, duration, 0.25)
    tracks = [motion.vehicle.track for motion in motions] + [walk.track for walk in walks]
    cars, boxes = len(motions), [motion.vehicle.size for motion in motions] + [walk.size for walk in walks]
    poses = np.stack([_poses(motion, times) for motion in motions] + [_walked(walk, times) for walk in walks])
    guilty: set[str] = set()
    for k in range(len(times)):
        now = np.array([i for i in np.nonzero(~np.isnan(poses[:, k, 0]))[0] if tracks[i] not in guilty], dtype=np.int64)
        at = poses[now, k, :2]
        vehicles = int((now < cars).sum())
        near = np.hypot(*(at[:vehicles, None] - at[None]).transpose(2, 0, 1)) < 14.0
        rings: dict[int, Float64] = {}
        for a, b in zip(*np.nonzero(np.triu(near, 1)), strict=True):
            i, j = int(now[a]), int(now[b])
            if not guilty & {tracks[i], tracks[j]}:
                for one in (i, j):
                    if one not in rings:
                        # The ego keeps people at a distance; half a metre more all round.
                        grown = 1.0 if tracks[one] == "ego" else 0.0
                        x, y, yaw = (float(q) for q in poses[one, k])
                        rings[one] = rectangle(x, y, yaw, boxes[one][0] + grown, boxes[one][1] + grown / 2)
                if overlap(rings[i], rings[j]):
                    guilty.add(tracks[j])
    return guilty


def _poses(motion: Motion, times: Float64) -> Float64:
    """[T, 3] the middle of a vehicle and its heading; NaN where it is gone."""
    states = [motion.at(float(t)) for t in times]
    car = motion.vehicle
    out = car.path.pose(np.array([np.nan if state is None else state[0] for state in states]))
    out[:, :2] += unit(out[:, 2]) * (car.front - car.rear) / 2
    return out


def _walked(walk: Walk, times: Float64) -> Float64:
    """[T, 3] where somebody on foot or on a bicycle is."""
    return walk.path.pose(np.interp(times, walk.times, walk.s))
