"""The driver: hand shards to actors until all are done.

It does what `cluster.dispatch` decides. Each actor hosts one `ShardWorker` and holds `shards_in_flight` tasks at once
(so that decoding, teaching and writing overlap); only tasks and receipts, some kilobytes, cross the wire. An actor that
dies, or hangs, loading or at work, beyond its deadline and is killed for it, is replaced and its shards are tried
again; that is safe because a shard done twice writes the same bytes to the same names.

Nodes come and go. A worker that went with its node is nobody's fault: its shards are not charged, and its replacement
waits until some node has room. A node that joins gets workers where the config leaves their number open.

However it ends, it leaves no worker behind: see `cluster.ends`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError, WorkerCrashedError

from cluster import ends, shipping
from cluster.actor import TeacherActor
from cluster.dispatch import Dispatcher, Verdict
from cluster.session import ClusterConfig, host, joining, reachable, room, worker_count
from pipeline.writing.task import ShardReceipt, ShardTask
from pipeline.writing.worker import ShardWorker
from shards_schema.errors import IncompleteError, ShardsError

_LOST = (RayActorError, WorkerCrashedError)
"""The actor is gone (killed, crashed, its node died); any other exception came from the task itself."""

_TICK = 1.0
"""Seconds between two looks at what Ray does not tell: a request to stop, a node's death."""
_LOOK = 5.0
"""Seconds between two looks at the list of nodes."""
_NODE_DEATH = 3.0
"""Seconds after a worker's death within which its node dies too, if they die together."""
_NOTICE = 60.0
"""Seconds without any worker after which a person is told."""
_AWAKE = 10.0
"""Seconds between two looks at the clock that count; what is more, this process has slept."""
_SLOW = 300.0
"""Seconds of loading after which a person is told, and again."""
_NAMED = 5
"""How many of the workers that are slow to load are named."""
_CLOSE = 10.0
"""Seconds for the workers to close when all is done."""
_PLACE, _LOAD = -2, -1
"""What a new worker is asked; tasks are 0 and up."""


class StoppedError(Exception):
    """The run was asked to stop, and has: `abandoned` shards were under way, `left` are still to do (with those)."""

    def __init__(self, left: int, abandoned: int) -> None:
        super().__init__(
            f"stopped on SIGTERM: {left} shards are left to do"
            + (f", {abandoned} of them were given up half way" if abandoned else "")
        )


