"""deploy/: what a machine without Kubernetes, Slurm and Docker can say about it.

The Slurm script is run as it stands, with `srun` and `scontrol` that do on this machine what Slurm does on many: a real
Ray of two nodes, a real driver, a real SIGTERM.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import config as job_config
from jobs.recipe import TeachersConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert isinstance(found, dict)
    return found


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"]["spec"]] + [
        group["template"]["spec"] for group in cluster["workerGroupSpecs"]
    ]


def test_the_rayjob_has_what_the_schema_requires(rayjob: dict[str, Any]) -> None:
    """By hand, from the CRD of KubeRay (ray.io/v1); docs/clusters.md says against which it was validated whole."""
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert "generateName" in rayjob["metadata"]
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "template"} <= group.keys()
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods(rayjob):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert all(isinstance(variable["value"], str) for variable in container["env"])
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_rayjob_fits_the_recipe_and_the_pins(rayjob: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command = rayjob["spec"]["entrypoint"].split()
    assert command[:3] == ["python", "-m", "jobs.teachers"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", "/nowhere")
    config = job_config.load(TeachersConfig, command[3:])
    worker = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    gpus, cpus = (int(worker["resources"]["limits"][kind]) for kind in ("nvidia.com/gpu", "cpu"))
    assert gpus * config.cluster.cpus_per_worker <= cpus * config.cluster.gpus_per_worker
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_the_image_copies_what_is_there_and_all_that_is_installed() -> None:
    lines = (DEPLOY / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*)$", lines, re.MULTILINE) for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert let_in == copied
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert {*rooms, "setup.py"} <= copied
    assert re.search(r"^USER \d+$", lines, re.MULTILINE), "runs as root"


def test_the_slurm_script_parses() -> None:
    assert subprocess.run(["bash", "-n", str(DEPLOY / "teachers.sbatch")], check=False).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", str(DEPLOY / "teachers.sbatch")], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


SRUN = """#!/bin/bash
# Slurm's own srun runs its command on the nodes named, and hands signals on to it.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) printf '%s\\n' {host} {host};;
    requeue) echo "$2" >> {folder}/requeued;;
esac
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_slurm_script_runs_is_preempted_requeued_and_ends() -> None:
    """The head and the second node are on one machine here; the address is this host's."""
    folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    (folder / "bin").mkdir()
    host = socket.gethostbyname(socket.gethostname())
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL.format(host=host, folder=folder))):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    config = {
        "out": "unset",
        "source": {"kind": "synthetic", "root": str(folder / "data"), "logs": 2, "frames": 20, "width": 96,
                   "height": 54, "lidar_points": 50, "filter": {"frame_interval": 1}},
        "plan": {"shard_size": 1},
        "samples": {"size": [64, 36]},
        "teachers": {"vggt": {"weights": {"random": 0}, "network": "tiny", "width": 266, "batch_size": 1}},
        "worker": {"device": "cpu", "decode_threads": 1, "shards_in_flight": 1, "torch_threads": 1},
        "cluster": {"gpus_per_worker": 1},
        "scan_processes": 1,
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    environment = {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "RAY_TMPDIR": str(folder),
        "CONFIG": str(folder / "job.yaml"),
        "OUT": str(folder / "out"),
        "GRACE": "600",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "1",
    }

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(DEPLOY / "teachers.sbatch"), "plan.seed=1"],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    job = submit()
    try:
        deadline = time.monotonic() + 900
        while not (folder / "out" / "vggt" / "000000.json").exists() and not [*(folder / "out").glob("vggt/0*.json")]:
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)  # --signal=B:TERM: to the batch shell alone
        output, _ = job.communicate(timeout=600)
        assert job.returncode == 143, output
        assert "stopped on SIGTERM" in output
        assert (folder / "requeued").read_text().split() == [environment["SLURM_JOB_ID"]]
        job = submit()
        output, _ = job.communicate(timeout=900)
        assert job.returncode == 0, output
        assert re.search(r"committed, \d+ to do", output), output
        assert "planned = written + quarantined" in output
        assert len((folder / "requeued").read_text().split()) == 1
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    shutil.rmtree(folder)
