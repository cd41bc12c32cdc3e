"""Which task goes to which worker next: the driver's decisions, without Ray and without a clock of their own.

Tasks are numbers 0..n-1 in the order in which they should begin (longest first); workers sit on numbered seats, and a
seat whose worker dies gets a new one. The caller reports what happened and does what it is told, so that the Ray driver
(`cluster/driver.py`) and the simulator (`benchmarks/simulator.py`) run the same rules:

1. A task is *charged* an attempt when it raises, and when its worker dies while it is alone in it; `max_attempts`
   charges and it has failed. Where several were in a worker that died, none is charged and each is tried alone next,
   so that a task which kills its worker is found and its neighbours do not fail with it. A preemption or a node's
   death charges nobody, until one task has been there 30 times.
2. A task is not tried again on a seat where it was charged while another seat may have it; on the last one it comes
   after all fresh work. So one broken GPU cannot use up the attempts of every shard that it is given.
3. A worker whose tasks raised `max_attempts` times in a row is replaced. A seat that lost as many workers in a row
   without one task done is closed; when all are closed the run is given up.
4. A place beside a running task is filled only while as many tasks wait as there are seats, so that the last tasks
   spread over all workers and no slow one holds two of them.
5. A worker *hangs* when it has had a task, or has been loading, for longer than `cluster.timeouts` allows; it is then
   as good as dead (rules 1 and 3).
6. After a worker died or hung, its tasks, and the next one on its seat, are done *in a sandbox*: in a mode in which an
   image that ends its decoder ends nothing else. So poison costs one attempt, and no seat is closed for it.

Every decision costs O(1) while fresh work is left (a retry that waits for its seat adds a look at each free one).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from cluster.attempts import Attempts
from cluster.timeouts import LOAD_FLOOR, SHARD_FLOOR, Hang, Timeout


class Verdict(Enum):
    """What the caller does with a worker after it reported something bad of it."""

    KEEP = "keep"
    REPLACE = "replace"
    """Kill it, should it live, and start another one on its seat."""
    CLOSE = "close"
    """Kill it, should it live; its seat gets no other."""


@dataclass(slots=True)
class _Seat:
    """A place for a worker.

    Attributes:
        ready: a worker sits there and has loaded.
        closed: it gets no more workers.
        loading: since when its worker has been loading.
        running: task -> when it was given.
        errors: tasks that raised since the last that was done by this worker.
        strikes: workers lost since the last task that was done on this seat.
    """

    ready: bool = False
    closed: bool = False
    loading: float | None = None
    running: dict[int, float] = field(default_factory=dict)
    errors: int = 0
    strikes: int = 0


class Dispatcher:
    """The rules of this module, over `tasks` tasks and `seats` seats.

    A worker is started on every seat by the caller, at the beginning and where a `Verdict` says so. Times are seconds
    of any clock that does not go back; only rule 5 looks at them.

    Args:
        tasks: how many; task 0 should begin first.
        seats: how many workers.
        in_flight: tasks a worker holds at once.
        max_attempts: see rules 1 and 3.
        deadline: seconds that a worker may have a task, see rule 5; None goes by what the tasks took.
        load_deadline: the same for loading.
    """

    def __init__(
        self,
        tasks: int,
        seats: int,
        *,
        in_flight: int,
        max_attempts: int,
        deadline: float | None = None,
        load_deadline: float | None = None,
    ) -> None:
        self._tasks, self._in_flight, self._max_attempts = tasks, in_flight, max_attempts
        self._work = Timeout(deadline, SHARD_FLOOR)
        self._load = Timeout(load_deadline, LOAD_FLOOR)
        self._book = Attempts(max_attempts)
        self._seats = [_Seat() for _ in range(seats)]
        self._fresh = 0
        self._retries: deque[int] = deque()
        self._done = bytearray(tasks)
        self._done_count = 0
        self._failed: dict[int, str] = {}
        self._free: dict[int, None] = {}
        self._claims: dict[int, int] = {}
        """Seat -> a task that must be alone, which waits there until nothing else runs."""
        self._open = seats
        self._ready = 0
        self._retried = 0

    @property
    def finished(self) -> bool:
        """Every task is done or has failed, or no seat is left that could do it."""
        return self._done_count + len(self._failed) == self._tasks or not self._open

    @property
    def done(self) -> int:
        """Tasks done."""
        return self._done_count

    @property
    def left(self) -> int:
        """Tasks that are neither done nor failed."""
        return self._tasks - self._done_count - len(self._failed)

    @property
    def open(self) -> int:
        """Seats that have a worker, or will get one."""
        return self._open

    @property
    def ready(self) -> int:
        """Seats whose worker has loaded."""
        return self._ready

    @property
    def retried(self) -> int:
        """How often a task went back to be tried again, charged or not."""
        return self._retried

    @property
    def failed_tasks(self) -> dict[int, str]:
        """Task -> the reason of its last charge, for those that used up their attempts."""
        return self._failed

    @property
    def undone(self) -> dict[int, str]:
        """Task -> why, for those that are neither done nor failed; empty when `finished`, unless all seats closed."""
        left = (t for t in range(self._tasks) if not self._done[t] and t not in self._failed)
        return {t: self._book.reasons.get(t, "no worker was left to do it") for t in left}

    def add_seat(self) -> int:
        """One more seat, e.g. for a node that joined; a worker is to be started there."""
        self._seats.append(_Seat())
        self._open += 1
        return len(self._seats) - 1

    def placed(self, seat: int, now: float) -> None:
        """The worker on a seat has a machine, and loads; for a caller that wants to know of hangs there."""
        self._seats[seat].loading = None if self._seats[seat].ready else now

    def loading(self, now: float) -> dict[int, float]:
        """Seat -> seconds for which its worker has been loading."""
        return {seat: now - at.loading for seat, at in enumerate(self._seats) if at.loading is not None}

    def loaded(self, seat: int, now: float | None = None) -> None:
        """The worker on a seat is ready for tasks; `now` where the caller told when it was `placed`."""
        at = self._seats[seat]
        if now is not None and at.loading is not None:
            self._load.took(now - at.loading)
        at.ready, at.loading = True, None
        self._ready += 1
        self._update_free(seat)

    def lost(self, seat: int, reason: str, *, charge: bool = True) -> Verdict:
        """The worker on a seat is gone, loading or at work.

        Args:
            charge: False where it is known to be nobody's fault (a preemption).
        """
        at = self._seats[seat]
        running = list(at.running)
        suspects = self._book.suspects(running, charge=charge)
        self._empty(seat)
        for task in reversed(running):  # each goes to the head: the one given first ends up there
            if task not in suspects:
                self._again(task)
            elif len(suspects) == 1:
                self._charge(task, seat, reason)
            else:
                self._book.bisect(task, reason)
                self._again(task)
        at.strikes += charge
        return self._strike_out(seat)

    def overdue(self, now: float) -> list[Hang]:
        """The workers that hang, by the task that is over its time by most; each is then told to `hung`."""
        limit = self._load.limit
        out = [Hang(seat, None, took, limit * self._load.factor(seat)) for seat, took in self.loading(now).items()]
        limit = self._work.limit
        for seat, at in enumerate(self._seats):
            if at.ready and at.running:
                hangs = (
                    Hang(seat, task, now - given, limit * self._work.factor(task)) for task, given in at.running.items()
                )
                out.append(max(hangs, key=lambda hang: hang.seconds - hang.limit))
        return [hang for hang in out if hang.seconds > hang.limit]

    def hung(self, hang: Hang, reason: str) -> Verdict:
        """A worker hangs: as if it had died."""
        if hang.task is None:
            self._load.overran(hang.seat)
        else:
            self._work.overran(hang.task)
        return self.lost(hang.seat, reason)

    def sandbox(self, seat: int, task: int) -> bool:
        """Whether a task that is given to this seat now is to be done in a sandbox (rule 6)."""
        return task in self._book.sandbox or self._seats[seat].strikes > 0

    def away(self, seat: int) -> None:
        """The worker on a seat does not answer: it gets nothing more, until the caller says what became of it."""
        self._ready -= self._seats[seat].ready
        self._seats[seat].ready, self._seats[seat].loading = False, None
        self._update_free(seat)

    def close(self, seat: int) -> Verdict:
        """No worker will do on a seat (its machine does not see the data): what runs there goes back, uncharged."""
        running = list(self._seats[seat].running)
        self._empty(seat)
        for task in reversed(running):
            self._again(task)
        self._seats[seat].closed = True
        self._open -= 1
        return Verdict.CLOSE

    def completed(self, seat: int, task: int, now: float) -> None:
        """A task was done."""
        at = self._seats[seat]
        self._work.took(now - at.running[task])
        self._end(seat, task)
        at.errors = at.strikes = 0
        self._done[task] = 1
        self._done_count += 1
        self._book.done(task)

    def failed(self, seat: int, task: int, reason: str) -> Verdict:
        """A task raised."""
        at = self._seats[seat]
        self._end(seat, task)
        self._charge(task, seat, reason)
        at.errors += 1
        if at.errors < self._max_attempts:
            return Verdict.KEEP
        running = list(at.running)
        self._empty(seat)
        for other in reversed(running):
            self._again(other)
        at.strikes += 1
        return self._strike_out(seat)

    def assign(self, now: float) -> list[tuple[int, int]]:
        """What to start now, as (seat, task); each is running from here on."""
        given: list[tuple[int, int]] = []
        for level in range(self._in_flight):
            if not self._waiting + len(self._claims):
                break
            for seat in [s for s in self._free if len(self._seats[s].running) == level]:
                task = self._choose(seat, level)
                if task is not None:
                    given.append(self._give(seat, task, now))
                elif not self._waiting + len(self._claims):
                    break
        return given

    @property
    def _waiting(self) -> int:
        """Tasks that any seat may take."""
        return self._tasks - self._fresh + len(self._retries)

    def _choose(self, seat: int, level: int) -> int | None:
        """A task for a seat where `level` are running: a retry, else a fresh one, else a retry that it had before."""
        if seat in self._claims:
            return self._claims.pop(seat)
        if level and self._waiting < self._open:
            return None
        for task in self._retries:
            if self._may(task, seat):
                self._retries.remove(task)
                if not level or task not in self._book.alone:
                    return task
                self._claims[seat] = task  # it waits until the others have ended, and no more are begun here
                self._update_free(seat)
                return None
        if self._fresh < self._tasks:
            self._fresh += 1
            return self._fresh - 1
        for other, task in self._claims.items():
            if not level and self._may(task, seat):  # nothing runs here: it need not wait there
                del self._claims[other]
                self._update_free(other)
                return task
        return None

    def _may(self, task: int, seat: int) -> bool:
        """Whether a retry may go to a seat: not where it was charged, unless there is no other and nothing fresh."""
        tried = self._book.tried.get(task)
        if not tried or seat not in tried:
            return True
        return self._fresh == self._tasks and sum(self._seats[s].ready for s in tried) == self._ready

    def _give(self, seat: int, task: int, now: float) -> tuple[int, int]:
        at = self._seats[seat]
        at.running[task] = now
        self._update_free(seat)
        return seat, task

    def _end(self, seat: int, task: int) -> None:
        """A task is no longer running on a seat."""
        at = self._seats[seat]
        del at.running[task]
        self._update_free(seat)

    def _empty(self, seat: int) -> None:
        """Nobody sits on a seat, and nothing runs there."""
        at = self._seats[seat]
        self._ready -= at.ready
        at.ready, at.loading, at.errors = False, None, 0
        for task in list(at.running):
            self._end(seat, task)
        if seat in self._claims:
            self._retries.appendleft(self._claims.pop(seat))
        self._update_free(seat)

    def _strike_out(self, seat: int) -> Verdict:
        """Close a seat that has lost too many workers in a row."""
        at = self._seats[seat]
        if at.strikes < self._max_attempts:
            return Verdict.REPLACE
        at.closed = True
        self._open -= 1
        return Verdict.CLOSE

    def _charge(self, task: int, seat: int, reason: str) -> None:
        """Count an attempt against a task, and try it again or let it fail."""
        if self._book.charge(task, seat, reason):
            self._failed[task] = reason
        else:
            self._again(task)

    def _again(self, task: int) -> None:
        """Back to the head of the queue."""
        self._retried += 1
        self._retries.appendleft(task)

    def _update_free(self, seat: int) -> None:
        at = self._seats[seat]
        alone = any(task in self._book.alone for task in at.running)
        room = len(at.running) < self._in_flight and not alone and (seat not in self._claims or not at.running)
        if at.ready and room:
            self._free[seat] = None
        else:
            self._free.pop(seat, None)
