"""`python -m jobs.teachers` with its logs and its dataset on an S3 server that fails: Ray, a real teacher, the lease.

Needs ``pip install -e '.[s3test]'``; skipped where it is not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.reading.verify import verify
from pipeline.sources import registry
from pipeline.stores.remote import store_of
from pipeline.stores.retry import ENVIRONMENT
from pipeline.stores.volume import Volume
from shards_schema import layout
from tests.chaos import small
from tests.chaos.processes import ROOT
from tests.s3_server import Faults, s3_server

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

RATES = {"500": 0.05, "503": 0.05, "reset": 0.05, "cut": 0.05}


def run(folder: Path, **overrides: str) -> str:
    command = [
        sys.executable,
        "-m",
        "jobs.teachers",
        str(folder / "job.yaml"),
        *(f"{k}={v}" for k, v in overrides.items()),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def data(out: str) -> dict[str, bytes]:
    """The files but for logs, and without what follows from where the logs were read: `dataset.json`'s seal."""
    volume, found = Volume(out), dict[str, bytes]()
    for path in volume.walk():
        if path.split("/")[0] == layout.LOGS:
            continue
        found[path] = volume.read(path)
        if path == layout.DATASET or layout.shard_of_record(path.rsplit("/", 1)[-1]) is not None:
            document = {k: v for k, v in json.loads(found[path]).items() if k not in ("sha256", "dataset", "source")}
            found[path] = json.dumps(document, sort_keys=True).encode()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_job_on_a_failing_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "data"
    making: dict[str, Any] = {
        "logs": 2,
        "frames": 17,
        "width": 96,
        "height": 54,
        "lidar_points": 0,
        "cameras": ["CAM_F0"],
    }
    registry.build({"kind": "synthetic", "root": str(logs), "processes": 1, "traffic": 0.0, **making})
    teachers = {"cosmos": {**small.COSMOS, "size": [64, 32]}}
    source = {"kind": "navsim", "root": "unset", "split": "mini", "filter": {"frame_interval": 1}}
    config = small.settings(logs, shard_size=4, teachers=teachers) | {"source": source}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    run(tmp_path, **{"out": str(tmp_path / "out"), "source.root": str(logs)})
    with s3_server() as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv(ENVIRONMENT, '{"first_wait": 0.02, "longest_wait": 0.2}')
        fs = store_of("s3://bucket").fs
        fs.mkdir("bucket")
        for path in (p for p in logs.rglob("*") if p.is_file()):
            fs.pipe_file(f"bucket/data/{path.relative_to(logs).as_posix()}", path.read_bytes())
        # the lease (pipeline.stores.lease) asks without our retries, so it is left out of the faults
        s3.reset(Faults(RATES, seed=2, but=layout.LOCK))
        told = run(tmp_path, **{"out": "s3://bucket/out", "source.root": "s3://bucket/data"})
        assert set(s3.met()) == set(RATES), s3.met()
        s3.reset()
        assert "hunter2" not in told
        assert verify("s3://bucket/out").faults == ()
        assert data("s3://bucket/out") == data(str(tmp_path / "out"))
