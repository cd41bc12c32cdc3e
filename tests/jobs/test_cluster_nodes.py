"""The real job on a Ray of several nodes, all on this machine: nodes that die and join, a driver that is preempted.

Each node is a raylet with one CPU and one GPU by name (nothing asks for its silicon), so that `workers: null` means
what it means on a cluster: one actor a GPU.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from pipeline.verify import verify
from shards_schema import layout

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie in it, apart from any other Ray of this machine."""
    path = Path(tempfile.mkdtemp(prefix="cl", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def work(folder: Path) -> Path:
    """A folder with a config: 21 scenes in 11 shards."""
    config = {
        "out": "unset",
        "source": {
            "kind": "synthetic",
            "root": str(folder / "data"),
            "logs": 3,
            "frames": 20,
            "width": 96,
            "height": 54,
            "lidar_points": 50,
            "filter": {"frame_interval": 1},
        },
        "plan": {"shard_size": 2},
        "samples": {"size": [64, 36]},
        "teachers": {"vggt": {"weights": {"random": 0}, "network": "tiny", "width": 266, "batch_size": 2}},
        "worker": {"device": "cpu", "decode_threads": 1, "shards_in_flight": 1, "torch_threads": 1},
        "cluster": {"gpus_per_worker": 1},
        "scan_processes": 1,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def start_cluster(folder: Path) -> Iterator[Callable[[int], Cluster]]:
    """Starts clusters of so many nodes, and a head without a GPU; ends their processes, and no other's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
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


def start(cluster: Cluster | None, work: Path, out: Path | str, *overrides: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment["RAY_TMPDIR"] = str(work)
    if cluster is not None:
        environment["RAY_ADDRESS"] = cluster.address
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.teachers", str(work / "job.yaml"), f"out={out}", *overrides],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def digests(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] != layout.LOGS
    }


def committed(out: Path) -> int:
    return len([*out.glob("vggt/0*.json"), *out.glob("samples/0*.json")])


def wait_for(out: Path, process: subprocess.Popen[str], records: int) -> None:
    deadline = time.monotonic() + 400
    while committed(out) < records:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> Path:
    """Of a Ray of its own, with one worker and no GPU."""
    code, output = finish(start(None, work, work / "undisturbed", "cluster={cpus: 1}"))
    assert code == 0, output
    assert "planned 21 scenes in 11 shards" in output
    return work / "undisturbed"


def closed(output: str) -> bool:
    """The printed accounting: all planned, all written."""
    return all(re.search(rf"^{column} +11 +21 +21 +0 ", output, re.MULTILINE) for column in ("samples", "vggt"))


def test_a_node_is_killed_another_joins_and_one_is_terminated(
    undisturbed: Path, work: Path, start_cluster: Callable[[int], Cluster]
) -> None:
    """Three nodes; while shards are under way one is killed, and the other gets its SIGTERM: the one that then joins is
    the only one that can finish."""
    cluster = start_cluster(2)
    first, second = list(cluster.worker_nodes)
    out = work / "disturbed"
    process = start(cluster, work, out)
    wait_for(out, process, 1)
    cluster.remove_node(first, allow_graceful=False)
    cluster.remove_node(second, allow_graceful=True)
    done = committed(out)
    assert done < 22, "nothing was left to disturb"
    cluster.add_node(**NODE)
    code, output = finish(process)
    assert code == 0, output
    assert "joined the Ray" in output
    assert output.count("a worker went with its node") >= 2, output
    assert closed(output), output
    assert digests(out) == digests(undisturbed)
    assert verify(str(out)).faults == ()


@pytest.mark.slow
def test_sigterm_ends_what_is_under_way_and_the_same_command_the_rest(
    undisturbed: Path, work: Path, start_cluster: Callable[[int], Cluster]
) -> None:
    out = work / "terminated"
    process = start(None, work, out, "cluster={cpus: 1, grace_seconds: 300}")
    wait_for(out, process, 1)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143, output
    assert "beginning nothing new" in output
    left = re.search(r"stopped on SIGTERM: (\d+) shards are left to do; what was committed stays", output)
    assert left is not None, output  # and none was given up half way
    assert committed(out) == 2 * (11 - int(left[1]))
    assert not (out / layout.LOCK).exists()
    code, output = finish(start(None, work, out, "cluster={cpus: 1}"))
    assert code == 0, output
    assert f"{left[1]} to do" in output
    assert digests(out) == digests(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT])
def test_sigterm_without_grace_and_a_second_signal(
    undisturbed: Path, work: Path, second: signal.Signals | None
) -> None:
    """On shards that take long: a batch that never ends would be waited for, but for the grace or the second signal."""
    out = work / f"abandoned-{second}"
    grace = 0 if second is None else 1000
    process = start(None, work, out, f"cluster={{cpus: 1, grace_seconds: {grace}}}", "worker.shards_in_flight=4")
    wait_for(out, process, 1)
    process.send_signal(signal.SIGTERM)
    if second is not None:
        assert process.stdout is not None
        while "beginning nothing new" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(second)
    code, output = finish(process)
    assert code in ({143} if second is not signal.SIGINT else {130}), output
    assert not (out / layout.LOCK).exists()
    assert committed(out) < 22
    code, output = finish(start(None, work, out, "cluster={cpus: 1}"))
    assert code == 0, output
    assert digests(out) == digests(undisturbed)


@pytest.mark.slow
def test_nodes_that_join_get_workers_of_their_own(
    undisturbed: Path, work: Path, start_cluster: Callable[[int], Cluster]
) -> None:
    """The driver comes first, and waits for a node; two uneven ones join, and halves of GPUs are shared."""
    cluster = start_cluster(0)
    out = work / "joined"
    process = start(cluster, work, out, "cluster={gpus_per_worker: 0.5, cpus_per_worker: 0.5, wait_seconds: 300}")
    cluster.add_node(**NODE)
    assert process.stdout is not None
    seen = ""
    while "0/11" not in seen:  # the workers are counted
        seen += process.stdout.read(1)
        assert process.poll() is None, seen
    time.sleep(2)
    cluster.add_node(**{**NODE, "num_cpus": 2, "num_gpus": 1})
    code, output = finish(process)
    assert code == 0, output
    assert "1 nodes joined: 2 more workers" in output, output
    assert digests(out) == digests(undisturbed)
