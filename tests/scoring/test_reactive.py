"""Reactive traffic on a straight road: who is there, and what it does. Whole scores: tests/jobs/test_two_stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from scoring import RewardContext, collate
from scoring.idm import react
from scoring.traffic import Seen, Traffic
from shards_schema.errors import SampleError
from tests.scoring.test_plain_scorer import world

X = np.arange(-60.0, 121.0, 5.0)
LANE = np.column_stack((X, np.zeros((len(X), 2))))
"""Middle of a lane along x; it is driven up to its last point but one, x = 115."""


def road(cars: Sequence[tuple[float, float, float]], *, limit: float = 10.0, in_lane: bool = True) -> RewardContext:
    """A v2 scene with cars (x, y, speed) on the lane, and in this order before them: one of each that is no car now."""
    base = world(np.random.default_rng(3), "v2", 0)
    seen = [Seen.OTHER_NOW, Seen.OTHER_LATER, Seen.VEHICLE_LATER, *[Seen.VEHICLE_NOW] * len(cars)]
    pose = np.zeros((len(seen), 41, 3))
    pose[:3, :, 1] = 40.0
    for n, (x, y, _) in enumerate(cars, start=3):
        pose[n, :, :2] = x, y
    k = len(cars)
    traffic = Traffic(
        seen=np.array(seen, dtype=np.int64),
        speed=np.array([v for _, _, v in cars]),
        in_lane=np.full(k, in_lane),
        nearest=np.array([[x, 0.0, 0.0] for x, _, _ in cars]),
        offset=np.array([abs(y) for _, y, _ in cars]),
        progress=np.array([x - X[0] for x, _, _ in cars]),
        limit=np.full(k, limit),
        rails_pose=np.tile(LANE, (k, 1)),
        rails=np.arange(k + 1) * len(LANE),
    )
    return dataclasses.replace(
        base,
        agents_pose=pose,
        agents_valid=np.ones(pose.shape[:2], dtype=np.bool_),
        agents_size=np.full((len(seen), 2), (4.5, 2.0)),
        agents_is_agent=np.ones(len(seen), dtype=np.bool_),
        agents_stopped=np.zeros(len(seen), dtype=np.bool_),
        traffic=traffic,
    )


def ego(x: float = 0.0, y: float = 0.0, speed: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """States [41, 11] straight on."""
    states = np.zeros((41, 11))
    states[:, 0], states[:, 1], states[:, 3] = x + 0.1 * np.arange(41) * speed, y, speed
    return states


def test_who_is_there() -> None:
    found = react(road([(20.0, 0.0, 5.0)]), ego(y=-60.0))
    assert found.agents_valid[0].all()  # replayed
    assert not found.agents_valid[1, 0]  # first seen later: not there at t0
    assert found.agents_valid[1, 1:].all()
    assert not found.agents_valid[2].any()  # a vehicle of later is never there
    assert found.agents_valid[3].all()
    assert (found.agents_pose[~found.agents_valid] == 0).all()


def test_a_free_road_leads_to_the_limit_and_its_end_is_braked_for() -> None:
    x = react(road([(-50.0, 0.0, 5.0)]), ego(y=-60.0)).agents_pose[3, :, 0]
    speed = np.diff(x) * 10
    assert speed[0] == pytest.approx(5.0)
    assert 5.0 < speed[-1] < 10.0
    assert (np.diff(speed[1:]) > -1e-9).all()
    near_the_end = react(road([(105.0, 0.0, 8.0)]), ego(y=-60.0)).agents_pose[3, :, 0]
    assert np.diff(near_the_end)[-1] < 0.1
    assert near_the_end[-1] <= 115.0


def test_it_answers_to_the_ego() -> None:
    context = road([(-25.0, 0.0, 6.0)])
    behind = react(context, ego()).agents_pose[3, :, 0]
    free = react(context, ego(y=-60.0)).agents_pose[3, :, 0]
    assert behind[-1] < free[-1] - 3
    assert behind[-1] + 2.25 < -2.588  # it stands behind the ego, whose outline lies about its rear axle
    assert np.diff(behind)[-1] < np.diff(free)[-1]


def test_cars_follow_each_other_and_do_not_start_in_each_other() -> None:
    found = react(road([(20.0, 0.0, 2.0), (8.0, 0.5, 5.0), (19.0, 0.5, 3.0)]), ego(y=-60.0))
    first, second = found.agents_pose[3, :, 0], found.agents_pose[4, :, 0]
    assert (first - second > 4.5 - 1e-9).all()
    assert not found.agents_valid[5, 1:].any()  # it would stand in the first, so it is on no lane, and gone


@pytest.mark.parametrize(
    ("car", "in_lane", "stays"),
    [
        ((20.0, 3.5, 4.0), True, True),  # too far from the middle to be put on it
        ((20.0, 3.5, 4.0), False, True),
        ((20.0, 0.0, 0.05), False, True),  # on the lane: driven
    ],
)
def test_who_is_off_the_lane_stays(car: tuple[float, float, float], in_lane: bool, stays: bool) -> None:
    found = react(road([car], in_lane=in_lane), ego(y=-60.0))
    assert bool(found.agents_valid[3].all()) == stays


def test_a_parked_car_is_gone_while_another_drives_through_it() -> None:
    context = road([(40.0, 3.2, 0.0), (30.0, 1.5, 9.0)])  # the second is put on the middle, and passes the first
    wide = dataclasses.replace(context, agents_size=np.full((5, 2), (4.5, 5.0)))
    found = react(wide, ego(y=-60.0))
    there = found.agents_valid[3]
    assert there[0]
    assert not there.all()


def test_far_away_it_is_not_driven() -> None:
    found = react(road([(20.0, 0.0, 5.0)]), ego(x=400.0))
    assert not found.agents_valid[3, 1:].any()


def test_what_overlaps_the_ego_now_counts_in_reactive_traffic() -> None:
    context = road([(0.5, 3.05, 0.0)])
    wide = dataclasses.replace(context, agents_size=np.full((4, 2), (4.5, 4.5)))
    assert not bool(collate([wide]).agents_valid[0, 3].any())  # the replay drops it
    assert bool(collate([react(wide, ego())]).agents_valid[0, 3, 0])


def test_without_rails_there_is_no_reactive_traffic() -> None:
    with pytest.raises(SampleError, match="no rails for reactive traffic"):
        react(world(np.random.default_rng(3), "v2", 0), ego())
