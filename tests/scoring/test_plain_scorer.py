"""Every sub-score against a plain scorer: loops over shapely geometry and scipy filters, on scenes made to be awkward.

`Plain` is the score written out for one trajectory at a time, from the simulated states (which
`test_simulator` checks). The scenes have polygons with holes and of several parts, agents that come and go, no agents,
no lights, no map, an ego that stands, centerlines with points given twice, agents upon the ego at the start.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import shapely
import torch
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from scoring import Layer, Polygons, RewardContext, collate, complete, extended_comfort, score
from scoring.context import AGENT_STEPS, FILTERED
from scoring.reference import reference_poses
from scoring.simulator import simulate

savgol_filter = pytest.importorskip("scipy.signal").savgol_filter

HALF = (2.588, 1.1485)
TO_CENTRE = 1.461


def rectangle(x: float, y: float, heading: float, length: float, width: float) -> Polygon:
    c, s = math.cos(heading), math.sin(heading)
    corners = [(length, width), (-length, width), (-length, -width), (length, -width)]
    return Polygon([(x + (a * c - b * s) / 2, y + (a * s + b * c) / 2) for a, b in corners])


def geometries(polygons: Polygons) -> list[BaseGeometry]:
    """Shapely's idea of each: even-odd over the rings."""
    out = []
    for m in range(len(polygons)):
        shape: BaseGeometry = Polygon()
        for r in range(polygons.polygons[m], polygons.polygons[m + 1]):
            shape = shape.symmetric_difference(Polygon(polygons.xy[polygons.rings[r] : polygons.rings[r + 1]]))
        out.append(shape)
    return out


