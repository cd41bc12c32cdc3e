"""One run at a time: who is refused, whose claim stands, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.lease import Lease, hold
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.errors import HeldError

FAST = {"beat": 0.05, "expiry": 0.4}


@pytest.fixture(params=["local", "memory", "local without locks"])
def volume(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    if request.param == "memory":
        url = f"memory://{uuid.uuid4().hex}/run"
        yield Volume(url)
        return
    if request.param == "local without locks":

        def no_locks(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", no_locks)
    yield Volume(str(tmp_path / "out"))


def test_a_second_run_is_refused_by_name(volume: Volume) -> None:
    with hold(volume, **FAST) as lease:
        time.sleep(0.15)
        with pytest.raises(HeldError, match=rf"another run is writing.*host .*pid {os.getpid()}, user .*since 20"):
            hold(volume, **FAST).__enter__()
        lease.check()
    assert volume.walk() == []
    with hold(volume, **FAST):
        assert volume.exists(layout.LOCK)


def test_the_claim_goes_when_the_run_fails(volume: Volume) -> None:
    with pytest.raises(RuntimeError), hold(volume, **FAST):
        raise RuntimeError
    assert volume.walk() == []


def test_a_killed_run_does_not_block_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pipeline.lease import hold\nfrom pipeline.stores.volume import Volume\n"
        "with hold(Volume(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    out = str(tmp_path / "out")
    child = subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(HeldError, match=f"pid {child.pid}"):
        hold(Volume(out)).__enter__()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert Volume(out).walk() == [layout.LOCK]
    with hold(Volume(out)):
        pass
    assert Volume(out).walk() == []


def test_a_dead_claim_on_a_store_is_taken_over() -> None:
    volume = Volume(f"memory://{uuid.uuid4().hex}/run")
    volume.put(layout.LOCK, b'{"id": "gone", "host": "elsewhere", "beat": 3}')
    began = time.monotonic()
    with hold(volume, **FAST) as lease:
        assert time.monotonic() - began >= FAST["expiry"]
        lease.check()
        assert b"gone" not in volume.read(layout.LOCK)


def test_a_run_that_was_replaced_is_told_and_leaves_the_others_claim() -> None:
    volume = Volume(f"memory://{uuid.uuid4().hex}/run")
    with hold(volume, **FAST) as lease:
        fs, root = fsspec.core.url_to_fs(volume.url)
        fs.pipe_file(f"{root}/{layout.LOCK}", b'{"id": "other", "host": "elsewhere"}')
        with pytest.raises(HeldError, match=r"expired.*host elsewhere"):
            keep_checking(lease)
    assert b"other" in volume.read(layout.LOCK)


def keep_checking(lease: Lease) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.02)


def test_a_claim_that_is_not_json_is_still_a_claim() -> None:
    volume = Volume(f"memory://{uuid.uuid4().hex}/run")
    volume.put(layout.LOCK, b"\x00\xff")
    with hold(volume, **FAST) as lease:
        lease.check()
