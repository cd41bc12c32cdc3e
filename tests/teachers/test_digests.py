"""Digests of files: read once a machine, believed while the file's times say so, and never at the cost of a run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teachers import digests
from teachers.digests import file_digest

ROOT = Path(__file__).parents[2]

CHILD = """
import sys, time
from pathlib import Path
from teachers import digests

digests._WORTH, digests._SETTLED = 1, 0.02
read, sleep = digests._read, time.sleep

def slowly(path):
    print("reads", flush=True)
    sys.stdin.readline()
    return read(path)

def waiting(seconds):
    if seconds == digests._LOOK:
        print("waits", flush=True)
    sleep(seconds)

digests._read, time.sleep = slowly, waiting
print(digests.file_digest(Path(sys.argv[1])), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; files of a byte are worth an entry, and settle soon."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_WORTH", 1)
    monkeypatch.setattr(digests, "_SETTLED", 0.02)
    digests._remembered.cache_clear()
    return tmp_path / "cache" / "last-shards" / "digests"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were read, in turn."""
    done: list[str] = []
    read = digests._read
    monkeypatch.setattr(digests, "_read", lambda path: done.append(path) or read(path))
    return done


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def another_run(path: Path) -> str:
    """What a process would find that is not the one which found it last."""
    digests._remembered.cache_clear()
    return file_digest(path)


@contextmanager
def child(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that asks for the digest of `path`, and says when it waits and when it reads; it reads on a newline."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        yield process
        process.kill()


def says(process: subprocess.Popen[str], *, but: str = "") -> str:
    """Its next line that is not `but`."""
    assert process.stdout is not None
    return next(line.strip() for line in process.stdout if line.strip() != but)


def test_one_reads_and_the_others_wait_for_it(folder: Path, weights: Path) -> None:
    with child(weights) as first:
        assert says(first) == "reads"
        with child(weights) as second, child(weights) as third:
            assert says(second) == says(third) == "waits"
            first.communicate("go\n", timeout=60)
            assert says(second, but="waits") == says(third, but="waits") == sha256(weights)
    assert len(list(folder.glob("*.json"))) == 1


def test_when_the_reader_is_killed_one_of_the_others_reads(folder: Path, weights: Path) -> None:
    with child(weights) as first:
        assert says(first) == "reads"
        with child(weights) as second:
            assert says(second) == "waits"
            first.send_signal(signal.SIGKILL)
            assert says(second, but="waits") == "reads"
            assert second.stdin is not None
            second.stdin.write("go\n")
            second.stdin.flush()
            assert says(second) == sha256(weights)


def test_a_reader_that_hangs_is_not_waited_for_for_ever(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_digest(weights)
    (entry,) = folder.glob("*.json")
    entry.unlink()
    monkeypatch.setattr(digests, "_PATIENCE", 0.3)
    with open(entry.with_suffix(".lock"), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert another_run(weights) == sha256(weights)
    assert entry.is_file()


def test_a_process_that_was_forked_meanwhile_does_not_keep_the_others_waiting(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[Any] = []
    read = digests._read

    def forks(path: str) -> str:
        forked.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True))
        forked[0].start()
        return read(path)

    monkeypatch.setattr(digests, "_read", forks)
    file_digest(weights)
    try:
        with open(next(folder.glob("*.lock")), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        forked[0].kill()
        forked[0].join()


def test_a_file_is_read_once_and_again_when_it_has_changed_however_well_that_is_hidden(
    folder: Path, weights: Path, reads: list[str]
) -> None:
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert file_digest(weights) == another_run(weights) == another_run(link) == sha256(weights)
    assert len(reads) == 1
    before = weights.stat()
    weights.write_bytes(b"WEIGHTS" * 1000)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert another_run(weights) == another_run(weights) == sha256(weights)
    assert len(reads) == 2
    other = weights.with_name("other")
    other.write_bytes(b"another" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(weights)
    assert another_run(weights) == sha256(weights)
    assert len(reads) == 3


def test_an_entry_that_is_not_whole_or_not_this_files_counts_as_none(
    folder: Path, weights: Path, reads: list[str]
) -> None:
    file_digest(weights)
    (entry,) = folder.glob("*.json")
    good = entry.read_bytes()
    other = weights.with_name("other")
    other.write_bytes(b"other")
    file_digest(other)
    (theirs,) = set(folder.glob("*.json")) - {entry}
    flipped = json.dumps({**json.loads(good), "sha256": "0" * 64}).encode()
    spoilt = [b"", good[:-10], b"[]", b"null", b'"x"', b'{"sha256": 1, "check": 1}', b"\xff\xfe", flipped]
    for content in (*spoilt, theirs.read_bytes()):
        entry.write_bytes(content)
        reads.clear()
        assert another_run(weights) == sha256(weights)
        assert len(reads) == 1
        assert entry.read_bytes() == good
    entry.unlink()
    entry.mkdir()
    assert another_run(weights) == sha256(weights)


def test_an_entry_is_believed_for_a_month_and_then_removed(folder: Path, weights: Path, reads: list[str]) -> None:
    file_digest(weights)
    (entry,) = folder.glob("*.json")
    old = time.time() - 31 * 86400
    (folder / "left.json").write_text("of a file that is gone")
    for path in folder.iterdir():
        os.utime(path, (old, old))
    assert another_run(weights) == sha256(weights)
    assert len(reads) == 2
    assert another_run(weights) == sha256(weights)
    assert len(reads) == 2
    assert [path.name for path in folder.glob("*.json")] == [entry.name]


def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")


def a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")


def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container that runs as a number of which the system knows no name."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


def open_to_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "last-shards" / "digests"
    path.mkdir(parents=True)
    path.chmod(0o777)


@pytest.mark.parametrize("break_it", [nowhere, a_file, homeless, open_to_all])
def test_without_a_folder_of_its_own_every_process_reads(
    break_it, folder: Path, weights: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    break_it(monkeypatch, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert another_run(weights) == another_run(weights) == sha256(weights)
    assert len(reads) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_takes_no_entry_costs_only_the_entry(
    folder: Path, weights: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digests.json, "dump", full)
    assert another_run(weights) == another_run(weights) == sha256(weights)
    assert len(reads) == 2
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_it_lies_in_the_home_where_nothing_else_is_said(
    folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file_digest(weights)
    where = tmp_path / "home" / ".cache" / "last-shards" / "digests"
    assert len(list(where.glob("*.json"))) == 1
    assert where.stat().st_mode & 0o777 == 0o700


def test_a_file_that_has_just_changed_is_waited_for_and_one_of_the_future_is_not_kept(
    folder: Path, weights: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED", 0.4)
    weights.write_bytes(b"now")
    file_digest(weights)
    assert time.time() - weights.stat().st_ctime >= 0.4
    assert len(list(folder.glob("*.json"))) == 1
    later = time.time() + 3600
    os.utime(weights, (later, later))
    assert another_run(weights) == another_run(weights) == sha256(weights)
    assert len(reads) == 3
    assert len(list(folder.glob("*.json"))) == 1


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = digests._read

    def overtaken(path: str) -> str:
        found = read(path)
        weights.write_bytes(b"changed" * 1000)
        return found

    monkeypatch.setattr(digests, "_read", overtaken)
    file_digest(weights)
    assert not list(folder.glob("*.json"))


def test_times_that_an_image_brought_along_tell_nothing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = 1_700_000_000_000_000_000
    packed, written = (
        digests._State(str(weights), 1, 2, 3, mtime_ns=second, ctime_ns=ctime) for ctime in (second, second + 4)
    )
    assert digests._tells(packed)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert not digests._tells(packed)
    assert digests._tells(written)


def test_small_files_leave_nothing(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_WORTH", 64 << 20)
    assert file_digest(weights) == sha256(weights)
    assert not folder.exists()
