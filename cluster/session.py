"""Ray: start a local one or join a cluster, and count what its nodes hold.

Nodes come and go, so each answer holds for the moment in which it was given; `cluster.driver` asks again.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress

import ray
from pydantic import Field
from ray._private import services

from cluster import ends, metrics, preemption, shipping
from shards_schema.errors import ConfigError
from shards_schema.inputs import reach
from shards_schema.inputs.models import StrictModel

_OF_RAY = re.compile(r"^ray::|/ray/")
"""In the command line of a process that Ray has started."""
_TICK = 1.0
"""Seconds between two looks at the nodes while there is none with room."""
_REACH = 2.0
"""Seconds for a node to accept a connection."""


class ClusterConfig(StrictModel):
    """How many workers, and what each of them holds."""

    workers: int | None = Field(default=None, ge=1, le=1 << 20)
    """Actors; those that find no room wait for a node. None is as many as the GPUs hold, also those of nodes that join
    later, or one where a worker has no GPU."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that an actor reserves; a fraction shares one. 0 for CPU teachers."""
    cpus_per_worker: float = Field(default=1, ge=0)
    """CPUs that an actor reserves."""
    cpus: int | None = Field(default=None, ge=1)
    """CPUs of the local Ray that is started where RAY_ADDRESS is not set; None is all."""
    object_store_mb: int = Field(default=80, ge=75)
    """Of that local Ray; nothing large goes through it."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a shard is tried before the run gives up on it (see `cluster.dispatch`; also of workers)."""
    shard_seconds: float | None = Field(default=None, gt=0)
    """How long a worker may have a shard, waiting for its other shards included, before it is taken for hung, killed
    and replaced. None goes by what the shards took: five times the longest of late, never less than half an hour (six
    hours until one is done). What ran out of it has twice as long the next time."""
    load_seconds: float | None = Field(default=None, gt=0)
    """How long a worker may load its teachers before it is taken for hung, killed and replaced. None goes by what the
    loads took, likewise: never less than two hours (six until one is done)."""
    env: tuple[str, ...] = shipping.ENVIRONMENT
    """Names (with wildcards) of the environment variables that workers of a joined cluster get from the driver."""
    wait_seconds: float = Field(default=0, ge=0)
    """How long to wait at the start for a node that has room for a worker."""
    grace_seconds: float = Field(default=20, ge=0)
    """After SIGTERM, how long shards under way may take to end before they are given up."""


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
    before = set(ends.below(os.getpid()))
    try:
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
            print(metrics.told(), flush=True)
        yield
    finally:
        found = [] if joining() else ends.below(os.getpid())
        own = [p for p in found if p not in before and _OF_RAY.search(p.command)]
        ray.shutdown()
        for process in ends.end(own):
            print(f"process {process.pid} of the local Ray had not ended with it, and was killed", file=sys.stderr)


def _join(config: ClusterConfig) -> None:
    address = os.environ["RAY_ADDRESS"]
    refuse_silent(address)
    env = shipping.runtime_env(config.env)
    try:
        ray.init(runtime_env=env, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, something answers there, and no Ray lets us in ({error}): it may be no Ray, or "
            "one that asks for a token. For that set RAY_AUTH_MODE=token before the job starts, with the token in "
            "~/.ray/auth_token or RAY_AUTH_TOKEN (and only there: a driver with that mode cannot work on a cluster "
            "without it)"
        ) from error
    files, size = shipping.size() if "py_modules" in env else (0, 0)
    names = sorted({*shipping.passed(config.env), *env.get("env_vars", {})})
    print(
        f"joined the Ray at {address}; workers get "
        + (f"our code ({files} files, {size / 1e6:.1f} MB)" if files else "the code of `ray job submit`")
        + (f" and the values of {', '.join(names)}" if names else ""),
        flush=True,
    )


def refuse_silent(address: str) -> None:
    """Ask whether anybody is there, since Ray would wait for a quarter of an hour.

    Raises:
        ConfigError: nobody is.
    """
    try:
        bare = address.removeprefix("ray://")
        # as Ray will ask: not this machine's loopback, but its address
        at = bare if bare != address else services.canonicalize_bootstrap_address(address) or address
        host, _, port = at.rpartition(":")
        silent = reach.silence(host.strip("[]"), int(port)) if port.isdecimal() else None
    except (ConnectionError, ValueError) as error:  # "auto" finds none, or it is no address
        silent = str(error)
    if silent is not None:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, and no Ray answers there ({silent}): start that cluster, give the address of "
            "one that runs, or unset RAY_ADDRESS for a local Ray"
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


def reachable(nodes: Set[str]) -> set[str]:
    """Those of the nodes that Ray holds for alive and that answer; Ray takes half a minute to give a silent one up."""
    out: set[str] = set()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] in nodes and node["Alive"]:
            address = (node["NodeManagerAddress"], node["NodeManagerPort"])
            with suppress(OSError), socket.create_connection(address, timeout=_REACH):
                out.add(node["NodeID"])
    return out


def host(node: str) -> str:
    """The name of a node's machine; its id where it is not known any more."""
    return next((str(n["NodeManagerHostname"]) for n in ray.nodes() if n["NodeID"] == node), node)  # type: ignore[no-untyped-call]
