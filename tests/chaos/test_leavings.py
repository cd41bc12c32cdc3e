"""What a run leaves behind is seen, also when it is nobody's child any more; a real run leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import small
from tests.chaos.leavings import MARK, marked, observe, summary
from tests.chaos.small import SmallJob
from tests.made_once import drive


def test_an_orphan_is_found_by_its_environment() -> None:
    parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    subprocess.run([sys.executable, "-c", parent], env={**os.environ, MARK: "an-orphan"}, check=True)
    (orphan,) = marked("an-orphan")
    os.kill(orphan, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while marked("an-orphan") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert marked("an-orphan") == []


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallJob]:
    config = small.settings(drive(tmp_path_factory), shard_size=2)
    with tempfile.TemporaryDirectory(prefix="tl", dir="/tmp") as folder, SmallJob(Path(folder), config) as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_leaves_nothing(job: SmallJob, number: signal.Signals | None) -> None:
    """A short form of `python -m tests.chaos leavings`, in the middle of a run: a column of a shard is committed."""
    outcome = observe(job, number, lambda run: run.reach(1), 240)
    assert outcome.left == []
    assert outcome.killed == []


def test_the_table_counts_what_is_left() -> None:
    one = {"how": "SIGKILL", "code": -9, "soon": 2, "workers": 1, "last": 3.0, "killed": [], "left": ["process 1 (x)"]}
    heads, rows = summary([one, {**one, "soon": 0, "workers": 0, "left": []}])
    assert dict(zip(heads, rows[0], strict=True)) == {
        "end": "SIGKILL", "runs": "2", "exit codes": "2 x -9", "workers after 1 s": "1",
        "processes after 1 s, most": "2", "last one gone after, s": "3.0", "had to be killed": "0", "left": "1",
    }  # fmt: skip