class Plain:
    """One scene, scored a trajectory at a time."""

    def __init__(self, context: RewardContext) -> None:
        self.c = context
        self.v1 = context.version == "v1"
        self.map = geometries(context.map_polygons)
        self.lights = geometries(context.light_polygons)
        self.line = LineString(context.centerline)
        ego = rectangle(TO_CENTRE, 0, 0, 2 * HALF[0], 2 * HALF[1])
        self.agents = [
            n
            for n in range(len(context.agents_pose))
            if self.v1 or not (context.agents_valid[n, 0] and self.box(n, 0).intersects(ego))
        ]

    def box(self, n: int, t: int) -> Polygon:
        return rectangle(*self.c.agents_pose[n, t], *self.c.agents_size[n])

    def within(self, x: float, y: float, *layers: Layer) -> bool:
        return any(
            kind in layers and shape.contains(Point(x, y))
            for kind, shape in zip(self.c.map_layer, self.map, strict=True)
        )

    def prepare(self, states: np.ndarray) -> None:
        self.s = states
        self.centre = [(x + TO_CENTRE * math.cos(h), y + TO_CENTRE * math.sin(h)) for x, y, h in states[:, :3]]
        self.ego = [rectangle(*c, s[2], 2 * HALF[0], 2 * HALF[1]) for c, s in zip(self.centre, states, strict=True)]
        self.speed = np.hypot(states[:, 3], states[:, 4])
        lanes = [m for m, k in enumerate(self.c.map_layer) if k in (Layer.LANE, Layer.LANE_CONNECTOR)]
        drivable = (Layer.ROADBLOCK, Layer.INTERSECTION, Layer.CARPARK, Layer.DRIVABLE_AREA)
        self.multiple, self.off, self.oncoming, self.crossing = [], [], [], []
        for c, ego in zip(self.centre, self.ego, strict=True):
            corners = list(ego.exterior.coords)[:4]
            counts = [sum(self.map[m].contains(Point(p)) for p in corners) for m in lanes]
            self.multiple.append(sum(n > 0 for n in counts) > 1 and all(n != 4 for n in counts))
            self.off.append(not all(self.within(*p, *drivable) for p in corners))
            self.oncoming.append(not any(self.c.map_on_route[m] and self.map[m].contains(Point(c)) for m in lanes))
            self.crossing.append(self.within(*c, Layer.INTERSECTION))

    def angle(self, i: int, n: int, t: int) -> float:
        c = self.box(n, t).centroid
        d = math.atan2(c.y - self.s[i, 1], c.x - self.s[i, 0]) - self.s[i, 2]
        return abs(math.degrees(math.atan2(math.sin(d), math.cos(d))))

    def nc(self) -> float:
        worst = 1.0
        for n in self.agents:
            met = [i for i in range(41) if self.c.agents_valid[n, i] and self.ego[i].intersects(self.box(n, i))]
            if not met or self.speed[met[0]] <= 0.05:
                continue
            i = met[0]
            front = LineString([self.ego[i].exterior.coords[0], self.ego[i].exterior.coords[3]])
            if self.c.agents_stopped[n]:
                fault = True
            elif self.angle(i, n, i) > 150:
                fault = False
            else:
                fault = front.intersects(self.box(n, i)) or self.multiple[i] or self.off[i]
            if fault:
                worst = min(worst, 0.0 if self.c.agents_is_agent[n] else 0.5)
        return worst

    def ttc(self) -> float:
        ignored: set[int] = set()
        for i in range(41 if self.v1 else 32):
            if self.speed[i] < 0.005:
                continue
            for f in (0, 3, 6, 9):
                reach = 0.1 * f * self.speed[i]
                moved = shapely.affinity.translate(
                    self.ego[i], reach * math.cos(self.s[i, 2]), reach * math.sin(self.s[i, 2])
                )
                for n in self.agents:
                    if n in ignored or not self.c.agents_valid[n, i + f] or not moved.intersects(self.box(n, i + f)):
                        continue
                    angle = self.angle(i, n, i + f)
                    exposed = self.multiple[i] or self.off[i] or self.within(*self.s[i, :2], Layer.INTERSECTION)
                    if angle < 30 or (exposed and not angle > 150):
                        return 0.0
                    ignored.add(n)
        return 1.0

    def ddc(self) -> float:
        metres = [0.0]
        for i in range(1, 41):
            counts = self.oncoming[i] and (self.v1 or not self.crossing[i])
            metres.append(math.dist(self.centre[i], self.centre[i - 1]) if counts else 0.0)
        worst = max(sum(metres[max(0, i - 10) : i + 1]) for i in range(41))
        return 1.0 if worst < 2 else 0.5 if worst < 6 else 0.0

    def tlc(self) -> float:
        for r, shape in enumerate(self.lights):
            if any(self.c.light_active[r, i] and self.ego[i].intersects(shape) for i in range(41)):
                return 0.0
        return 1.0

    def lk(self) -> float:
        count = 0
        for i in range(41):
            if self.crossing[i]:
                continue
            count = count + 1 if Point(self.centre[i]).distance(self.line) > 0.5 else 0
            if count >= 20:
                return 0.0
        return 1.0

    def progress(self) -> float:
        return max(0.0, self.line.project(Point(self.centre[40])) - self.line.project(Point(self.centre[0])))

    def comfort(self) -> float:
        s = self.s if self.v1 else np.concatenate((self.c.past_states, self.s))
        accel_window, jerk_window = (41, 41) if self.v1 else (8, 15)
        ax, ay = s[:, 5], s[:, 6]
        lon = ax if self.v1 else ax + TO_CENTRE * (s[:, 9] ** 2 + s[:, 10])

        def smooth(y: np.ndarray, window: int) -> np.ndarray:
            return np.round(savgol_filter(y, window, 2), 8)

        def derive(y: np.ndarray, window: int, degree: int, order: int) -> np.ndarray:
            return np.round(savgol_filter(y, window, degree, deriv=order, delta=0.1), 8)

        turns = np.concatenate(([0.0], np.cumsum(np.round(np.diff(s[:, 2]) / (2 * np.pi)))))
        heading = s[:, 2] - 2 * np.pi * turns
        bounds = [
            (smooth(lon, accel_window), -4.05, 2.40),
            (smooth(ay, accel_window), -4.89, 4.89),
            (derive(smooth(np.hypot(ax, ay), 8), jerk_window, 2, 1), -8.37, 8.37),
            (derive(smooth(lon, 8), jerk_window, 2, 1), -4.13, 4.13),
            (derive(heading, 5, 3, 2), -1.93, 1.93),
            (derive(heading, 5, 2, 1), -0.95, 0.95),
        ]
        return float(all(((low < v) & (v < high)).all() for v, low, high in bounds))

    def subscores(self, states: np.ndarray) -> dict[str, float]:
        self.prepare(states)
        out = {
            "no_at_fault_collisions": self.nc(),
            "drivable_area_compliance": float(not any(self.off)),
            "driving_direction_compliance": self.ddc(),
            "time_to_collision_within_bound": self.ttc(),
            "raw": self.progress(),
            "comfort" if self.v1 else "history_comfort": self.comfort(),
        }
        if not self.v1:
            out |= {"traffic_light_compliance": self.tlc(), "lane_keeping": self.lk()}
        return out

    def multiplier(self, row: dict[str, float]) -> float:
        out = row["no_at_fault_collisions"] * row["drivable_area_compliance"]
        return out if self.v1 else out * row["driving_direction_compliance"] * row["traffic_light_compliance"]

    def finish(self, row: dict[str, float], pdm: dict[str, float], human: dict[str, float] | None) -> dict[str, float]:
        row = dict(row)
        raw, mult = row.pop("raw"), self.multiplier(row)
        best = max(raw * mult, pdm["raw"] * self.multiplier(pdm))
        if self.v1:
            row["ego_progress"] = raw * mult / best if best > 5 else float(mult != 0)
            row["score"] = (
                mult * (5 * row["ego_progress"] + 5 * row["time_to_collision_within_bound"] + 2 * row["comfort"]) / 12
            )
            return row
        row["ego_progress"] = min(raw / best, 1.0) if best > 5 else 1.0
        for name in FILTERED:
            if human is not None and human[name] == 0:
                row[name] = 1.0
        row["score"] = (
            self.multiplier(row)
            * (
                5 * row["ego_progress"]
                + 5 * row["time_to_collision_within_bound"]
                + 2 * row["lane_keeping"]
                + 2 * row["history_comfort"]
            )
            / 14
        )
        return row


