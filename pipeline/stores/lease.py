"""One run at a time on a dataset: a second driver is refused by name, and a dead one's claim does not stand.

Local disks (and network ones with locks): `flock` on ``.lock``, which the kernel lets go of when its holder dies,
however it dies; who left the file matters to nobody, so one of another user is taken away where the folder's rights
allow that. Object stores, and file systems without locks: ``.lock`` is made with create-if-absent (atomic on S3
and GCS; elsewhere check, then create) and rewritten every `BEAT` seconds by its holder. A newcomer that sees no beat
for `EXPIRY` seconds takes it over; a holder that finds itself replaced (it was suspended for so long) is told by
`check`. The file is gone after the run.

The claim is the file under its name, not a descriptor: `check`, which a driver asks every second, looks whether the
file there is its own. One that somebody removed is made again, unless another run came in meanwhile: then this one is
told, and ends. Where the whole folder is gone or another one is in its place, the run is told that.

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
import pwd
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.stores.disk import gone, wrap_os_errors
from pipeline.stores.remote import RemoteStore, store_of
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.errors import HeldError, StoreError
from shards_schema.inputs import documents

BEAT = 15.0
"""Seconds between two beats of a holder that has no file lock."""
EXPIRY = 60.0
"""Seconds without a beat after which the holder counts as dead."""

_REMOVED = "somebody removed this run's .lock, and "
_EXPIRED = "this run's claim expired (was it suspended?), or somebody removed it, and "
_NO_LOCKS = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


class Lease(Protocol):
    """The claim on a dataset while `hold` is open."""

    def check(self) -> None:
        """Raises HeldError when the claim was lost to another run, StoreError when the dataset's folder is gone."""


@contextlib.contextmanager
def hold(volume: Volume, *, key: str = "out", beat: float = BEAT, expiry: float = EXPIRY) -> Iterator[Lease]:
    """Be the only run on `volume` until the block ends.

    Args:
        volume: the dataset; need not exist.
        key: what its path is called where it was given, for messages.
        beat: see `BEAT`.
        expiry: see `EXPIRY`; a newcomer waits so long before it takes over a dead run's claim.

    Raises:
        HeldError: another run is on it; says who, where and since when.
        StoreError: the claim cannot be written.
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
        lock = _file_lock(volume, claim, key)
    lock = lock or _heartbeat(volume, claim, key, beat, expiry)
    try:
        yield lock
    finally:
        lock.close()


class _FileLock:
    """A lock of the kernel's on the file that has the name.

    Args:
        volume: the dataset, with its root.
        claim: what the file says.
        key: see `hold`.
        descriptor: of the file, locked.
    """

    def __init__(self, volume: Volume, claim: dict[str, Any], key: str, descriptor: int) -> None:
        self._volume, self._claim, self._key, self._descriptor = volume, claim, key, descriptor
        self._path = _lock_path(volume)
        self._root = os.stat(os.path.dirname(self._path))
        self._turn = threading.Lock()

    def check(self) -> None:
        """See `Lease`. What cannot be looked at now may be at the next look."""
        with self._turn:
            try:
                if self._ours():
                    return
                root = os.stat(os.path.dirname(self._path))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise gone(os.path.dirname(self._path)) from error
            except OSError:
                return
            if not os.path.samestat(root, self._root):
                raise gone(os.path.dirname(self._path), "another folder is there now")
            made = _file_lock(self._volume, self._claim, self._key, lost=True)
            if made is not None:
                os.close(self._descriptor)
                self._descriptor = made._descriptor

    def _ours(self) -> bool:
        """Whether the file under the name is the locked one; False where there is none."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go; the file goes first, while nobody else can hold it. Where it cannot (a disk that went read-only) it
        stays and holds nobody: the lock is the kernel's, and ends with the descriptor."""
        with contextlib.suppress(OSError):
            if self._ours():  # else it is another run's
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _lock_path(volume: Volume) -> str:
    return os.path.join(str(volume.local_root), layout.LOCK)


