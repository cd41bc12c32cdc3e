"""The driver's rules: who gets what next, who is charged for what, when a task or a worker is given up."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dispatch import Dispatcher, Verdict


def ready(tasks: int, seats: int, *, in_flight: int = 1, max_attempts: int = 3, speculate: float | None = None):  # type: ignore[no-untyped-def]
    dispatch = Dispatcher(tasks, seats, in_flight=in_flight, max_attempts=max_attempts, speculate=speculate)
    for seat in range(seats):
        dispatch.loaded(seat)
    return dispatch


def test_tasks_begin_in_order_and_every_seat_gets_one_first() -> None:
    dispatch = ready(9, 3, in_flight=2)
    assert dispatch.assign(0) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5)]
    assert dispatch.assign(0) == []
    assert dispatch.completed(1, 1, 1.0)
    assert dispatch.assign(1) == [(1, 6)]


def test_the_last_tasks_spread_over_all_workers() -> None:
    """Three tasks, and the second worker loads later: the first does not take two of the last ones."""
    dispatch = Dispatcher(2, 2, in_flight=2, max_attempts=3)
    dispatch.loaded(0)
    assert dispatch.assign(0) == [(0, 0)]
    dispatch.loaded(1)
    assert dispatch.assign(0) == [(1, 1)]


def test_a_task_that_always_raises_fails_after_its_attempts_on_different_seats_and_the_others_are_done() -> None:
    dispatch = ready(20, 4)
    seen: list[int] = []
    now = 0.0
    while not dispatch.finished:
        for seat, task in dispatch.assign(now):
            now += 1
            if task == 7:
                seen.append(seat)
                assert dispatch.failed(seat, task, "poison") is Verdict.KEEP
            else:
                dispatch.completed(seat, task, now)
    assert len(seen) == len(set(seen)) == 3
    assert dispatch.failed_tasks == {7: "poison"}
    assert dispatch.done == 19
    assert dispatch.undone == {}


def test_one_broken_gpu_is_removed_and_costs_no_task() -> None:
    """It raises at once on whatever it gets, so that it would be given everything."""
    dispatch = ready(200, 4, in_flight=2)
    verdicts = []
    now = 0.0
    while not dispatch.finished:
        started = dispatch.assign(now)
        now += 1
        for seat, task in started:
            if seat == 2:
                if task in running_on(dispatch, 2):  # else it was taken away with the worker
                    verdicts.append(dispatch.failed(seat, task, "CUDA error"))
                    if verdicts[-1] is Verdict.REPLACE:
                        dispatch.loaded(2)
            else:
                dispatch.completed(seat, task, now)
    assert verdicts == ([Verdict.KEEP] * 2 + [Verdict.REPLACE]) * 2 + [Verdict.KEEP] * 2 + [Verdict.CLOSE]
    assert dispatch.done == 200
    assert dispatch.failed_tasks == {}


def running_on(dispatch: Dispatcher, seat: int) -> set[int]:
    return set(dispatch._seats[seat].running)


def test_a_task_that_kills_its_worker_does_not_take_its_neighbours_with_it() -> None:
    """One worker, two tasks in flight: the neighbour dies with the poison until each is tried alone."""
    dispatch = ready(6, 1, in_flight=2, max_attempts=3)
    deaths = 0
    now = 0.0
    running: list[int] = []
    while not dispatch.finished:
        running += [task for _, task in dispatch.assign(now)]
        now += 1
        if 1 in running:
            deaths += 1
            running.clear()
            assert dispatch.lost(0, "died") is Verdict.REPLACE
            dispatch.loaded(0)
        else:
            dispatch.completed(0, running.pop(0), now)
    assert dispatch.failed_tasks == {1: "died"}
    assert dispatch.done == 5
    assert deaths == 1 + 3  # once beside another, three times alone


def test_preemptions_charge_nobody() -> None:
    dispatch = ready(1, 1, max_attempts=2)
    for _ in range(20):
        assert dispatch.assign(0) == [(0, 0)]
        assert dispatch.lost(0, "preempted", charge=False) is Verdict.REPLACE
        dispatch.loaded(0)
    dispatch.assign(0)
    assert dispatch.completed(0, 0, 1)
    assert dispatch.finished


def test_a_run_whose_workers_never_load_ends() -> None:
    dispatch = Dispatcher(5, 2, in_flight=1, max_attempts=3)
    for seat in (0, 1):
        assert [dispatch.lost(seat, "no GPU") for _ in range(3)] == [Verdict.REPLACE] * 2 + [Verdict.CLOSE]
    assert dispatch.finished
    assert len(dispatch.undone) == 5


def test_deaths_while_loading_do_not_add_up_over_a_long_run() -> None:
    """A thousand GPUs lose a loading worker now and then; what counts is how often in a row on one seat."""
    dispatch = ready(100, 2)
    now = 0.0
    while not dispatch.finished:
        for seat, task in dispatch.assign(now):
            now += 1
            dispatch.completed(seat, task, now)
        for _ in range(2):
            assert dispatch.lost(1, "died loading") is Verdict.REPLACE
        dispatch.loaded(1)
    assert dispatch.done == 100


def test_speculation_copies_only_the_late_and_counts_once() -> None:
    dispatch = ready(3, 2, speculate=2.0)
    assert dispatch.assign(0) == [(0, 0), (1, 1)]
    assert dispatch.completed(1, 1, 10.0)
    assert dispatch.assign(10) == [(1, 2)]
    assert dispatch.completed(1, 2, 18.0)
    assert dispatch.assign(17) == []  # tasks took 8 and 10 s, so one is late after twice 9
    assert dispatch.wake(17) == 18
    assert dispatch.assign(18) == [(1, 0)]
    assert dispatch.wake(18) is None
    assert dispatch.assign(21) == []  # never a third
    assert dispatch.completed(1, 0, 25)
    assert dispatch.finished
    assert not dispatch.completed(0, 0, 90)
    assert dispatch.done == 3


def test_a_copy_stands_in_for_a_task_whose_worker_dies() -> None:
    dispatch = ready(2, 2, speculate=2.0)
    dispatch.assign(0)
    dispatch.completed(1, 1, 1.0)
    assert dispatch.assign(3) == [(1, 0)]
    assert dispatch.lost(0, "died") is Verdict.REPLACE
    dispatch.loaded(0)
    assert dispatch.assign(3.5) == []  # it is running still
    assert dispatch.completed(1, 0, 4)
    assert dispatch.finished


def test_a_seat_that_is_added_takes_part() -> None:
    dispatch = ready(4, 1)
    dispatch.assign(0)
    seat = dispatch.add_seat()
    dispatch.loaded(seat)
    assert dispatch.assign(0) == [(1, 1)]


@given(
    tasks=st.integers(1, 40),
    seats=st.integers(1, 6),
    in_flight=st.integers(1, 3),
    max_attempts=st.integers(1, 4),
    speculate=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_under_any_faults_the_accounting_closes(
    tasks: int, seats: int, in_flight: int, max_attempts: int, speculate: float | None, seed: int
) -> None:
    """Random orders, poison that raises, poison that kills, broken seats, deaths, preemptions, joins."""
    first = play(tasks, seats, in_flight, max_attempts, speculate, seed)
    assert play(tasks, seats, in_flight, max_attempts, speculate, seed) == first  # the same history, by seed


def play(
    tasks: int, seats: int, in_flight: int, max_attempts: int, speculate: float | None, seed: int
) -> list[tuple[object, ...]]:
    rng = random.Random(seed)
    raises = {t for t in range(tasks) if rng.random() < 0.1}
    kills = {t for t in range(tasks) if rng.random() < 0.05}
    broken = {s for s in range(seats) if rng.random() < 0.15}
    trouble = rng.choice([0.0, 0.05, 0.3])
    dispatch = Dispatcher(tasks, seats, in_flight=in_flight, max_attempts=max_attempts, speculate=speculate)
    running: dict[int, set[int]] = defaultdict(set)
    loading, live = set(range(seats)), set()
    done: set[int] = set()
    charges: Counter[int] = Counter()
    history: list[tuple[object, ...]] = []
    now = 0.0

    def after(verdict: Verdict, seat: int) -> None:
        history.append((verdict.name, seat))
        if verdict is not Verdict.KEEP:
            running[seat].clear()
            live.discard(seat)
            loading.discard(seat)
            if verdict is Verdict.REPLACE:
                loading.add(seat)

    for _ in range(20_000):
        for seat, task in dispatch.assign(now):
            history.append((seat, task))
            assert seat in live, "a worker that is not there"
            assert len(running[seat]) < in_flight, "more than it holds"
            assert task not in done, "done already"
            assert task not in dispatch.failed_tasks, "given up already"
            copies = sum(task in tasks_there for tasks_there in running.values())
            assert copies <= (1 if speculate else 0), "another attempt of it is running"
            running[seat].add(task)
        if dispatch.finished:
            break
        idle = [s for s in live if not running[s]]
        waiting = set(range(tasks)) - done - set(dispatch.failed_tasks) - set().union(*running.values())
        if idle and not any(running.values()):
            assert not waiting, "work waits, and no worker has any"
        if idle and len(idle) == len(live):
            assert not waiting
        untouched = {t for t in waiting if charges[t] == 0}
        assert not (idle and untouched), "a worker has nothing, and fresh work waits"
        now += rng.random()
        busy = [(s, t) for s in sorted(live) for t in sorted(running[s])]
        if loading and (not busy or rng.random() < 0.5):
            seat = rng.choice(sorted(loading))
            if rng.random() < trouble:
                after(dispatch.lost(seat, "died loading"), seat)
            else:
                loading.discard(seat)
                live.add(seat)
                dispatch.loaded(seat)
            continue
        assert busy, "nothing runs, nothing loads, and it is not finished"
        seat, task = rng.choice(busy)
        if rng.random() < trouble:
            if rng.random() < 0.5:
                after(dispatch.lost(seat, "preempted", charge=False), seat)
            else:
                for t in running[seat]:
                    charges[t] += len(running[seat]) == 1
                after(dispatch.lost(seat, "died"), seat)
        elif kills & running[seat]:
            for t in running[seat]:
                charges[t] += len(running[seat]) == 1
            after(dispatch.lost(seat, "killed"), seat)
        elif task in raises or seat in broken:
            charges[task] += task not in done
            running[seat].discard(task)
            after(dispatch.failed(seat, task, "raised"), seat)
        else:
            running[seat].discard(task)
            history.append(("done", seat, task))
            assert dispatch.completed(seat, task, now) == (task not in done)
            done.add(task)
    else:
        raise AssertionError("it does not end")
    failed, undone = set(dispatch.failed_tasks), set(dispatch.undone)
    assert dispatch.done == len(done)
    assert done.isdisjoint(failed)
    assert undone == set(range(tasks)) - done - failed
    assert not undone or not (live | loading), "work was left although a seat was open"
    for task in failed:
        assert charges[task] >= max_attempts, "given up before its attempts were used up"
    if trouble == 0 and not broken and not kills:
        assert failed <= raises
    return history
