"""The simulated world: a sound road network, and stories that a careful driver would tell."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from synthetic.drive import EGO_FRONT, EGO_REAR, EGO_SIZE, Drive, Manoeuvre
from synthetic.geometry import Path, overlap, rectangle
from synthetic.world import LOCATIONS, block_ring, town

DURATION = 20.5
TIMES = np.arange(0.0, 20.01, 0.5)
MANOEUVRES = get_args(Manoeuvre)
_DRIVES: dict[str, Drive] = {}


def drive_of(manoeuvre: Manoeuvre) -> Drive:
    if manoeuvre not in _DRIVES:
        location = list(LOCATIONS)[MANOEUVRES.index(manoeuvre) % 4]
        _DRIVES[manoeuvre] = Drive(5, "test", location, manoeuvre, DURATION, traffic=0.6)
    return _DRIVES[manoeuvre]


@pytest.mark.parametrize("location", list(LOCATIONS))
def test_lanes_join_and_ids_are_unique(location: str) -> None:
    made = town(5, location)
    blocks, links = made.blocks(), made.connector_blocks()
    ids = [*made.lanes, *made.connectors, *blocks, *links]
    assert len(ids) == len(set(ids))
    for c in made.connectors.values():
        before, after = made.lanes[c.before], made.lanes[c.after]
        np.testing.assert_allclose(before.path.xy[-1], c.path.xy[0], atol=1e-9)
        np.testing.assert_allclose(after.path.xy[0], c.path.xy[-1], atol=1e-9)
        turned = {"left": 1, "straight": 0, "right": -1}[c.turn or ""]
        assert round((c.path.heading[-1] - c.path.heading[0]) / (np.pi / 2)) == turned
        assert np.abs(c.path.curvature).max() < 0.1
    for lane in made.lanes.values():
        out = [c for c in made.connectors.values() if c.before == lane.id]
        assert (len(out) > 0) == (made.end_node(lane) is not None)
        assert block_ring([lane]).shape[1] == 2


def test_a_path_measures_and_projects() -> None:
    t = np.linspace(0.0, np.pi, 200)
    half_circle = Path(10.0 * np.stack((np.cos(t), np.sin(t)), axis=-1))
    assert half_circle.length == pytest.approx(10.0 * np.pi, rel=1e-4)
    np.testing.assert_allclose(half_circle.curvature[2:-2], 0.1, rtol=1e-3)
    assert half_circle.project([0.0, 4.0]) == pytest.approx(5.0 * np.pi, rel=1e-3)
    np.testing.assert_allclose(half_circle.offset(1.0).point(0.0), [9.0, 0.0], atol=0.1)


@pytest.mark.parametrize("manoeuvre", MANOEUVRES)
def test_the_ego_touches_nobody_and_drives_gently(manoeuvre: Manoeuvre) -> None:
    drive = drive_of(manoeuvre)
    for t in TIMES:
        ego = drive.ego(float(t))
        forward = np.array([np.cos(ego.yaw), np.sin(ego.yaw)])
        x, y = np.array([ego.x, ego.y]) + forward * (EGO_FRONT - EGO_REAR) / 2
        box = rectangle(x, y, ego.yaw, *EGO_SIZE[:2])
        for a in drive.actors(float(t)):
            if np.hypot(a.x - x, a.y - y) < 12.0:
                assert not overlap(box, rectangle(a.x, a.y, a.heading, *a.size[:2])), (manoeuvre, t, a.track)
        assert -4.0 < ego.a < 2.4
        assert abs(ego.yaw_rate) < 0.95
        assert abs(ego.a_left) < 3.0
    states = [drive.ego(float(t)) for t in TIMES]
    assert np.hypot(states[-1].x - states[0].x, states[-1].y - states[0].y) > 30.0


@pytest.mark.parametrize("manoeuvre", ["left_turn", "pedestrian"])
def test_speed_is_the_derivative_of_position(manoeuvre: Manoeuvre) -> None:
    drive, h = drive_of(manoeuvre), 1e-3
    for t in (1.23, 6.7, 9.01, 15.5):
        a, b, now = drive.ego(t - h), drive.ego(t + h), drive.ego(t)
        along = np.array([np.cos(now.yaw), np.sin(now.yaw)])
        moved = np.array([b.x - a.x, b.y - a.y]) / (2 * h)
        # The heading is interpolated between path points half a metre apart: the chord differs by milliradians.
        np.testing.assert_allclose(moved, now.v * along, atol=0.02 * now.v + 1e-3)
        assert (b.v - a.v) / (2 * h) == pytest.approx(now.a, abs=0.15)
        before, after = ({x.track: x for x in drive.actors(u)} for u in (t - 0.02, t + 0.02))
        for actor in drive.actors(t):
            if actor.track in before and actor.track in after and actor.track.startswith(("car", "lead", "parked")):
                dx = (after[actor.track].x - before[actor.track].x) / 0.04
                assert dx == pytest.approx(actor.vx, abs=0.25)


def test_red_light_is_waited_for_and_no_red_light_is_run() -> None:
    drive = drive_of("red_light")
    speeds = [drive.ego(float(t)).v for t in TIMES]
    assert min(speeds) < 0.5
    assert speeds[-1] > 3.0
    for manoeuvre in MANOEUVRES:
        drive = drive_of(manoeuvre)
        motion = drive.motions[0]
        for where, (what, node, leg) in drive.route.gates:
            fronts = motion.s + EGO_FRONT
            if what == "light" and fronts[0] < where < fronts[-1]:
                crossed = float(np.argmax(fronts >= where + 1.4)) * 0.05
                assert drive.lights.state(node, leg, crossed) != "red", manoeuvre


def test_only_one_leg_of_a_crossing_has_green() -> None:
    lights = drive_of("straight").lights
    for node in range(9):
        for t in np.arange(0.0, 200.0, 0.7):
            assert sum(lights.state(node, leg, float(t)) != "red" for leg in range(4)) <= 1


def test_the_ego_waits_for_people_on_the_zebra_crossing() -> None:
    drive = drive_of("pedestrian")
    assert min(drive.ego(float(t)).v for t in TIMES[:20]) < 2.5
    assert any(w.track.startswith("cross") for w in drive.walks)


def test_commands_name_the_turn_before_it_begins() -> None:
    for manoeuvre, place in (("left_turn", 0), ("right_turn", 2), ("straight", 1)):
        drive = drive_of(manoeuvre)  # type: ignore[arg-type]
        commands = [drive.command(float(t)) for t in TIMES]
        if place == 1:
            assert set(commands) == {1}
            continue
        assert set(commands) == {1, place}
        begin = float(TIMES[commands.index(place)])
        assert abs(drive.ego(begin).yaw_rate) < 0.12  # told before the wheel turns
        turned = drive.ego(20.0).yaw - drive.ego(0.0).yaw
        assert turned == pytest.approx({0: np.pi / 2, 2: -np.pi / 2}[place], abs=0.6)
    assert {drive_of("no_route").command(float(t)) for t in TIMES} == {3}
    assert drive_of("no_route").roadblock_ids == []


def test_a_lane_change_ends_on_the_next_lane() -> None:
    drive = drive_of("lane_change")
    first, second = drive.route.lanes[:2]
    assert first.block == second.block
    middle = second.path.point(second.path.project(drive.route.path.point(first.path.length - 2.0)))
    assert np.hypot(*(middle - drive.route.path.point(first.path.length - 2.0))) < 0.3
    assert str(second.block) in drive.roadblock_ids


def test_the_same_seed_tells_the_same_story() -> None:
    a = drive_of("follow")
    b = Drive(5, "test", a.town.location, "follow", DURATION, traffic=0.6)
    assert a.ego(7.77) == b.ego(7.77)
    assert a.actors(7.77) == b.actors(7.77)
    other = Drive(5, "other", a.town.location, "follow", 5.0, traffic=0.6)
    assert other.ego(1.0) != a.ego(1.0)
