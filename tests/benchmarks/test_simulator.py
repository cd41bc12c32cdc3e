"""The simulator counts right, and what the rules of the dispatcher are worth shows in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulator import USEFUL, Fleet, Simulation

SCENES = [256] * 300 + [192] * 500 + [128] * 200
SMALL = Fleet(gpus=40, raising=0.005, killing=0.002, gpu_mtbf=5, node_mtbf=5, slow_nodes=0.2)


@given(
    seed=st.integers(0, 1000),
    in_flight=st.integers(1, 3),
    hours=st.sampled_from([0.0, 0.5, 5.0]),
    preempt=st.sampled_from([0.0, 1.0]),
    broken=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_every_gpu_second_and_every_task_is_in_one_account(
    seed: int, in_flight: int, hours: float, preempt: float, broken: int
) -> None:
    fleet = SMALL.model_copy(
        update={
            "seed": seed,
            "in_flight": in_flight,
            "gpu_mtbf": hours,
            "node_mtbf": hours,
            "preempt_mtbf": preempt,
            "broken": broken,
        }
    )
    outcome = Simulation(SCENES, fleet).run()
    assert sum(outcome.seconds.values()) == pytest.approx(40 * outcome.makespan)
    assert all(seconds >= -1e-6 for seconds in outcome.seconds.values())
    assert outcome.done + outcome.failed + outcome.undone == len(SCENES)
    assert Simulation(SCENES, fleet).run() == outcome  # by seed


def test_a_calm_run_loses_what_can_be_reckoned() -> None:
    """40 tasks of 100 s on 4 GPUs: ten rounds, one load and one first decode before them."""
    fleet = Fleet(gpus=4, load_spread=0, scenes_per_second=1, driver_ms=0, link_ms=0).calm()
    fleet = fleet.model_copy(update={"load_spread": 0.0})
    outcome = Simulation([100] * 40, fleet).run()
    rounds = 10 * 100 + fleet.load_seconds + fleet.fill_seconds
    assert rounds <= outcome.makespan <= rounds + 2 * fleet.fill_seconds
    assert outcome.seconds["load"] == pytest.approx(4 * fleet.load_seconds)
    assert outcome.seconds[USEFUL] == pytest.approx(4000)
    assert outcome.done == 40


def test_faults_fail_only_the_tasks_that_are_at_fault() -> None:
    for seed in range(5):
        fleet = SMALL.model_copy(update={"seed": seed, "broken": 2, "preempt_mtbf": 1.0})
        outcome = Simulation(SCENES, fleet).run()
        assert outcome.wrongly_failed == 0
        assert outcome.undone == 0
        assert outcome.events["seats closed"] >= 1  # the broken ones


def test_a_slow_driver_shows_as_waiting_for_it() -> None:
    fleet = Fleet(gpus=100, in_flight=1, driver_ms=1000).calm()
    slow = Simulation(SCENES, fleet).run()
    quick = Simulation(SCENES, fleet.model_copy(update={"driver_ms": 1.0})).run()
    assert slow.driver_busy > 0.5
    assert slow.seconds["driver"] > 20 * quick.seconds["driver"]
