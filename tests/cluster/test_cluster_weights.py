"""Weights of a hub, eight workers of a node at once: one download, the same file for all of them.

The hub is a server on loopback that speaks the little of its protocol that a download needs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * (4 << 10)


class Hub(BaseHTTPRequestHandler):
    """Serves `WEIGHTS` as model.safetensors of every repository, slowly enough that downloads would overlap."""

    got: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Metadata: commit, digest, size."""
        self._answer(b"")

    def do_GET(self) -> None:
        """The file."""
        self._answer(WEIGHTS if self.path.endswith("/model.safetensors") else b"")

    def _answer(self, body: bytes) -> None:
        there = self.path.endswith(f"/resolve/{COMMIT}/model.safetensors")
        type(self).got[f"{self.command} {'file' if there else self.path}"] += 1
        self.send_response(200 if there else 404)
        if there:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(WEIGHTS).hexdigest()}"')
            self.send_header("Content-Length", str(len(WEIGHTS)))
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        for at in range(0, len(body), 1 << 16):
            self.wfile.write(body[at : at + (1 << 16)])
            threading.Event().wait(0.05)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.got = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_eight_workers_of_a_node_download_once(hub: str, tmp_path: Path) -> None:
    code = (
        "import sys, huggingface_hub.file_download; from teachers.weights import WeightsConfig as W;"
        "print('ready', flush=True); sys.stdin.readline();"
        f"print(W(hub='someone/net', revision='{COMMIT}').provenance('absent.pt', 'model.safetensors')['sha256'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(8)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:  # together
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [worker.communicate() for worker in workers]
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert [out.strip() for out, _ in outputs] == [digest] * 8, outputs
    assert Hub.got["GET file"] == 1, Hub.got
    assert Hub.got["HEAD file"] >= 2, (
        "they did not meet"
    )  # who comes after the end finds the pinned commit in the cache