def drive(
    tasks: Sequence[ShardTask],
    make: Callable[[], ShardWorker],
    *,
    config: ClusterConfig,
    in_flight: int,
    on_start: Callable[[int], None],
    on_receipt: Callable[[ShardReceipt], None],
    on_look: Callable[[int, int], None] = lambda ready, retried: None,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run every task, in the order given, on `worker_count(config)` actors.

    Args:
        tasks: each is looked up when it is handed out, so a sequence that makes them as they are asked for will do.
        make: builds a worker, in the actor; must pickle.
        in_flight: tasks an actor holds at once.
        on_start: called with the process id of an actor that is ready.
        on_receipt: called once for each task that was done.
        on_look: called every second or more often, with how many workers are ready and how often a shard was given
            back to be tried again.
        stop: asked every second; from True on nothing is begun, and what runs has `grace_seconds`.
        tell: gets a line for a person when workers come or go.

    Raises:
        ShardsError: a worker cannot load (the error of the worker).
        IncompleteError: some shards failed `max_attempts` times, or no worker was left for them; the reasons are
            named, everything else is done.
        StoppedError: `stop` said so before all was done.
    """
    if tasks:
        _Driver(tasks, make, config, in_flight, on_start, on_receipt, on_look, stop, tell).run()


class AwakeClock:
    """The dispatcher's clock: seconds that this process was awake since this was made.

    A driver that was stopped (SIGSTOP, the lid of a laptop) finds out late what ended meanwhile, and must not take it
    for hung. It looks at this clock every second or so.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = clock()
        self._seconds = 0.0

    def __call__(self) -> float:
        """The seconds."""
        now = self._clock()
        self._seconds += min(now - self._seen, _AWAKE)
        self._seen = now
        return self._seconds


@dataclass(eq=False)
class _Driver:
    """What `drive` was given, and its state: what was asked of Ray, and of which seat's actor."""

    tasks: Sequence[ShardTask]
    make: Callable[[], ShardWorker]
    config: ClusterConfig
    in_flight: int
    on_start: Callable[[int], None]
    on_receipt: Callable[[ShardReceipt], None]
    on_look: Callable[[int, int], None]
    stop: Callable[[], bool]
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        tasks, config = self.tasks, self.config
        # once, not with each of a thousand actors
        self._env = ray.put(shipping.passed(config.env) if joining() else {})
        self._make = ray.put(self.make)
        self._options = {
            "num_cpus": config.cpus_per_worker,
            "num_gpus": config.gpus_per_worker,
            "max_concurrency": self.in_flight,
            "scheduling_strategy": "SPREAD",  # where there is more room than workers
        }
        self._known = set(room(config))  # first: a node that joins before they are counted has its workers then
        self._begun = min(worker_count(config), len(tasks))
        self._dispatch = Dispatcher(
            len(tasks),
            self._begun,
            in_flight=self.in_flight,
            max_attempts=config.max_attempts,
            deadline=config.shard_seconds,
            load_deadline=config.load_seconds,
        )
        self._actors: dict[int, Any] = {}
        self._parked: list[Any] = []  # actors on machines that will not do
        self._nodes: dict[int, str] = {}
        """Seat -> the node of its worker, once it is there."""
        self._pids: dict[int, int] = {}  # likewise
        self._processes: dict[str, set[ends.Process]] = {}
        """Node -> every worker that was ever put there."""
        self._asked: dict[Any, tuple[int, int]] = {}
        """Reference -> seat and task; `_PLACE` and `_LOAD` for what a new worker is asked."""
        self._dying: dict[int, tuple[float, str]] = {}
        """Seat -> until when its dead worker's node may turn out dead too, and how the worker died."""
        self._cause: Exception | None = None
        self._now = AwakeClock()
        self._last_ready = time.monotonic()
        self._next_look = self._last_ready + _LOOK
        self._next_notice = self._last_ready + _SLOW
        self._stopping = False

    def run(self) -> None:
        try:
            self._drive()
        finally:
            self._see_off(asked=self._dispatch.finished)
        self._report()

    def _drive(self) -> None:
        for seat in range(self._begun):
            self._start(seat)
        while not self._dispatch.finished and not self.stop():
            self._look(time.monotonic())
            for seat, task in self._dispatch.assign(self._now()):
                given = replace(self.tasks[task], sandbox=self._dispatch.sandbox(seat, task))
                self._asked[self._actors[seat].process.remote(given)] = (seat, task)
            self._take_ended()
            self._end_hangs()
        if not self._dispatch.finished:
            self._wind_down()

    def _see_off(self, *, asked: bool) -> None:
        """No worker outlives this. Where they are `asked`, those without work close their threads first."""
        busy = {seat for seat, _ in self._asked.values()}
        with suppress(RayError, ConnectionError):
            if closing := [a.close.remote() for seat, a in self._actors.items() if asked and seat not in busy]:
                ray.wait(closing, num_returns=len(closing), timeout=_CLOSE)
            for actor in [*self._actors.values(), *self._parked]:
                ray.kill(actor)
        ends.see_off(self._processes, self.tell)

    def _wind_down(self) -> None:
        """Begin nothing; let what runs end, or give it up. Raises StoppedError unless that was all there was."""
        self._stopping = True
        deadline = time.monotonic() + self.config.grace_seconds
        self.tell(f"SIGTERM: beginning nothing new; {self._running} shards under way have until {_clock(deadline)}")
        while self._running and time.monotonic() < deadline and not self._dispatch.finished:
            self._take_ended()
        if not self._dispatch.finished:
            raise StoppedError(self._dispatch.left, self._running)

    @property
    def _running(self) -> int:
        return sum(task >= 0 for _, task in self._asked.values())

    def _start(self, seat: int) -> None:
        actor = TeacherActor.options(**self._options).remote(  # type: ignore[attr-defined]
            [self._env], os.getcwd(), [self._make], self._begun == 1
        )
        self._actors[seat] = actor
        self._nodes.pop(seat, None)
        self._pids.pop(seat, None)
        self._asked[actor.place.remote()] = (seat, _PLACE)
        self._asked[actor.load.remote()] = (seat, _LOAD)

    def _look(self, now: float) -> None:
        """What nobody reports: nodes that joined, and that there is no worker at all."""
        self.on_look(self._dispatch.ready, self._dispatch.retried)
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        if self.config.workers is None and self.config.gpus_per_worker:
            places = room(self.config)
            new = places.keys() - self._known
            self._known |= new
            more = min(
                sum(places[node] for node in new),
                sum(places.values()) - self._dispatch.open,
                self._dispatch.left - self._dispatch.open,
            )
            for _ in range(more):
                self._start(self._dispatch.add_seat())
            if more > 0:
                self.tell(f"{len(new)} nodes joined: {more} more workers")
        if self._dispatch.ready:
            self._last_ready = now
        elif now - self._last_ready > _NOTICE:
            self._last_ready = now
            self.tell(f"no worker for a minute: {self._dispatch.open} load, or wait for a node that has room for them")
        if now >= self._next_notice:
            self._next_notice = now + _SLOW
            self._tell_of_slow_loads()

    def _tell_of_slow_loads(self) -> None:
        """Who has been loading for long: the one sign of a disk that does not answer, until `load_seconds` are over."""
        slow = {seat: seconds for seat, seconds in self._dispatch.loading(self._now()).items() if seconds > _SLOW}
        if slow:
            longest = sorted(slow, key=lambda seat: -slow[seat])[:_NAMED]
            named = ", ".join(f"{self._where(seat)} for {slow[seat] / 60:.0f} min" for seat in longest)
            self.tell(
                f"workers that still load their teachers: {named}"
                + (f", and {len(slow) - _NAMED} more" if len(slow) > _NAMED else "")
            )

    def _take_ended(self) -> None:
        for reference in self._ended():
            if reference in self._asked:  # else its worker was given up for another of its tasks
                self._take(reference, *self._asked.pop(reference))
        self._remove_dead(time.monotonic())

    def _ended(self) -> list[Any]:
        """Waits until something has ended or it is time to look up; all that has ended: one look at
        thousands of references costs milliseconds, and is shared by all that came in meanwhile."""
        references = list(self._asked)
        if not references:
            time.sleep(_TICK)  # only dead workers, whose nodes may be dead too
            return []
        first, _ = ray.wait(references, num_returns=1, timeout=_TICK)
        if not first:
            return []
        ended, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return list(ended or first)

    def _take(self, reference: Any, seat: int, task: int) -> None:
        """What became of one thing that was asked."""
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if task >= 0:
                self._act(self._dispatch.failed(seat, task, f"{type(error.cause).__name__}: {error.cause}"), seat)
            elif not isinstance(error.cause, ShardsError):
                self._cause = error  # as likely this GPU's own trouble as everybody's
                self._act(self._dispatch.lost(seat, f"its worker could not load ({error.cause})"), seat)
            elif seat < self._begun and not self._dispatch.done:
                raise error.cause from error
            else:  # a machine that came later must not end what runs well
                self._cause = error.cause
                self._parked.append(self._actors.pop(seat))  # it keeps its place, or the next one would be put there
                self.tell(f"a worker could not load, and gets no other: {error.cause}")
                self._act(self._dispatch.close(seat), seat)
        except _LOST as error:
            self._lost(seat, task, error)
        else:
            if task == _PLACE:
                self._nodes[seat], process = answer
                self._pids[seat] = process.pid
                self._processes.setdefault(self._nodes[seat], set()).add(process)
                self._dispatch.placed(seat, self._now())
            elif task == _LOAD:
                self._dispatch.loaded(seat, self._now())
                self.on_start(answer)
            else:
                self._dispatch.completed(seat, task, self._now())
                self.on_receipt(answer)

    def _end_hangs(self) -> None:
        """Kill and replace the workers that have had a shard, or have been loading, for too long."""
        for hang in self._dispatch.overdue(self._now()):
            where, time_given = self._where(hang.seat), f"{hang.seconds:.0f} s, and {hang.limit:.0f} are given"
            if hang.task is None:
                how = f"has been loading its teachers for {time_given} (cluster.load_seconds)"
                self._cause = IncompleteError(f"workers hung while they loaded the teachers: {where} {how}")
                self.tell(f"a worker hangs: {where} {how}; it is killed")
            else:
                how = f"has had shard {self.tasks[hang.task].shard} for {time_given} (cluster.shard_seconds)"
                self.tell(f"a worker hangs: {where} {how}; it is killed, and what it had is tried again")
            self._act(self._dispatch.hung(hang, f"its worker hung: {where} {how}"), hang.seat)

    def _where(self, seat: int) -> str:
        """The worker of a seat, for a person to find."""
        return f"process {self._pids.get(seat, 'unknown')} on host {host(self._nodes.get(seat, 'unknown'))}"

    def _lost(self, seat: int, task: int, error: Exception) -> None:
        """A worker is gone. Whose fault that is may take Ray some seconds to know; nothing more comes of it anyhow."""
        if task < 0:
            self._cause = IncompleteError(f"workers died while they loaded the teachers: {error}")
        if getattr(error, "preempted", False) or "its node has died" in str(error):  # Ray knows it already
            self.tell(f"a worker went with its node, {self._nodes.get(seat, 'while it was put there')}")
            self._act(self._dispatch.lost(seat, "its node is gone", charge=False), seat)
            return
        self._void(seat)
        self._dispatch.away(seat)
        timeout = _NODE_DEATH if seat in self._nodes else 0
        self._dying[seat] = (time.monotonic() + timeout, f"its worker died ({_told(error)})")

    def _remove_dead(self, now: float) -> None:
        """Settle the dead workers: with their node, which charges nobody, or by themselves."""
        if not self._dying:
            return
        there = reachable({self._nodes[seat] for seat in self._dying if seat in self._nodes})
        for seat, (deadline, how) in list(self._dying.items()):
            node = self._nodes.get(seat)
            gone = node is not None and node not in there
            if gone or now >= deadline:
                del self._dying[seat]
                self.tell(f"a worker went with its node, {node}" if gone else f"a worker is gone: {how}")
                self._act(self._dispatch.lost(seat, how, charge=not gone), seat)

    def _act(self, verdict: Verdict, seat: int) -> None:
        """Replace or remove a worker; what was still asked of it is void."""
        if verdict is Verdict.KEEP:
            return
        self._void(seat)
        if verdict is Verdict.REPLACE and not self._stopping:
            self._start(seat)

    def _void(self, seat: int) -> None:
        """No worker sits there, and nothing is asked of it."""
        if seat in self._actors:
            ray.kill(self._actors.pop(seat))  # it may live: out of reach, or useless
        for reference in [r for r, (at, _) in self._asked.items() if at == seat]:
            del self._asked[reference]

    def _report(self) -> None:
        """Raises where not everything was done."""
        failed = self._dispatch.failed_tasks | self._dispatch.undone
        if not failed:
            return
        if self._cause is not None and not self._dispatch.done and not self._dispatch.failed_tasks:
            raise self._cause
        reasons = "; ".join(f"shard {self.tasks[t].shard}: {reason}" for t, reason in sorted(failed.items())[:5])
        raise IncompleteError(
            f"{len(failed)} of {len(self.tasks)} shards failed {self.config.max_attempts} times each, or no worker "
            f"was left for them ({reasons}); the others are committed; mend the cause and run the same command again"
        )


def _told(error: Exception) -> str:
    """Ray's reason on one line, without its list of ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def _clock(monotonic: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() + monotonic - time.monotonic()))
