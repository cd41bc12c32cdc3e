"""Ray: start or join a cluster, and hand shards to actors until all are done.

The driver does what `jobs.dispatch` decides. Each actor hosts one `ShardWorker` and holds `shards_in_flight` tasks at
once (so that decoding, teaching and writing overlap); only tasks and receipts, some kilobytes, cross the wire. An actor
that dies is replaced and its shards are tried again; that is safe because a shard done twice writes the same bytes to
the same names.

Nodes come and go. A worker that went with its node is nobody's fault: its shards are not charged, and its replacement
waits until some node has room. A node that joins gets workers where the config leaves their number open.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

from jobs import preemption, shipping
from jobs.dispatch import Dispatcher, Verdict
from pipeline.worker import ShardReceipt, ShardTask, ShardWorker
from shards_schema.errors import ConfigError, IncompleteError, ShardsError

_LOST = (RayActorError, WorkerCrashedError)
"""The actor is gone (killed, crashed, its node died); any other exception came from the task itself."""

_TICK = 1.0
"""Seconds between two looks at what Ray does not tell: a request to stop, a node's death."""
_LOOK = 5.0
"""Seconds between two looks at the list of nodes."""
_NODE_DEATH = 3.0
"""Seconds after a worker's death within which its node dies too, if they die together."""
_REACH = 2.0
"""Seconds for a node to accept a connection."""
_NOTICE = 60.0
"""Seconds without any worker after which a person is told."""
_NODE, _LOAD = -2, -1
"""What a new worker is asked; tasks are 0 and up."""


class ClusterConfig(BaseModel):
    """How many workers, and what each of them holds.

    Attributes:
        workers: actors; those that find no room wait for a node. None is as many as the GPUs hold, also those of nodes
            that join later, or one where a worker has no GPU.
        gpus_per_worker: GPUs that an actor reserves; a fraction shares one. 0 for CPU teachers.
        cpus_per_worker: CPUs that an actor reserves.
        cpus: CPUs of the local Ray that is started where RAY_ADDRESS is not set; None is all.
        object_store_mb: of that local Ray; nothing large goes through it.
        max_attempts: how often a shard is tried before the run gives up on it (see `jobs.dispatch`, also for workers).
        speculate: a worker without work takes a copy of a shard that has run this many times the usual. Set it only
            where every GPU gives the same bits: a copy that is killed between its tar and its commit record leaves
            other bytes under the first one's record where they differ. None makes no copies.
        env: names (with wildcards) of the environment variables that workers of a joined cluster get from the driver.
        wait_seconds: how long to wait at the start for a node that has room for a worker.
        grace_seconds: after SIGTERM, how long shards under way may take to end before they are given up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(default=None, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    object_store_mb: int = Field(default=80, ge=75)
    max_attempts: int = Field(default=3, ge=1)
    speculate: float | None = Field(default=None, gt=1)
    env: tuple[str, ...] = shipping.ENVIRONMENT
    wait_seconds: float = Field(default=0, ge=0)
    grace_seconds: float = Field(default=20, ge=0)


class StoppedError(Exception):
    """The run was asked to stop, and has: `abandoned` shards were under way, `left` are still to do (with those)."""

    def __init__(self, left: int, abandoned: int) -> None:
        super().__init__(
            f"stopped on SIGTERM: {left} shards are left to do"
            + (f", {abandoned} of them were given up half way" if abandoned else "")
        )
        self.left, self.abandoned = left, abandoned


def joining() -> bool:
    """Whether there is a cluster to join, rather than a local Ray to start."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def session(config: ClusterConfig) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start a local one for the time of the block.

    Raises:
        ConfigError: no Ray lets us in there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default, which starves the workers beside anything else
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns that a local Ray has a token
    with _own_sigterm():
        if joining():
            _join(config)
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


