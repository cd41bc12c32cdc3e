"""One run at a time on a dataset: a second driver is refused by name, and a dead one's claim does not stand.

Local disks (and network ones with locks): `flock` on ``.lock``, which the kernel lets go of when its holder dies,
however it dies. Object stores, and file systems without locks: ``.lock`` is made with create-if-absent (atomic on S3
and GCS; elsewhere check, then create) and rewritten every `BEAT` seconds by its holder. A newcomer that sees no beat
for `EXPIRY` seconds takes it over; a holder that finds itself replaced (it was suspended for so long) is told by
`check`. The file is gone after the run.

Why it matters: two drivers on one output would write the same bytes to the same names, but a driver sweeps files under
way when it begins, and a change of config between the two is compared with what neither has written yet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.stores.remote import RemoteStore, store_of
from pipeline.stores.volume import Volume, told
from shards_schema import documents, layout
from shards_schema.errors import HeldError

BEAT = 15.0
"""Seconds between two beats of a holder that has no file lock."""
EXPIRY = 60.0
"""Seconds without a beat after which the holder counts as dead."""

_NO_LOCKS = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


class Lease(Protocol):
    """The claim on a dataset while `hold` is open."""

    def check(self) -> None:
        """Raises HeldError when the claim was lost to another run."""


@contextlib.contextmanager
def hold(volume: Volume, *, beat: float = BEAT, expiry: float = EXPIRY) -> Iterator[Lease]:
    """Be the only run on `volume` until the block ends.

    Args:
        volume: the dataset; need not exist.
        beat: see `BEAT`.
        expiry: see `EXPIRY`; a newcomer waits so long before it takes over a dead run's claim.

    Raises:
        HeldError: another run is on it; says who, where and since when.
    """
    claim = {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": _user(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    lock: _FileLock | _Heartbeat | None = None
    if volume.local_root is not None:
        volume.make()
        lock = _file_lock(str(volume.local_root / layout.LOCK), volume, claim)
    lock = lock or _heartbeat(volume, claim, beat, expiry)
    try:
        yield lock
    finally:
        lock.close()


class _FileLock:
    def __init__(self, path: str, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def check(self) -> None:
        """The kernel keeps the promise."""

    def close(self) -> None:
        """Let go; the file goes first, while nobody else can hold it. Where it cannot (a disk that went read-only) it
        stays and holds nobody: the lock is the kernel's, and ends with the descriptor."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _file_lock(path: str, volume: Volume, claim: dict[str, Any]) -> _FileLock | None:
    """The lock; None where the file system has none."""
    while True:
        with told(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise _held(volume, holder) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return None
            raise
        # the one before may have removed the file between our open and our lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    lock = _FileLock(path, descriptor)
    try:
        with told(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(claim).encode(), 0)
    except BaseException:
        lock.close()  # or this process would hold the dataset against its own next run
        raise
    return lock


class _Heartbeat:
    """Rewrites the claim until it is stopped, and notices when it is no longer there."""

    def __init__(self, store: RemoteStore, path: str, volume: Volume, claim: dict[str, Any], beat: float) -> None:
        self._store, self._path, self._volume, self._claim, self._beat = store, path, volume, claim, beat
        self._stop = threading.Event()
        self._lost: bytes | None = None
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See `Lease`."""
        if self._lost is not None:
            raise _held(self._volume, self._lost, "this run's claim expired (was it suspended?) and ")

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):  # a store that fails for long: the next beat may reach it
                found = _read(self._store, self._path)
                if found is not None and _parsed(found).get("id") != self._claim["id"]:
                    self._lost = found
                    return
                count += 1
                self._store.write(self._path, json.dumps({**self._claim, "beat": count}).encode())

    def close(self) -> None:
        """Stop beating, and let go."""
        self._stop.set()
        self._thread.join()
        found = _read(self._store, self._path)
        if found is not None and _parsed(found).get("id") == self._claim["id"]:
            self._store.remove(self._path)


def _heartbeat(volume: Volume, claim: dict[str, Any], beat: float, expiry: float) -> _Heartbeat:
    url = volume.url if volume.local_root is None else f"file://{volume.local_root}"
    store = store_of(url)
    path = f"{store.path_of(url).rstrip('/')}/{layout.LOCK}"
    _take(store, path, volume, claim, beat, expiry)
    return _Heartbeat(store, path, volume, claim, beat)


def _take(store: RemoteStore, path: str, volume: Volume, claim: dict[str, Any], beat: float, expiry: float) -> None:
    seen, deadline = _read(store, path), time.monotonic() + expiry
    while seen is not None:
        time.sleep(min(beat, max(deadline - time.monotonic(), 0.01)))
        now = _read(store, path)
        if now is not None and now != seen:
            raise _held(volume, now)
        if now is None or time.monotonic() >= deadline:
            store.remove(path)
            break
    with contextlib.suppress(FileExistsError):  # also when the answer to our own first attempt was lost
        store.write(path, json.dumps({**claim, "beat": 0}).encode(), new=True)
    found = _read(store, path) or b""
    if _parsed(found).get("id") != claim["id"]:
        raise _held(volume, found)


def _read(store: RemoteStore, path: str) -> bytes | None:
    try:
        return store.read(path)
    except FileNotFoundError:
        return None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = documents.parse_json(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _held(volume: Volume, data: bytes, begin: str = "") -> HeldError:
    who = _parsed(data)
    told = ", ".join(f"{key} {who[key]}" for key in ("host", "pid", "user", "since") if key in who)
    return HeldError(
        f"{volume.path('').rstrip('/')}: {begin}another run is writing this dataset ({told or 'it does not say who'}); "
        "wait until it ends, or give another out="
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
