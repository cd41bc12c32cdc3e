"""A hub that cannot be asked is told as that: never as a repository without the file, nor as a page of traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "0" * 40
CODE = f"""
import json, sys
from shards_schema.errors import WeightsError
from teachers.weights import WeightsConfig
from trainer.students.hf import load_tokenizer
from trainer.students.hf_config import HFConfig
def said(ask):
    try:
        return str(ask())
    except WeightsError as error:
        return str(error)
print(json.dumps([
    said(lambda: WeightsConfig(hub="someone/net", revision="{COMMIT}").locate("a.safetensors", "b.pt")),
    said(lambda: WeightsConfig(hub="someone/cached", revision="{COMMIT}").locate("a.safetensors", "b.pt")),
    *(said(lambda: load_tokenizer(HFConfig(model=model))) for model in sys.argv[1:])
]))
"""


@pytest.mark.parametrize("away", ["offline", "refused"])
def test_the_hub_was_not_asked(away: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {"HF_HUB_OFFLINE": "1"} if away == "offline" else {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    why = {
        "offline": "HF_HUB_OFFLINE is set, so the hub was not asked",
        "refused": f"the hub could not be reached (127.0.0.1:{port}: Connection refused)",
    }[away]
    snapshot = tmp_path / "hub/models--someone--cached/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "b.pt").write_bytes(b"weights")
    (tmp_path / "empty").mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", CODE, "someone/vlm", str(tmp_path / "nowhere"), str(tmp_path / "empty")],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    absent, cached, student, nowhere, empty = json.loads(done.stdout.splitlines()[-1])
    for said, name in ((absent, "net"), (student, "vlm")):
        assert why in said
        assert f"{tmp_path / 'hub'} does not hold them: fetch them where there is a network (`hf download " in said
        assert f"someone/{name}" in said
        assert "has none of" not in said
    assert cached == str(snapshot / "b.pt")
    assert nowhere == f"student.model {tmp_path / 'nowhere'}: no such folder"
    assert empty.startswith(f"student.model {tmp_path / 'empty'} cannot be loaded: ")
    assert not any("\n" in said for said in (absent, student, nowhere, empty))