def drive(rng: np.random.Generator, speed: float) -> np.ndarray:
    """[8, 3]: an arc, or standing."""
    if rng.random() < 0.12:
        return np.zeros((8, 3))
    v = np.maximum(0.0, speed + np.cumsum(rng.normal(0, 0.8, 8)))
    heading = np.cumsum(rng.normal(0, 0.03, 8)) + rng.choice([0.0, rng.normal(0, 0.08)]) * np.arange(1, 9)
    return np.column_stack((np.cumsum(v * 0.5 * np.cos(heading)), np.cumsum(v * 0.5 * np.sin(heading)), heading))


def parts(shape: BaseGeometry) -> list[np.ndarray]:
    return [np.array(r.coords) for p in shapely.get_parts(shape) for r in (p.exterior, *p.interiors)]


def world(rng: np.random.Generator, version: str, kind: int) -> RewardContext:
    """Three lanes along x in pieces of 12 m, an intersection, a hole here and there; `kind` leaves things out."""
    speed = float(rng.choice([0.0, 0.03, 2.0, 7.0, 11.0]))
    shapes: list[BaseGeometry] = []
    layers: list[int] = []
    route: list[bool] = []

    def add(shape: BaseGeometry, layer: Layer, *, on_route: bool = False) -> None:
        shapes.append(shape)
        layers.append(layer)
        route.append(on_route)

    if kind != 1:
        for k in range(-1, 6):
            x = 12 * k
            for lane, y in enumerate((-1.9, 1.9, 5.7)):
                jitter = rng.normal(0, 0.2, (4, 2))
                ring = np.array([(x, y - 1.9), (x + 12, y - 1.9), (x + 12, y + 1.9), (x, y + 1.9)]) + jitter
                middle = rng.uniform(0.2, 0.8, 3)[:, None]
                ring = np.concatenate((ring[:1], ring[:1] + np.sort(middle, axis=0) * (ring[1] - ring[0]), ring[1:]))
                layer = Layer.LANE_CONNECTOR if k == 3 else Layer.LANE
                add(Polygon(ring).buffer(0), layer, on_route=bool(lane == 1 or rng.random() < 0.3))
            block: BaseGeometry = box(x, -4, x + 12.1, 7.8)
            if rng.random() < 0.4:
                block = block.difference(box(x + 3, 3, x + 5, 6).buffer(0.3))
            if k != 3:
                add(block, Layer.ROADBLOCK)
        crossing = MultiPolygon([box(36, -5, 48.2, 1.5), box(36, 2.0, 48.2, 9)])
        add(crossing.difference(Point(42, 0).buffer(0.4)), Layer.INTERSECTION)
        add(Point(20, -7).buffer(4), Layer.CARPARK)
    steps = AGENT_STEPS[version]
    count = 0 if kind == 2 else 7
    pose, valid = np.zeros((count, steps, 3)), np.zeros((count, steps), dtype=bool)
    for n in range(count):
        start, v, heading = rng.uniform((-12, -5), (45, 9)), rng.choice([0.0, rng.uniform(0, 9)]), rng.normal(0, 0.4)
        heading += rng.choice([0.0, math.pi / 2, math.pi])
        t = np.arange(steps) * 0.1
        pose[n] = np.column_stack((start[0] + v * t * math.cos(heading), start[1] + v * t * math.sin(heading), 0 * t))
        pose[n, :, 2] = heading
        begin, end = np.sort(rng.integers(0, steps + 1, 2))
        valid[n, slice(None) if rng.random() < 0.5 else slice(begin, end)] = True
    pose[~valid] = 0.0
    is_agent = rng.random(count) < 0.7
    lights = 0 if version == "v1" or kind == 3 else 2
    light_shapes = [box(36, -1, 48, 3).difference(box(40, 0, 44, 2)), Polygon([(30, -9), (33, 9), (31, 9)])][:lights]
    active = rng.random((lights, 41)) < rng.choice([0.0, 0.05, 1.0])
    past = np.zeros((0, 11))
    if version == "v2":
        past = np.zeros((int(rng.choice([14, 15])), 11))
        past[:, 3], past[:, 5], past[:, 6] = speed, rng.normal(0, 0.7), rng.normal(0, 1.2)
        past[:, 0] = speed * (np.arange(len(past)) - len(past)) * 0.1
    x = np.arange(-15, 90, 4.0)
    line = np.column_stack((x, 0.4 + 0.5 * np.sin(x / 12)))
    line = np.repeat(line, rng.integers(1, 3, len(line)), axis=0)
    ego = np.zeros(11)
    ego[3], ego[5] = speed, rng.normal(0, 0.5)
    start_us = 1_630_000_000_000_000 + int(rng.integers(0, 10**9))
    pdm = torch.from_numpy(np.column_stack((np.arange(1, 9) * speed * 0.45, np.zeros(8), np.zeros(8))))
    return RewardContext(
        token=f"{version}-{kind}",
        version=version,  # type: ignore[arg-type]
        timestamp_us=start_us,
        ego_state=ego,
        past_states=past,
        agents_pose=pose,
        agents_valid=valid,
        agents_size=rng.uniform((0.4, 0.4), (5, 2.2), (count, 2)),
        agents_is_agent=is_agent,
        agents_stopped=~is_agent | (rng.random(count) < 0.3),
        map_polygons=Polygons.of([parts(s) for s in shapes]),
        map_layer=np.array(layers, dtype=np.int64),
        map_on_route=np.array(route, dtype=bool),
        light_polygons=Polygons.of([parts(s) for s in light_shapes]),
        light_active=active,
        centerline=line,
        pdm_poses=reference_poses(pdm[None], torch.tensor([start_us]), 0.5)[0].numpy(),
        human_poses=np.zeros((0, 3)) if version == "v1" or kind == 4 else drive(rng, speed),
        human_zero=np.zeros(6, dtype=bool),
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_batched_equals_plain(version: str) -> None:
    rng = np.random.default_rng(7)
    raw = [world(rng, version, kind) for kind in (0, 0, 0, 1, 2, 3, 4, 0, 0, 0)]
    contexts = complete(raw)
    trajectories = np.stack([[drive(rng, max(2.0, c.ego_state[3])) for _ in range(5)] for c in contexts])
    result = score(collate(contexts), torch.from_numpy(trajectories))
    seen: dict[str, Counter[float]] = {}
    changed = 0
    for s, context in enumerate(contexts):
        plain = Plain(context)
        ego = torch.from_numpy(context.ego_state)[None]
        pdm = plain.subscores(simulate(torch.from_numpy(context.pdm_poses)[None], ego)[0].numpy())
        human = None
        if len(context.human_poses):
            start = torch.tensor([context.timestamp_us])
            reference = reference_poses(torch.from_numpy(context.human_poses)[None], start, 0.5)
            human = plain.subscores(simulate(reference, ego)[0].numpy())
            assert context.human_zero.tolist() == [human[name] == 0 for name in FILTERED]
        for c in range(trajectories.shape[1]):
            expected = plain.finish(plain.subscores(result.states[s, c].numpy()), pdm, human)
            got = {name: float(v[s, c]) for name, v in result.subscores.items()} | {"score": float(result.score[s, c])}
            assert got == pytest.approx(expected, abs=1e-9), (s, c)
            for name, value in result.unfiltered.items():
                seen.setdefault(name, Counter())[float(value[s, c])] += 1
                changed += float(value[s, c]) != got[name]
    for name, values in seen.items():
        assert len(values) > 1, f"{name} is always {set(values)}: this test shows nothing about it"
    assert {0.0, 0.5, 1.0} <= set(seen["no_at_fault_collisions"])
    assert version == "v1" or changed > 0


def test_a_scene_scores_the_same_beside_any_other() -> None:
    rng = np.random.default_rng(8)
    contexts = complete([world(rng, "v2", kind) for kind in (0, 1, 2, 3, 4)])
    trajectories = torch.from_numpy(np.stack([[drive(rng, 6.0) for _ in range(3)] for _ in contexts]))
    together = score(collate(contexts), trajectories)
    for s, context in enumerate(contexts):
        alone = score(collate([context]), trajectories[s : s + 1])
        for name, value in together.subscores.items():
            assert value[s].equal(alone.subscores[name][0]), name


def test_a_context_in_single_precision_scores_the_same() -> None:
    rng = np.random.default_rng(9)
    contexts = complete([world(rng, "v2", 0), world(rng, "v2", 0)])
    trajectories = torch.from_numpy(np.stack([[drive(rng, 6.0) for _ in range(6)] for _ in contexts]))
    expected = score(collate(contexts), trajectories)
    stored = [c.astype(np.float32) for c in contexts]
    assert stored[0].centerline.dtype == stored[0].map_polygons.xy.dtype == np.float32
    assert stored[0].ego_state.dtype == stored[0].past_states.dtype == np.float64
    found = score(collate(stored), trajectories)
    for name, value in expected.subscores.items():
        torch.testing.assert_close(value, found.subscores[name], rtol=0, atol=1e-5)


def test_extended_comfort_equals_scipy() -> None:
    rng = np.random.default_rng(10)

    def features(s: np.ndarray) -> list[np.ndarray]:
        accel = np.round(savgol_filter(np.hypot(s[:, 5], s[:, 6]), 8, 2), 8)
        heading = np.unwrap(s[:, 2])
        return [
            accel,
            np.round(savgol_filter(accel, 15, 2, deriv=1, delta=0.1), 8),
            np.round(savgol_filter(heading, 5, 2, deriv=1, delta=0.1), 8),
            np.round(savgol_filter(heading, 5, 2, deriv=2, delta=0.1), 8),
        ]

    now, before = np.zeros((2, 60, 41, 11))
    for states in (now, before):
        size = rng.choice([0.02, 0.2, 1.0], (60, 1))
        states[..., 5] = size * np.cumsum(rng.normal(0, 0.2, (60, 41)), axis=1)
        states[..., 2] = 3.1 + size * 0.02 * np.cumsum(rng.normal(0, 0.2, (60, 41)), axis=1)
    states = torch.from_numpy(now)
    got = extended_comfort(states, torch.from_numpy(before)).tolist()
    expected = []
    for a, b in zip(now, before, strict=True):
        rms = [np.sqrt(((p - q) ** 2).mean()) for p, q in zip(features(a[:-5]), features(b[5:]), strict=True)]
        expected.append(float(all(r <= bound for r, bound in zip(rms, (0.7, 0.5, 0.1, 0.1), strict=True))))
    assert got == expected
    assert 0 < sum(got) < 60