def _file_lock(volume: Volume, claim: dict[str, Any], key: str, *, lost: bool = False) -> _FileLock | None:
    """The lock; None where the file system has none. `lost`: this run had it, and the file was removed."""
    path = _lock_path(volume)
    while True:
        descriptor, own = _open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise _held(volume, holder, key, _REMOVED if lost else "") from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return None
            where = path if own else f"{path}, which is of {_owner(path)} and not to be locked by this user"
            with wrap_os_errors(where):
                raise
        # the one before may have removed the file between our open and our lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                if own:
                    break
                _take_away(path)  # nobody holds it; it cannot say that we do, so ours takes its place
        os.close(descriptor)
    try:
        with wrap_os_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(claim).encode(), 0)
        return _FileLock(volume, claim, key, descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.close(descriptor)  # or this process would hold the dataset against its own next run
        raise


def _open_lock(path: str) -> tuple[int, bool]:
    """A descriptor of the file, made where there is none, and whether it may be written."""
    try:
        with wrap_os_errors(path):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), True
    except StoreError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
        except OSError:  # not there (no right to make one), or not to be read
            raise error from error.__cause__


def _take_away(path: str) -> None:
    """Remove the file that a dead run of another user has left.

    Raises:
        StoreError: this user may not; says what to do.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"{path} was left by a run of {_owner(path)} that has ended, and this user may not remove it "
            f"({error.strerror}): have it removed by them or by an administrator, and run the same command again"
        ) from error


def _owner(path: str) -> str:
    try:
        return f"user {pwd.getpwuid(os.stat(path).st_uid).pw_name}"
    except (KeyError, OSError):
        return "another user"


class _Heartbeat:
    """Rewrites the claim until it is stopped, and notices when it is no longer there."""

    def __init__(
        self, store: RemoteStore, path: str, volume: Volume, claim: dict[str, Any], key: str, beat: float
    ) -> None:
        self._store, self._path, self._volume, self._claim, self._beat = store, path, volume, claim, beat
        self._key = key
        self._stop = threading.Event()
        self._lost: bytes | None = None
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See `Lease`."""
        self._volume.make()
        if self._lost is not None:
            raise _held(self._volume, self._lost, self._key, _EXPIRED)

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):  # a store that fails for long: the next beat may reach it
                found = _read(self._store, self._path)
                if found is not None and _parsed(found).get("id") != self._claim["id"]:
                    self._lost = found
                    return
                count += 1
                # one that was removed is made as at first: another run may be just before it
                self._store.write(self._path, json.dumps({**self._claim, "beat": count}).encode(), new=found is None)

    def close(self) -> None:
        """Stop beating, and let go."""
        self._stop.set()
        self._thread.join()
        found = _read(self._store, self._path)
        if found is not None and _parsed(found).get("id") == self._claim["id"]:
            self._store.remove(self._path)


def _heartbeat(volume: Volume, claim: dict[str, Any], key: str, beat: float, expiry: float) -> _Heartbeat:
    url = volume.url if volume.local_root is None else f"file://{volume.local_root}"
    store = store_of(url)
    path = f"{store.path_of(url).rstrip('/')}/{layout.LOCK}"
    _take(store, path, volume, claim, key, beat, expiry)
    return _Heartbeat(store, path, volume, claim, key, beat)


def _take(
    store: RemoteStore, path: str, volume: Volume, claim: dict[str, Any], key: str, beat: float, expiry: float
) -> None:
    seen, deadline = _read(store, path), time.monotonic() + expiry
    while seen is not None:
        time.sleep(min(beat, max(deadline - time.monotonic(), 0.01)))
        now = _read(store, path)
        if now is not None and now != seen:
            raise _held(volume, now, key)
        if now is None or time.monotonic() >= deadline:
            store.remove(path)
            break
    with contextlib.suppress(FileExistsError):  # also when the answer to our own first attempt was lost
        store.write(path, json.dumps({**claim, "beat": 0}).encode(), new=True)
    found = _read(store, path) or b""
    if _parsed(found).get("id") != claim["id"]:
        raise _held(volume, found, key)


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


def _held(volume: Volume, data: bytes, key: str, begin: str = "") -> HeldError:
    who = _parsed(data)
    whom = ", ".join(f"{key} {who[key]}" for key in ("host", "pid", "user", "since") if key in who)
    return HeldError(
        f"{volume.path('').rstrip('/')}: {begin}another run is writing this dataset ({whom or 'it does not say who'}); "
        f"wait until it ends, or give another {key}="
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
