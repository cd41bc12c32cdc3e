"""Ray: start or join a cluster, and hand shards to actors until all are done.

The driver is a pull loop over an attempts table. Each actor hosts one `ShardWorker` and holds `shards_in_flight` tasks
at once (so that decoding, teaching and writing overlap); only tasks and receipts, a few hundred bytes, cross the
wire. An actor that dies is replaced and its shards are tried again, `max_attempts` times each; that is safe because a
shard done twice writes the same bytes to the same names.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

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
        max_attempts: how often a shard is tried before the run gives up on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(default=None, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    object_store_mb: int = Field(default=80, ge=75)
    max_attempts: int = Field(default=3, ge=1)


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


@dataclass(slots=True)
class _Slot:
    """One actor, and how many tasks it may still take."""

    actor: Any
    free: int


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
        make: builds a worker, in the actor; must pickle.
        in_flight: tasks an actor holds at once.
        on_start: called with the process id of an actor that is ready.
        on_receipt: called for each task that ended.

    Raises:
        ShardsError: a worker cannot load (the error of the worker).
        IncompleteError: some shards failed `max_attempts` times; the reasons are named, everything else is done.
    """
    queue = deque(tasks)
    attempts: Counter[int] = Counter()
    failed: dict[int, str] = {}
    loading: dict[Any, _Slot] = {}
    running: dict[Any, tuple[_Slot, ShardTask]] = {}
    ready: list[_Slot] = []

    def start_actor() -> None:
        options = {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus_per_worker}
        actor = TeacherActor.options(max_concurrency=in_flight, **options).remote(make)  # type: ignore[attr-defined]
        loading[actor.load.remote()] = _Slot(actor, in_flight)

    def retry(task: ShardTask, reason: str) -> None:
        attempts[task.shard] += 1
        if attempts[task.shard] < config.max_attempts:
            queue.appendleft(task)
        else:
            failed[task.shard] = reason

    for _ in range(min(worker_count(config), len(queue))):
        start_actor()
    lost = 0
    while queue or running:
        for slot in ready:
            while slot.free and queue:
                task = queue.popleft()
                running[slot.actor.process.remote(task)] = (slot, task)
                slot.free -= 1
        (done, *_), _ = ray.wait([*loading, *running], num_returns=1)
        if done in loading:
            slot = loading.pop(done)
            try:
                on_start(ray.get(done))
                ready.append(slot)
            except RayTaskError as error:
                raise _cause(error) from error
            except _LOST as error:
                lost += 1
                if lost >= config.max_attempts:
                    raise IncompleteError(f"{lost} workers died while they loaded the teachers: {error}") from error
                start_actor()
            continue
        slot, task = running.pop(done)
        slot.free += 1
        try:
            on_receipt(ray.get(done))
        except RayTaskError as error:
            retry(task, f"{type(error.cause).__name__}: {error.cause}")
        except _LOST as error:
            retry(task, f"its worker died ({type(error).__name__})")
            if slot in ready:
                ready.remove(slot)
                start_actor()
    if failed:
        reasons = "; ".join(f"shard {shard}: {reason}" for shard, reason in sorted(failed.items())[:5])
        raise IncompleteError(
            f"{len(failed)} of {len(tasks)} shards failed {config.max_attempts} times each ({reasons}); "
            "the others are committed; mend the cause and run the same command again"
        )


def _cause(error: RayTaskError) -> Exception:
    return error.cause if isinstance(error.cause, ShardsError) else error
