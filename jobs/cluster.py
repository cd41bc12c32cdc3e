"""Ray: start or join a cluster, and hand shards to actors until all are done.

The driver does what `jobs.dispatch` decides. Each actor hosts one `ShardWorker` and holds `shards_in_flight` tasks at
once (so that decoding, teaching and writing overlap); only tasks and receipts, some kilobytes, cross the wire. An actor
that dies is replaced and its shards are tried again; that is safe because a shard done twice writes the same bytes to
the same names.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

from jobs.dispatch import Dispatcher, Verdict
from pipeline.worker import ShardReceipt, ShardTask, ShardWorker
from shards_schema.errors import ConfigError, IncompleteError, ShardsError

_LOST = (RayActorError, WorkerCrashedError)
"""The actor is gone (killed, crashed, its node died); any other exception came from the task itself."""


class ClusterConfig(BaseModel):
    """How many workers, and what each of them holds.

    Attributes:
        workers: actors; None is one a GPU (times `gpus_per_worker`), or one where there is none.
        gpus_per_worker: GPUs that an actor reserves; a fraction shares one. 0 for CPU teachers.
        cpus_per_worker: CPUs that an actor reserves.
        cpus: CPUs of the local Ray that is started where RAY_ADDRESS is not set; None is all.
        object_store_mb: of that local Ray; nothing large goes through it.
        max_attempts: how often a shard is tried before the run gives up on it (see `jobs.dispatch`, also for workers).
        speculate: a worker without work takes a copy of a shard that has run this many times the usual. Set it only
            where every GPU gives the same bits: a copy that is killed between its tar and its commit record leaves
            other bytes under the first one's record where they differ. None makes no copies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(default=None, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    object_store_mb: int = Field(default=80, ge=75)
    max_attempts: int = Field(default=3, ge=1)
    speculate: float | None = Field(default=None, gt=1)


