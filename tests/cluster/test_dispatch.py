"""The driver's rules: who gets what next, who is charged for what, when a task or a worker is given up."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.dispatch import Dispatcher, Verdict
from cluster.timeouts import Hang


def ready(  # type: ignore[no-untyped-def]
    tasks: int,
    seats: int,
    *,
    in_flight: int = 1,
    max_attempts: int = 3,
    deadline: float | None = None,
    load_deadline: float | None = None,
):
    dispatch = Dispatcher(
        tasks,
        seats,
        in_flight=in_flight,
        max_attempts=max_attempts,
        deadline=deadline,
        load_deadline=load_deadline,
    )
    for seat in range(seats):
        dispatch.loaded(seat)
    return dispatch


def test_tasks_begin_in_order_and_every_seat_gets_one_first() -> None:
    dispatch = ready(9, 3, in_flight=2)
    assert dispatch.assign(0) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5)]
    assert dispatch.assign(0) == []
    dispatch.completed(1, 1, 1.0)
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
    dispatch.completed(0, 0, 1)
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


def test_a_seat_that_is_added_takes_part() -> None:
    dispatch = ready(4, 1)
    dispatch.assign(0)
    seat = dispatch.add_seat()
    dispatch.loaded(seat)
    assert dispatch.assign(0) == [(1, 1)]


def test_a_hang_is_a_death_after_the_deadline_and_the_next_time_it_is_twice_as_long() -> None:
    dispatch = ready(3, 2, deadline=60)
    assert dispatch.assign(0) == [(0, 0), (1, 1)]
    assert dispatch.overdue(60) == []
    dispatch.completed(1, 1, 60)
    assert dispatch.overdue(61) == [Hang(seat=0, task=0, seconds=61, limit=60)]
    assert dispatch.hung(*dispatch.overdue(61), "hung") is Verdict.REPLACE
    assert dispatch.overdue(1000) == []  # nobody sits there
    assert dispatch.assign(61) == [(1, 0)]
    assert dispatch.overdue(61 + 120) == []
    assert [hang.limit for hang in dispatch.overdue(61 + 121)] == [120]
    dispatch.hung(*dispatch.overdue(61 + 121), "hung")
    dispatch.loaded(0)
    assert dispatch.assign(200) == [(0, 2)]
    dispatch.completed(0, 2, 201)
    assert dispatch.assign(201) == [(0, 0)]  # it was charged on both
    (last,) = dispatch.overdue(201 + 241)
    dispatch.hung(last, "hung again")
    assert dispatch.failed_tasks == {0: "hung again"}
    assert dispatch.finished


def test_a_hang_beside_others_charges_nobody_and_each_is_tried_alone() -> None:
    dispatch = ready(4, 1, in_flight=2, deadline=10)
    assert dispatch.assign(0) == [(0, 0), (0, 1)]
    dispatch.completed(0, 0, 5)
    assert dispatch.assign(5) == [(0, 2)]
    (hang,) = dispatch.overdue(12)
    assert hang.task == 1
    assert dispatch.hung(hang, "hung") is Verdict.REPLACE
    dispatch.loaded(0)
    assert dispatch.assign(12) == [(0, 1)]
    dispatch.completed(0, 1, 13)
    assert dispatch.assign(13) == [(0, 2)]


def test_without_a_deadline_what_tasks_took_says_what_is_too_long() -> None:
    dispatch = ready(300, 2)
    dispatch.assign(0)
    assert dispatch.overdue(6 * 3600) == []  # nothing is known yet
    assert [hang.limit for hang in dispatch.overdue(6 * 3600 + 1)] == [6 * 3600] * 2
    dispatch.completed(0, 0, 20)
    assert dispatch.overdue(1800) == []  # a quick task does not make the next one's hang of a slow disk
    assert [(hang.seat, hang.limit) for hang in dispatch.overdue(1801)] == [(1, 1800)]
    dispatch.completed(1, 1, 1000)
    now = 1000.0
    dispatch.assign(now)
    assert dispatch.overdue(now + 5_000) == []
    assert [hang.limit for hang in dispatch.overdue(now + 5_001)] == [5_000] * 2
    while dispatch.left > 20:  # one slow hour is forgotten
        for seat, task in list(running(dispatch)):
            now += 1
            dispatch.completed(seat, task, now)
        dispatch.assign(now)
    assert {hang.limit for hang in dispatch.overdue(now + 4_000)} == {1800}


def running(dispatch: Dispatcher) -> list[tuple[int, int]]:
    return [(seat, task) for seat in range(len(dispatch._seats)) for task in running_on(dispatch, seat)]


def test_a_hang_while_loading_is_a_death_while_loading() -> None:
    """The seat is struck, nothing is charged, the next load there has twice as long, and the run goes on or ends."""
    dispatch = Dispatcher(3, 2, in_flight=1, max_attempts=3, load_deadline=60)
    for seat in (0, 1):
        dispatch.placed(seat, 5)
    dispatch.loaded(0, 20)
    assert dispatch.assign(20) == [(0, 0)]
    assert dispatch.loading(25) == {1: 20}
    assert dispatch.overdue(65) == []
    now = 5.0
    for limit, verdict in ((60, Verdict.REPLACE), (120, Verdict.REPLACE), (240, Verdict.CLOSE)):
        now += limit
        assert dispatch.overdue(now) == []
        (hang,) = dispatch.overdue(now + 1)
        assert hang == Hang(seat=1, task=None, seconds=limit + 1, limit=limit)
        assert dispatch.hung(hang, "hung") is verdict
        assert dispatch.overdue(now + 1000) == []  # its next worker waits for room, and loads nothing
        dispatch.placed(1, now)
    for task in range(3):
        dispatch.completed(0, task, now)
        dispatch.assign(now)
    assert dispatch.finished
    assert dispatch.failed_tasks == {}


def test_a_run_whose_workers_hang_while_they_load_ends() -> None:
    dispatch = Dispatcher(5, 2, in_flight=1, max_attempts=2, load_deadline=10)
    now = 0.0
    for seat in (0, 1):
        dispatch.placed(seat, now)
    while not dispatch.finished:
        now += 100
        for hang in dispatch.overdue(now):
            if dispatch.hung(hang, "hung") is Verdict.REPLACE:
                dispatch.placed(hang.seat, now)
    assert now == 200
    assert len(dispatch.undone) == 5


def test_only_who_has_a_machine_and_has_not_loaded_is_loading() -> None:
    dispatch = Dispatcher(4, 5, in_flight=1, max_attempts=1, load_deadline=10)
    for seat in range(4):
        dispatch.placed(seat, 0)
    dispatch.loaded(0, 5)
    dispatch.placed(0, 6)  # an answer that came late
    dispatch.away(1)
    dispatch.lost(2, "its node is gone", charge=False)
    dispatch.close(3)
    assert dispatch.loading(100) == {}
    assert dispatch.overdue(100) == []


def test_without_a_deadline_what_loads_took_says_what_is_too_long() -> None:
    dispatch = Dispatcher(9, 3, in_flight=1, max_attempts=3)
    for seat in range(3):
        dispatch.placed(seat, 0)
    assert dispatch.overdue(6 * 3600) == []  # nothing is known yet
    assert [(hang.seat, hang.limit) for hang in dispatch.overdue(6 * 3600 + 1)] == [(s, 6 * 3600) for s in range(3)]
    dispatch.loaded(0, 60)
    assert dispatch.overdue(7200) == []  # another may have to download what this one had on its disk
    assert [(hang.seat, hang.limit) for hang in dispatch.overdue(7201)] == [(1, 7200), (2, 7200)]
    dispatch.loaded(1, 3000)
    assert dispatch.overdue(15_000) == []
    assert [(hang.seat, hang.limit) for hang in dispatch.overdue(15_001)] == [(2, 15_000)]


def test_what_was_in_a_worker_that_died_is_done_in_a_sandbox_and_so_is_the_next_on_its_seat() -> None:
    dispatch = ready(6, 2, in_flight=2)
    assert dispatch.assign(0) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert not any(dispatch.sandbox(seat, task) for seat in (0, 1) for task in range(4))
    dispatch.lost(0, "died")
    dispatch.loaded(0)
    assert dispatch.assign(1) == [(0, 0)]
    assert dispatch.sandbox(0, 0)
    dispatch.completed(0, 0, 2)
    assert dispatch.assign(2) == [(0, 2)]
    assert dispatch.sandbox(0, 2)  # it was there too, although the seat has done one since
    dispatch.completed(0, 2, 3)
    assert dispatch.assign(3)[0] == (0, 4)
    assert not dispatch.sandbox(0, 4)
    dispatch.lost(1, "preempted", charge=False)
    dispatch.loaded(1)
    assert not any(dispatch.sandbox(1, task) for task in (1, 3))


def test_poison_in_every_shard_closes_no_seat() -> None:
    """Each task ends its worker unless it is done in a sandbox: one attempt each, at most, and all are done."""
    for in_flight in (1, 2):
        dispatch = ready(50, 2, in_flight=in_flight)
        now, deaths = 0.0, 0
        sandboxed: dict[tuple[int, int], bool] = {}
        while not dispatch.finished:
            sandboxed |= {(seat, task): dispatch.sandbox(seat, task) for seat, task in dispatch.assign(now)}
            now += 1
            for seat in (0, 1):
                here = running_on(dispatch, seat)
                if any(not sandboxed[seat, task] for task in here):
                    deaths += 1
                    assert dispatch.lost(seat, "SIGSEGV") is Verdict.REPLACE
                    dispatch.loaded(seat)
                else:
                    for task in here:
                        dispatch.completed(seat, task, now)
        assert dispatch.failed_tasks == {}
        assert dispatch.done == 50
        assert deaths <= 50


@given(
    tasks=st.integers(1, 40),
    seats=st.integers(1, 6),
    in_flight=st.integers(1, 3),
    max_attempts=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_under_any_faults_the_accounting_closes(
    tasks: int, seats: int, in_flight: int, max_attempts: int, seed: int
) -> None:
    """Random orders, poison that raises, that kills, that hangs, broken seats, deaths and hangs of who loads."""
    first = play(tasks, seats, in_flight, max_attempts, seed)
    assert play(tasks, seats, in_flight, max_attempts, seed) == first  # the same history, by seed


def play(tasks: int, seats: int, in_flight: int, max_attempts: int, seed: int) -> list[tuple[object, ...]]:
    rng = random.Random(seed)
    raises = {t for t in range(tasks) if rng.random() < 0.1}
    kills = {t for t in range(tasks) if rng.random() < 0.05}
    hangs = {t for t in range(tasks) if rng.random() < 0.05}
    broken = {s for s in range(seats) if rng.random() < 0.15}
    trouble = rng.choice([0.0, 0.05, 0.3])
    dispatch = Dispatcher(
        tasks,
        seats,
        in_flight=in_flight,
        max_attempts=max_attempts,
        deadline=100,
        load_deadline=1e6,
    )
    running: dict[int, set[int]] = defaultdict(set)
    loading, live = set(range(seats)), set()
    for seat in loading:
        dispatch.placed(seat, 0.0)
    done: set[int] = set()
    charges: Counter[int] = Counter()
    overran: Counter[int] = Counter()
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
                dispatch.placed(seat, now)

    for _ in range(20_000):
        for seat, task in dispatch.assign(now):
            history.append((seat, task))
            assert seat in live, "a worker that is not there"
            assert len(running[seat]) < in_flight, "more than it holds"
            assert task not in done, "done already"
            assert task not in dispatch.failed_tasks, "given up already"
            assert not any(task in there for there in running.values()), "another attempt of it is running"
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
                if not busy and rng.random() < 0.5:
                    now += 1e6 * 2 ** max(overran[s] for s in loading) + 1  # each overrun doubles what a seat may take
                    overdue = dispatch.overdue(now)
                    overran.update(hang.seat for hang in overdue)
                    assert {(hang.seat, hang.task) for hang in overdue} == {(s, None) for s in loading}
                    for hang in overdue:
                        after(dispatch.hung(hang, "hung loading"), hang.seat)
                else:
                    after(dispatch.lost(seat, "died loading"), seat)
            else:
                loading.discard(seat)
                live.add(seat)
                dispatch.loaded(seat, now)
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
        elif task in hangs:
            now += 100 * 2**max_attempts + 1  # so all that runs does, by then
            overdue = dispatch.overdue(now)
            assert {hang.seat for hang in overdue} == {s for s, _ in busy}
            for hang in overdue:
                assert hang.task in running[hang.seat]
                for t in running[hang.seat]:
                    charges[t] += len(running[hang.seat]) == 1
                after(dispatch.hung(hang, "hung"), hang.seat)
        elif task in raises or seat in broken:
            charges[task] += 1
            running[seat].discard(task)
            after(dispatch.failed(seat, task, "raised"), seat)
        else:
            running[seat].discard(task)
            history.append(("done", seat, task))
            assert task not in done
            dispatch.completed(seat, task, now)
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
    if trouble == 0 and not broken and not kills and not hangs:
        assert failed <= raises
    return history