def _join(config: ClusterConfig) -> None:
    address = os.environ["RAY_ADDRESS"]
    env = shipping.runtime_env(config.env)
    try:
        ray.init(runtime_env=env, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, and no Ray lets us in there ({error}); where the cluster asks for a token, set "
            "RAY_AUTH_MODE=token before the job starts, with the token in ~/.ray/auth_token or RAY_AUTH_TOKEN (and "
            "only there: a driver with that mode cannot work on a cluster without it)"
        ) from error
    files, size = shipping.size() if "py_modules" in env else (0, 0)
    names = sorted({*shipping.passed(config.env), *env.get("env_vars", {})})
    print(
        f"joined the Ray at {address}; workers get "
        + (f"our code ({files} files, {size / 1e6:.1f} MB)" if files else "the code of `ray job submit`")
        + (f" and the values of {', '.join(names)}" if names else ""),
        flush=True,
    )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our handler: `ray.init` puts one of its own in its place, which would leave with code 15."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise SystemExit(preemption.EXIT if error.code == signal.SIGTERM else error.code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def room(config: ClusterConfig) -> dict[str, int]:
    """How many workers each living node could hold, by node id, if it held nothing else."""
    out: dict[str, int] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        have: Mapping[str, float] = node["Resources"]
        limits = [
            int(have.get(kind, 0) // each + 1e-9) if each >= 1 else int(have.get(kind, 0)) * int(1 / each + 1e-9)
            for kind, each in (("GPU", config.gpus_per_worker), ("CPU", config.cpus_per_worker))
            if each
        ]
        out[node["NodeID"]] = min(limits, default=1)
    return out


def worker_count(config: ClusterConfig) -> int:
    """How many actors this cluster gets.

    Raises:
        ConfigError: after `wait_seconds` no node of the cluster can hold one.
    """
    deadline = time.monotonic() + config.wait_seconds
    while not (places := sum(room(config).values())):
        if time.monotonic() >= deadline:
            have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            raise ConfigError(
                f"a worker wants {config.gpus_per_worker:g} GPU and {config.cpus_per_worker:g} CPU of one node, and "
                f"no node has them (all together: {have.get('GPU', 0):g} and {have.get('CPU', 0):g}): set "
                "cluster.gpus_per_worker, cluster.cpus_per_worker, or cluster.wait_seconds where nodes are to come"
            )
        time.sleep(_TICK)
    if config.workers is not None:
        return config.workers
    return places if config.gpus_per_worker else 1


@ray.remote
class TeacherActor:
    """A `ShardWorker` in a process of its own.

    Args:
        env: reference to the variables to set before anything else is read.
        folder: the driver's working directory, taken where this machine has it too, so that a relative path means here
            what it means there.
        make: reference to what builds the worker. (Both in lists: Ray would read them before the variables are set.)
    """

    def __init__(self, env: list[Any], folder: str, make: list[Any]) -> None:
        self._env, self._folder, self._make = env, folder, make

    def node(self) -> str:
        """Id of the node that it was put on; asked before `load`, which may take minutes and not survive them."""
        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> int:
        """Build the worker and load the weights (here, since Ray hides what a constructor raises); the process id."""
        os.environ.update(ray.get(self._env[0]))
        if os.path.isdir(self._folder):
            os.chdir(self._folder)
        make: Callable[[], ShardWorker] = ray.get(self._make[0])
        self._worker = make()
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
        stop: asked every second; from True on nothing is begun, and what runs has `grace_seconds`.
        tell: gets a line for a person when workers come or go.

    Raises:
        ShardsError: a worker cannot load (the error of the worker).
        IncompleteError: some shards failed `max_attempts` times, or no worker was left for them; the reasons are
            named, everything else is done.
        StoppedError: `stop` said so before all was done.
    """
    if tasks:
        _Driver(tasks, make, config, in_flight, on_start, on_receipt, stop, tell).run()


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
        stop: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._tasks, self._config = tasks, config
        # once, not with each of a thousand actors
        self._env = ray.put(shipping.passed(config.env) if joining() else {})
        self._make = ray.put(make)
        self._on_start, self._on_receipt, self._stop, self._tell = on_start, on_receipt, stop, tell
        self._options = {
            "num_cpus": config.cpus_per_worker,
            "num_gpus": config.gpus_per_worker,
            "max_concurrency": in_flight,
            "scheduling_strategy": "SPREAD",  # where there is more room than workers
        }
        self._known = set(room(config))  # first: a node that joins before they are counted has its workers then
        self._begun = min(worker_count(config), len(tasks))
        self._dispatch = Dispatcher(
            len(tasks), self._begun, in_flight=in_flight, max_attempts=config.max_attempts, speculate=config.speculate
        )
        self._actors: dict[int, Any] = {}
        self._parked: list[Any] = []
        """Actors on machines that will not do."""
        self._nodes: dict[int, str] = {}
        """Seat -> the node of its worker, once it is there."""
        self._asked: dict[Any, tuple[int, int]] = {}
        """Reference -> seat and task; `_NODE` and `_LOAD` for what a new worker is asked."""
        self._dying: dict[int, tuple[float, str]] = {}
        """Seat -> until when its dead worker's node may turn out dead too, and how the worker died."""
        self._cause: Exception | None = None
        self._next_look = time.monotonic() + _LOOK
        self._last_ready = time.monotonic()
        self._stopping = False

    def run(self) -> None:
        for seat in range(self._begun):
            self._start(seat)
        while not self._dispatch.finished and not self._stop():
            self._look(time.monotonic())
            for seat, task in self._dispatch.assign(time.monotonic()):
                self._asked[self._actors[seat].process.remote(self._tasks[task])] = (seat, task)
            self._take_ended()
        if not self._dispatch.finished:
            self._wind_down()
        self._report()

    def _wind_down(self) -> None:
        """Begin nothing; let what runs end, or give it up. Raises StoppedError unless that was all there was."""
        self._stopping = True
        deadline = time.monotonic() + self._config.grace_seconds
        self._tell(f"SIGTERM: beginning nothing new; {self._running} shards under way have until {_clock(deadline)}")
        while self._running and time.monotonic() < deadline and not self._dispatch.finished:
            self._take_ended()
        for seat in list(self._actors):
            ray.kill(self._actors.pop(seat))  # or it would write on until Ray has noticed that we are gone
        if not self._dispatch.finished:
            raise StoppedError(self._dispatch.left, self._running)

    @property
    def _running(self) -> int:
        return sum(task >= 0 for _, task in self._asked.values())

    def _start(self, seat: int) -> None:
        actor = TeacherActor.options(**self._options).remote([self._env], os.getcwd(), [self._make])  # type: ignore[attr-defined]
        self._actors[seat] = actor
        self._nodes.pop(seat, None)
        self._asked[actor.node.remote()] = (seat, _NODE)
        self._asked[actor.load.remote()] = (seat, _LOAD)

    def _look(self, now: float) -> None:
        """What nobody reports: nodes that joined, and that there is no worker at all."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        if self._config.workers is None and self._config.gpus_per_worker:
            places = room(self._config)
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
                self._tell(f"{len(new)} nodes joined: {more} more workers")
        if self._dispatch.ready:
            self._last_ready = now
        elif now - self._last_ready > _NOTICE:
            self._last_ready = now
            self._tell(f"no worker for a minute: {self._dispatch.open} load, or wait for a node that has room for them")

    def _take_ended(self) -> None:
        for reference in self._ended():
            if reference in self._asked:  # else its worker was given up for another of its tasks
                self._take(reference, *self._asked.pop(reference))
        self._bury(time.monotonic())

    def _ended(self) -> list[Any]:
        """Waits until something has ended, a copy falls due or it is time to look up; all that has ended: one look at
        thousands of references costs milliseconds, and is shared by all that came in meanwhile."""
        references = list(self._asked)
        if not references:
            time.sleep(_TICK)  # only dead workers, whose nodes may be dead too
            return []
        now = time.monotonic()
        wake = None if self._stopping else self._dispatch.wake(now)
        timeout = _TICK if wake is None else min(_TICK, wake - now)
        first, _ = ray.wait(references, num_returns=1, timeout=timeout)
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
                self._tell(f"a worker could not load, and gets no other: {error.cause}")
                self._act(self._dispatch.close(seat), seat)
        except _LOST as error:
            self._lost(seat, task, error)
        else:
            if task == _NODE:
                self._nodes[seat] = answer
            elif task == _LOAD:
                self._dispatch.loaded(seat)
                self._on_start(answer)
            elif self._dispatch.completed(seat, task, time.monotonic()):
                self._on_receipt(answer)

    def _lost(self, seat: int, task: int, error: Exception) -> None:
        """A worker is gone. Whose fault that is may take Ray some seconds to know; nothing more comes of it anyhow."""
        if task < 0:
            self._cause = IncompleteError(f"workers died while they loaded the teachers: {error}")
        if getattr(error, "preempted", False) or "its node has died" in str(error):  # Ray knows it already
            self._tell(f"a worker went with its node, {self._nodes.get(seat, 'while it was put there')}")
            self._act(self._dispatch.lost(seat, "its node is gone", charge=False), seat)
            return
        self._void(seat)
        self._dispatch.away(seat)
        patience = _NODE_DEATH if seat in self._nodes else 0
        self._dying[seat] = (time.monotonic() + patience, f"its worker died ({_told(error)})")

    def _bury(self, now: float) -> None:
        """Settle the dead workers: with their node, which charges nobody, or by themselves."""
        if not self._dying:
            return
        there = _reachable({self._nodes[seat] for seat in self._dying if seat in self._nodes})
        for seat, (deadline, how) in list(self._dying.items()):
            node = self._nodes.get(seat)
            gone = node is not None and node not in there
            if gone or now >= deadline:
                del self._dying[seat]
                self._tell(f"a worker went with its node, {node}" if gone else f"a worker is gone: {how}")
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
        reasons = "; ".join(f"shard {self._tasks[t].shard}: {reason}" for t, reason in sorted(failed.items())[:5])
        raise IncompleteError(
            f"{len(failed)} of {len(self._tasks)} shards failed {self._config.max_attempts} times each, or no worker "
            f"was left for them ({reasons}); the others are committed; mend the cause and run the same command again"
        )


def _reachable(nodes: Set[str]) -> set[str]:
    """Those of the nodes that Ray holds for alive and that answer; Ray takes half a minute to give a silent one up."""
    out: set[str] = set()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] in nodes and node["Alive"]:
            address = (node["NodeManagerAddress"], node["NodeManagerPort"])
            with suppress(OSError), socket.create_connection(address, timeout=_REACH):
                out.add(node["NodeID"])
    return out


def _told(error: Exception) -> str:
    """Ray's reason on one line, without its list of ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def _clock(monotonic: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() + monotonic - time.monotonic()))
