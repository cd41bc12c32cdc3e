"""The real job on a Ray of several nodes, all on this machine: nodes that die and join, a driver that is preempted.

Each node is a raylet with one CPU and one GPU by name (nothing asks for its silicon), so that `workers: null` means
what it means on a cluster: one actor a GPU.
"""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from pipeline.reading.verify import verify
from shards_schema import layout
from tests import made_once
from tests.chaos import small
from tests.chaos.processes import Job, records
from tests.chaos.small import SmallJob
from tests.chaos.world import digests

SHARDS, RECORDS = 10, 20
"""Of one scene, in two columns."""
pytestmark = pytest.mark.timeout(900)
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallJob]:
    """One worker a GPU, where nothing else is said."""
    config = small.settings(made_once.drive(tmp_path_factory)) | {"cluster": {"gpus_per_worker": 1}}
    with tempfile.TemporaryDirectory(prefix="cl", dir="/tmp") as folder, SmallJob(Path(folder), config) as made:
        yield made  # (the short path is for Ray's sockets, apart from any other Ray of this machine)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one process, without Ray."""
    return made_once.undisturbed(tmp_path_factory)


@pytest.fixture(scope="module")
def start_cluster(job: SmallJob) -> Iterator[Callable[[int], Cluster]]:
    """Starts clusters of so many nodes, and a head without a GPU; ends their processes, and no other's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(job.ray))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        clusters: list[Cluster] = []

        def start(nodes: int) -> Cluster:
            cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_gpus": 0})
            clusters.append(cluster)
            for _ in range(nodes):
                cluster.add_node(**NODE)
            return cluster

        yield start
        for cluster in clusters:
            cluster.shutdown()  # type: ignore[no-untyped-call]


def on(cluster: Cluster) -> dict[str, str]:
    """The environment of a job that joins it."""
    return {"RAY_ADDRESS": cluster.address}


def finish(job: Job) -> tuple[int | None, str]:
    return job.end(600), job.said()


def closed(output: str) -> bool:
    """The printed accounting: all planned, all written."""
    return all(re.search(rf"^{column} +10 +10 +10 +0 ", output, re.MULTILINE) for column in ("samples", "vggt"))


def test_a_node_is_killed_another_joins_and_one_is_terminated(
    undisturbed: Path, job: SmallJob, start_cluster: Callable[[int], Cluster]
) -> None:
    """Three nodes; while shards are under way one is killed, and the other gets its SIGTERM: the one that then joins is
    the only one that can finish."""
    cluster = start_cluster(2)
    first, second = list(cluster.worker_nodes)
    out = job.folder / "disturbed"
    run = job.start(out, **on(cluster))
    run.reach(1)
    cluster.remove_node(first, allow_graceful=False)
    cluster.remove_node(second, allow_graceful=True)
    assert len(records(out)) < RECORDS, "nothing was left to disturb"
    cluster.add_node(**NODE)
    code, output = finish(run)
    assert code == 0, output
    assert "joined the Ray" in output
    assert output.count("a worker went with its node") >= 2, output
    assert closed(output), output
    assert digests(out) == digests(undisturbed)
    assert verify(str(out)).faults == ()


@pytest.mark.slow
def test_sigterm_ends_what_is_under_way_and_the_same_command_the_rest(
    undisturbed: Path, job: SmallJob, start_cluster: Callable[[int], Cluster]
) -> None:
    out = job.folder / "terminated"
    run = job.start(out, "cluster={cpus: 1, grace_seconds: 300}")
    run.reach(1)
    run.process.send_signal(signal.SIGTERM)
    code, output = finish(run)
    assert code == 143, output
    assert "beginning nothing new" in output
    left = re.search(r"stopped on SIGTERM: (\d+) shards are left to do; what was committed stays", output)
    assert left is not None, output  # and none was given up half way
    assert len(records(out)) == 2 * (SHARDS - int(left[1]))
    assert not (out / layout.LOCK).exists()
    code, output = finish(job.start(out, "cluster={cpus: 1}"))
    assert code == 0, output
    assert f"{left[1]} to do" in output
    assert digests(out) == digests(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT])
def test_sigterm_without_grace_and_a_second_signal(
    undisturbed: Path, job: SmallJob, second: signal.Signals | None
) -> None:
    """On shards that take long: a batch that never ends would be waited for, but for the grace or the second signal."""
    out = job.folder / f"abandoned-{second}"
    grace = 0 if second is None else 1000
    run = job.start(out, f"cluster={{cpus: 1, grace_seconds: {grace}}}", "worker.shards_in_flight=4")
    run.reach(1)
    run.process.send_signal(signal.SIGTERM)
    if second is not None:
        run.hear("beginning nothing new")
        run.process.send_signal(second)
    code, output = finish(run)
    assert code in ({143} if second is not signal.SIGINT else {130}), output
    assert not (out / layout.LOCK).exists()
    assert len(records(out)) < RECORDS
    code, output = finish(job.start(out, "cluster={cpus: 1}"))
    assert code == 0, output
    assert digests(out) == digests(undisturbed)


@pytest.mark.slow
def test_nodes_that_join_get_workers_of_their_own(job: SmallJob, start_cluster: Callable[[int], Cluster]) -> None:
    """The driver comes first, and waits for a node; two uneven ones join, and halves of GPUs are shared."""
    # a node takes seconds to come, and the driver looks every five: this must be more work than that
    longer = [f"source.root={job.folder / 'longer'}", "source.logs=12", "teachers.vggt.width=518"]
    code, output = job.run(job.folder / "alone", "cluster={cpus: 1}", *longer)
    assert code == 0, output
    cluster = start_cluster(0)
    out = job.folder / "joined"
    wish = "cluster={gpus_per_worker: 0.5, cpus_per_worker: 0.5, wait_seconds: 300}"
    run = job.start(out, wish, *longer, **on(cluster))
    cluster.add_node(**NODE)
    run.reach(1)  # the workers are counted
    cluster.add_node(**{**NODE, "num_cpus": 2, "num_gpus": 1})
    code, output = finish(run)
    assert code == 0, output
    assert "1 nodes joined: 2 more workers" in output, output
    assert digests(out) == digests(job.folder / "alone")