@contextmanager
def session(config: ClusterConfig) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start a local one for the time of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default, which starves the workers beside anything else
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns that a local Ray has a token
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(logging_level=logging.WARNING)
        except ConnectionError as error:
            raise ConfigError(
                f"RAY_ADDRESS is {address}, and no Ray lets us in there ({error}); where the cluster asks for a token, "
                "give it in RAY_AUTH_TOKEN and set RAY_AUTH_MODE=token"
            ) from error
    else:
        ray.init(
            address="local",  # its own, also where another Ray runs on this machine
            num_cpus=config.cpus or os.cpu_count(),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


def worker_count(config: ClusterConfig) -> int:
    """How many actors this cluster gets.

    Raises:
        ConfigError: the cluster cannot hold one.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if config.gpus_per_worker > have.get("GPU", 0) or config.cpus_per_worker > have.get("CPU", 0):
        raise ConfigError(
            f"a worker wants {config.gpus_per_worker} GPU and {config.cpus_per_worker} CPU, the cluster has "
            f"{have.get('GPU', 0):g} and {have.get('CPU', 0):g}: set cluster.gpus_per_worker, cluster.cpus_per_worker"
        )
    if config.workers is not None:
        return config.workers
    return int(have["GPU"] // config.gpus_per_worker) if config.gpus_per_worker else 1


@ray.remote
class TeacherActor:
    """A `ShardWorker` in a process of its own."""

    def __init__(self, make: Callable[[], ShardWorker]) -> None:
        self._make = make

    def load(self) -> int:
        """Build the worker and load the weights (here, since Ray hides what a constructor raises); the process id."""
        self._worker = self._make()
        self._worker.load()
        return os.getpid()

    def process(self, task: ShardTask) -> ShardReceipt:
        """See `ShardWorker.process`."""
        return self._worker.process(task)


def drive(
    tasks: Sequence[ShardTask],
    make: Callable[[], ShardWorker],
    *,
    config: ClusterConfig,
    in_flight: int,
    on_start: Callable[[int], None],
    on_receipt: Callable[[ShardReceipt], None],
) -> None:
    """Run every task, in the order given, on `worker_count(config)` actors.

    Args:
        tasks: each is looked up when it is handed out, so a sequence that makes them as they are asked for will do.
        make: builds a worker, in the actor; must pickle.
        in_flight: tasks an actor holds at once.
        on_start: called with the process id of an actor that is ready.
        on_receipt: called once for each task that was done.

    Raises:
        ShardsError: a worker cannot load (the error of the worker).
        IncompleteError: some shards failed `max_attempts` times, or no worker was left for them; the reasons are
            named, everything else is done.
    """
    if tasks:
        _Driver(tasks, make, config, in_flight, on_start, on_receipt).run()


class _Driver:
    """The state of `drive`: what was asked of Ray, and of which seat's actor."""

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        make: Callable[[], ShardWorker],
        config: ClusterConfig,
        in_flight: int,
        on_start: Callable[[int], None],
        on_receipt: Callable[[ShardReceipt], None],
    ) -> None:
        self._tasks, self._config = tasks, config
        self._make = ray.put(make)  # once, not with each of a thousand actors
        self._on_start, self._on_receipt = on_start, on_receipt
        self._options = {
            "num_cpus": config.cpus_per_worker,
            "num_gpus": config.gpus_per_worker,
            "max_concurrency": in_flight,
        }
        self._seats = min(worker_count(config), len(tasks))
        self._dispatch = Dispatcher(
            len(tasks), self._seats, in_flight=in_flight, max_attempts=config.max_attempts, speculate=config.speculate
        )
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, tuple[int, int | None]] = {}
        """Reference -> seat and task; None for loading."""
        self._cause: Exception | None = None

    def run(self) -> None:
        for seat in range(self._seats):
            self._start(seat)
        while not self._dispatch.finished:
            for seat, task in self._dispatch.assign(time.monotonic()):
                self._asked[self._actors[seat].process.remote(self._tasks[task])] = (seat, task)
            for reference in self._ended():
                if reference in self._asked:  # else its worker was given up for another of its tasks
                    self._take(reference, *self._asked.pop(reference))
        self._report()

    def _start(self, seat: int) -> None:
        actor = TeacherActor.options(**self._options).remote(self._make)  # type: ignore[attr-defined]
        self._actors[seat] = actor
        self._asked[actor.load.remote()] = (seat, None)

    def _ended(self) -> list[Any]:
        """Waits until something has ended or a copy falls due; all that has ended: one look at thousands of
        references costs milliseconds, and is shared by all that came in meanwhile."""
        references = list(self._asked)
        now = time.monotonic()
        wake = self._dispatch.wake(now)
        first, _ = ray.wait(references, num_returns=1, timeout=None if wake is None else wake - now)
        if not first:
            return []
        ended, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return list(ended or first)

    def _take(self, reference: Any, seat: int, task: int | None) -> None:
        """What became of one thing that was asked."""
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if task is not None:
                self._act(self._dispatch.failed(seat, task, f"{type(error.cause).__name__}: {error.cause}"), seat)
                return
            if isinstance(error.cause, ShardsError):
                raise error.cause from error
            self._cause = error  # as likely this GPU's own trouble as everybody's
            self._act(self._dispatch.lost(seat, f"its worker could not load ({error.cause})"), seat)
        except _LOST as error:
            preempted = isinstance(error, RayActorError) and error.preempted
            if task is None:
                self._cause = IncompleteError(f"workers died while they loaded the teachers: {error}")
            self._act(
                self._dispatch.lost(seat, f"its worker died ({type(error).__name__})", charge=not preempted), seat
            )
        else:
            if task is None:
                self._dispatch.loaded(seat)
                self._on_start(answer)
            elif self._dispatch.completed(seat, task, time.monotonic()):
                self._on_receipt(answer)

    def _act(self, verdict: Verdict, seat: int) -> None:
        """Replace or remove a worker; what was still asked of it is void."""
        if verdict is Verdict.KEEP:
            return
        ray.kill(self._actors.pop(seat))  # it may live: out of reach, or useless
        for reference in [r for r, (at, _) in self._asked.items() if at == seat]:
            del self._asked[reference]
        if verdict is Verdict.REPLACE:
            self._start(seat)

    def _report(self) -> None:
        """Raises where not everything was done."""
        failed = self._dispatch.failed_tasks | self._dispatch.undone
        if not failed:
            return
        if self._cause is not None and not self._dispatch.done and not self._dispatch.failed_tasks:
            raise self._cause
        reasons = "; ".join(f"shard {self._tasks[t].shard}: {reason}" for t, reason in sorted(failed.items())[:5])
        raise IncompleteError(
            f"{len(failed)} of {len(self._tasks)} shards failed {self._config.max_attempts} times each, or no worker "
            f"was left for them ({reasons}); the others are committed; mend the cause and run the same command again"
        )
