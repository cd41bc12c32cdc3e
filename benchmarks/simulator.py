"""A cluster of GPUs without GPUs: the real dispatcher (`cluster.dispatch`) under a fake clock, with faults.

An event queue. Each seat is a GPU; its worker does the tasks that it holds one after the other (the teacher works
alone), and begins the next at once when it holds one. The driver takes one message after the other, each at a cost.
Everything that goes wrong is drawn from one seed. Every second of every GPU, from the first worker's start to the
end of the run, is in exactly one of `LOSSES` or useful; `Outcome.seconds` sums to GPUs x makespan.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from cluster.dispatch import Dispatcher, Verdict
from shards_schema.inputs.models import StrictModel

USEFUL = "useful"
LOSSES = {
    "load": "loading weights",
    "fill": "first decode",
    "lost": "work lost with a worker",
    "raised": "attempts that raised",
    "detect": "death not yet noticed",
    "absent": "node away, seat closed",
    "driver": "waiting for the driver",
    "tail": "nothing left to do",
}
"""What a second of a GPU that is not useful went to."""


class Fleet(StrictModel):
    """The cluster and its troubles. Rates are mean times between events, in hours; 0 is never."""

    gpus: int = Field(default=1000, ge=1)
    gpus_per_node: int = Field(default=8, ge=1)
    in_flight: int = Field(default=2, ge=1)
    max_attempts: int = Field(default=3, ge=1)
    scenes_per_second: float = 2.0
    """Of one GPU; with 256 scenes at most a shard takes up to two minutes."""
    spread: float = 0.2
    """Sigma of the lognormal factor on each attempt's time."""
    slow_nodes: float = 0.02
    """Share of nodes that are slower."""
    slow_factor: float = 2.5
    """How much slower those are."""
    load_seconds: float = 90
    """Median of a worker's start (process, weights)."""
    load_spread: float = 0.3
    """Sigma of that start."""
    fill_seconds: float = 2
    """Decoding before the first batch, where the worker held no other task."""
    gpu_mtbf: float = 1000
    """Hours of one GPU between deaths of its worker."""
    node_mtbf: float = 250
    """Hours of one node between losses of all its GPUs."""
    repair: float = 0.5
    """Hours until a lost node is back."""
    preempt_mtbf: float = 0
    """Hours of one node between preemptions, which are announced and charge nobody."""
    preempted: float = 0.1
    """Hours until a preempted node is back."""
    detect_seconds: float = 30
    """Until the driver hears of a dead worker (a node's health check; a preemption is told at once)."""
    raising: float = 1e-4
    """Share of tasks that always raise."""
    killing: float = 2e-5
    """Share of tasks that always kill their worker."""
    broken: int = 1
    """GPUs that load and then raise on everything, at once."""
    driver_ms: float = 2
    """Of the driver, for each message that it handles."""
    link_ms: float = 1
    """Of the wire, each way."""
    seed: int = 0

    def calm(self) -> Fleet:
        """The same cluster without faults and stragglers."""
        nothing = dict.fromkeys(("slow_nodes", "gpu_mtbf", "node_mtbf", "preempt_mtbf", "raising", "killing"), 0.0)
        return self.model_copy(update={**nothing, "broken": 0, "spread": 0.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a simulated run.

    Attributes:
        makespan: seconds from the first worker's start to the end.
        seconds: GPU seconds by kind, `USEFUL` and `LOSSES`.
        tail: seconds from when no fresh task was left to the end.
        done, failed, undone: tasks.
        wrongly_failed: of `failed` and `undone`, those that nothing was wrong with.
        events: deaths, node losses, preemptions, ... that happened.
        driver_busy: share of the makespan in which it was at work.
    """

    makespan: float
    seconds: Mapping[str, float]
    tail: float
    done: int
    failed: int
    undone: int
    wrongly_failed: int
    events: Mapping[str, int]
    driver_busy: float

    @property
    def efficiency(self) -> float:
        """Useful GPU time over all GPU time."""
        return self.seconds[USEFUL] / sum(self.seconds.values())


@dataclass(slots=True)
class _Worker:
    """A seat's GPU: what it does, since when; `life` counts the workers that sat there."""

    life: int = 0
    state: str = "load"
    since: float = 0.0
    held: deque[int] = field(default_factory=deque)
    away_until: float = 0.0


class Simulation:
    """One run.

    Args:
        scenes: of each task, in the order of work.
        fleet: see there.
    """

    def __init__(self, scenes: Sequence[int], fleet: Fleet) -> None:
        self._scenes, self._fleet = scenes, fleet
        self._rng = random.Random(fleet.seed)
        seats = min(fleet.gpus, len(scenes))
        self._rules = Dispatcher(len(scenes), seats, in_flight=fleet.in_flight, max_attempts=fleet.max_attempts)
        self._workers = [_Worker() for _ in range(seats)]
        nodes = -(-seats // fleet.gpus_per_node)
        slow = {n for n in range(nodes) if self._rng.random() < fleet.slow_nodes}
        self._speed = [fleet.slow_factor if s // fleet.gpus_per_node in slow else 1.0 for s in range(seats)]
        self._broken = set(self._rng.sample(range(seats), min(fleet.broken, seats - 1)))
        self._raising = {t for t in range(len(scenes)) if self._rng.random() < fleet.raising}
        self._killing = {t for t in range(len(scenes)) if self._rng.random() < fleet.killing} - self._raising
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._now = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: Counter[str] = Counter()
        self._free_at = 0.0
        self._busy = 0.0
        self._given = 0
        self._fresh_ended: float | None = None
        self._unjudged = 0.0
        """GPU seconds of tasks that ended, of which the driver has not read yet."""
        self._believed: dict[int, int] = {}
        """Seat -> life of the worker that the driver takes to be there."""

    def run(self) -> Outcome:
        """Until all is done."""
        fleet, seats = self._fleet, len(self._workers)
        for seat in range(seats):
            self._load(seat)
        nodes = seats / fleet.gpus_per_node
        self._trouble("worker deaths", fleet.gpu_mtbf, seats, self._kill_one)
        self._trouble("node losses", fleet.node_mtbf, nodes, self._lose_node, fleet.repair * 3600, True)
        self._trouble("preemptions", fleet.preempt_mtbf, nodes, self._lose_node, fleet.preempted * 3600, False)
        while not self._rules.finished and self._queue:
            self._now, _, action, arguments = heapq.heappop(self._queue)
            action(*arguments)
        for worker in self._workers:
            self._turn(worker, "end", "lost" if worker.state == "work" else worker.state)
        self._seconds["lost"] += max(self._unjudged, 0.0)  # a sum of differences: it may end below nothing
        left = set(self._rules.failed_tasks) | set(self._rules.undone)
        return Outcome(
            makespan=self._now,
            seconds={kind: self._seconds[kind] for kind in (USEFUL, *LOSSES)},
            tail=self._now - (self._now if self._fresh_ended is None else self._fresh_ended),
            done=self._rules.done,
            failed=len(self._rules.failed_tasks),
            undone=len(self._rules.undone),
            wrongly_failed=len(left - self._raising - self._killing),
            events=dict(self._events),
            driver_busy=self._busy / max(self._now, 1e-9),
        )

    # the clock

    def _at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        self._count += 1  # events of one moment happen in the order in which they were made
        heapq.heappush(self._queue, (when, self._count, action, arguments))

    def _turn(self, worker: _Worker, state: str, counts_as: str | None = None) -> None:
        """A GPU does something else from now on; what it did until now is booked."""
        kind = counts_as or worker.state
        if kind == "idle":  # before the last fresh task was given, the driver could have given it
            ended = self._now if self._fresh_ended is None else self._fresh_ended
            before = min(max(ended - worker.since, 0.0), self._now - worker.since)
            self._seconds["driver"] += before
            self._seconds["tail"] += self._now - worker.since - before
        else:
            self._seconds[kind] += self._now - worker.since
        worker.state, worker.since = state, self._now

    # the driver

    def _tell(self, handle: Callable[..., None], *arguments: Any, after: float = 0.0) -> None:
        """A message to the driver, which handles it when it has handled those before."""
        self._at(self._now + after + self._fleet.link_ms / 1e3, self._arrive, handle, arguments)

    def _arrive(self, handle: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        cost = self._fleet.driver_ms / 1e3
        self._free_at = max(self._free_at, self._now) + cost
        self._busy += cost
        self._at(self._free_at, self._handle, handle, arguments)

    def _handle(self, handle: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        handle(*arguments)
        for seat, task in self._rules.assign(self._now):
            self._given = max(self._given, task + 1)
            self._at(self._now + self._fleet.link_ms / 1e3, self._receive, seat, self._believed[seat], task)
        if self._given == len(self._scenes) and self._fresh_ended is None:
            self._fresh_ended = self._now

    def _loaded(self, seat: int, life: int) -> None:
        if self._believed.get(seat) == life:
            self._rules.loaded(seat)

    def _ended(self, seat: int, life: int, task: int, seconds: float, reason: str | None) -> None:
        """A task was done or raised. The last word of a worker that has died counts until the driver hears of that."""
        self._unjudged -= seconds
        if self._believed.get(seat) != life:
            self._seconds["lost"] += seconds
        elif reason is not None:
            self._seconds["raised"] += seconds
            self._act(self._rules.failed(seat, task, reason), seat)
        else:
            self._rules.completed(seat, task, self._now)
            self._seconds[USEFUL] += seconds

    def _lost(self, seat: int, life: int, reason: str, charge: bool) -> None:
        if self._believed.get(seat) == life:
            self._act(self._rules.lost(seat, reason, charge=charge), seat)

    def _act(self, verdict: Verdict, seat: int) -> None:
        worker = self._workers[seat]
        if verdict is Verdict.KEEP:
            return
        del self._believed[seat]
        if worker.state != "detect":  # it lives, and is killed
            worker.life += 1
            worker.held.clear()
        self._turn(worker, "absent", "lost" if worker.state == "work" else None)
        if verdict is Verdict.REPLACE:
            self._load(seat)
        else:
            self._events["seats closed"] += 1

    # the workers

    def _load(self, seat: int) -> None:
        worker = self._workers[seat]
        if self._now < worker.away_until:
            self._at(worker.away_until, self._load, seat)
            return
        self._turn(worker, "load")
        self._believed[seat] = worker.life
        seconds = self._fleet.load_seconds * self._rng.lognormvariate(0, self._fleet.load_spread)
        self._at(self._now + seconds, self._stands, seat, worker.life)

    def _stands(self, seat: int, life: int) -> None:
        worker = self._workers[seat]
        if worker.life == life:
            self._turn(worker, "idle")
            self._tell(self._loaded, seat, life)

    def _receive(self, seat: int, life: int, task: int) -> None:
        worker = self._workers[seat]
        if worker.life != life:
            return  # the driver will hear that nobody was there
        worker.held.append(task)
        if worker.state == "idle":
            self._turn(worker, "fill")
            self._at(self._now + self._fleet.fill_seconds, self._begin, seat, life)

    def _begin(self, seat: int, life: int) -> None:
        worker = self._workers[seat]
        if worker.life != life:
            return
        self._turn(worker, "work")
        task = worker.held[0]
        seconds = self._scenes[task] / self._fleet.scenes_per_second * self._speed[seat]
        seconds *= self._rng.lognormvariate(0, self._fleet.spread)
        if seat in self._broken:
            self._at(self._now + 1.0, self._end, seat, life, task, "this GPU is broken")
        elif task in self._raising:
            self._at(self._now + seconds * self._rng.random(), self._end, seat, life, task, "this task is poison")
        elif task in self._killing:
            self._at(self._now + seconds * self._rng.random(), self._die, seat, life, "killed by a task")
        else:
            self._at(self._now + seconds, self._end, seat, life, task, None)

    def _end(self, seat: int, life: int, task: int, reason: str | None) -> None:
        worker = self._workers[seat]
        if worker.life != life:
            return
        seconds = self._now - worker.since
        worker.since = self._now  # booked when the driver has judged it
        worker.held.popleft()
        if worker.held:
            self._begin(seat, life)
        else:
            worker.state = "idle"
        self._unjudged += seconds
        self._tell(self._ended, seat, life, task, seconds, reason)

    # the troubles

    def _trouble(
        self, name: str, mtbf_hours: float, units: float, strike: Callable[..., None], *arguments: Any
    ) -> None:
        if mtbf_hours:
            rate = units / (mtbf_hours * 3600)
            self._at(self._now + self._rng.expovariate(rate), self._strike, name, rate, strike, arguments)

    def _strike(self, name: str, rate: float, strike: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._events[name] += 1
        strike(*arguments)
        self._at(self._now + self._rng.expovariate(rate), self._strike, name, rate, strike, arguments)

    def _kill_one(self) -> None:
        seat = self._rng.randrange(len(self._workers))
        self._die(seat, self._workers[seat].life, "died")

    def _lose_node(self, seconds: float, charge: bool) -> None:
        size = self._fleet.gpus_per_node
        first = self._rng.randrange(-(-len(self._workers) // size)) * size
        for seat in range(first, min(first + size, len(self._workers))):
            self._workers[seat].away_until = self._now + seconds
            self._die(seat, self._workers[seat].life, "its node is gone" if charge else "preempted", charge)

    def _die(self, seat: int, life: int, reason: str, charge: bool = True) -> None:
        worker = self._workers[seat]
        if worker.life != life or worker.state in ("detect", "absent"):
            return
        believed = worker.life
        self._turn(worker, "detect", "lost" if worker.state == "work" else None)
        worker.held.clear()
        worker.life += 1
        self._tell(self._lost, seat, believed, reason, charge, after=self._fleet.detect_seconds if charge else 0.0)
