"""One run at a time: who is refused, whose claim stands, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.stores.lease import Lease, hold
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.errors import HeldError, StoreError

FAST = {"beat": 0.05, "expiry": 0.4}
PATIENT = {"beat": 0.05, "expiry": 200}
"""Of a newcomer that is to be refused: a holder that gets no processor for 0.4 s is not dead."""


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
            hold(volume, **PATIENT).__enter__()
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
        "import sys, time\nfrom pipeline.stores.lease import hold\nfrom pipeline.stores.volume import Volume\n"
        "with hold(Volume(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    out = str(tmp_path / "out")
    child = subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
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
    while True:  # pytest's timeout ends it
        lease.check()
        time.sleep(0.02)


def test_a_claim_that_is_not_json_is_still_a_claim() -> None:
    volume = Volume(f"memory://{uuid.uuid4().hex}/run")
    volume.put(layout.LOCK, b"\x00\xff")
    with hold(volume, **FAST) as lease:
        lease.check()


def test_a_removed_lock_is_made_again_and_keeps_others_out(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path / "out"))
    lock = tmp_path / "out" / layout.LOCK
    with hold(volume) as lease:
        for _ in range(2):
            lock.unlink()
            lease.check()
            with pytest.raises(HeldError, match=f"pid {os.getpid()}"):
                hold(volume).__enter__()
    assert volume.walk() == []


def test_of_two_that_a_removed_lock_let_in_one_is_told_and_no_third_comes(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path / "out"))
    first, second = hold(volume), hold(volume)
    lease = first.__enter__()
    (tmp_path / "out" / layout.LOCK).unlink()
    other = second.__enter__()
    with pytest.raises(HeldError, match=r"somebody removed this run's \.lock, and another run is writing"):
        lease.check()
    first.__exit__(None, None, None)  # and leaves the other's lock where it is
    other.check()
    with pytest.raises(HeldError, match="another run"):
        hold(volume).__enter__()
    second.__exit__(None, None, None)
    assert volume.walk() == []


def test_a_removed_claim_on_a_store_is_made_again() -> None:
    volume = Volume(f"memory://{uuid.uuid4().hex}/run")
    with hold(volume, **FAST) as lease:
        fs, root = fsspec.core.url_to_fs(volume.url)
        fs.rm_file(f"{root}/{layout.LOCK}")
        while not volume.exists(layout.LOCK):
            time.sleep(0.01)
        lease.check()
        with pytest.raises(HeldError, match=f"pid {os.getpid()}"):
            hold(volume, **PATIENT).__enter__()


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_that_goes_is_told(tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not locks:
        monkeypatch.setattr("pipeline.stores.lease._file_lock", lambda *_: None)
    out = tmp_path / "out"
    with hold(Volume(str(out)), **FAST) as lease:
        os.rename(out, tmp_path / "moved")
        with pytest.raises(StoreError, match=r"out was moved, removed or unmounted"):
            lease.check()
    assert not out.exists()
    if locks:
        with hold(Volume(str(out))) as lease:
            os.rename(out, tmp_path / "unmounted")
            out.mkdir()
            with pytest.raises(StoreError, match="another folder is there now"):
                lease.check()
        assert not list(out.iterdir())


def as_nobody(out: Path) -> str:
    """What a run of another user says that takes the lease and lets go of it."""
    code = (
        "import encodings.utf_8_sig, os, sys\n"
        "from pipeline.stores.lease import hold\nfrom pipeline.stores.volume import Volume\n"
        "try:\n    os.setgid(65534); os.setuid(65534)\n"
        "except PermissionError:\n    print('root of a container that may not become another user'); sys.exit()\n"
        "try:\n    with hold(Volume(sys.argv[1])) as lease:\n        lease.check(); print('held')\n"
        "except OSError as error:\n    print(type(error).__name__, error)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    return child.stdout + child.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_lock_that_another_user_left_holds_nobody(mode: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as room:
        os.chmod(room, 0o755)
        out = Path(room) / "out"
        out.mkdir()
        os.chmod(out, mode)
        with hold(Volume(str(out))):
            said = as_nobody(out)
            if "may not become another user" in said:
                pytest.skip(said)
            assert f"HeldError {out}: another run is writing this dataset" in said
            assert f"pid {os.getpid()}" in said
        (out / layout.LOCK).write_text("{}")
        said = as_nobody(out)
        if mode == 0o777:
            assert said == "held\n"
            assert not (out / layout.LOCK).exists()
        else:  # the sticky bit: only who made it may remove it
            assert f"StoreError {out / layout.LOCK} was left by a run of user root that has ended" in said
