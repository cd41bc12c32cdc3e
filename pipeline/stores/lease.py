"""One run at a time on a dataset: a second driver is refused by name, and a dead one's claim does not stand.

Local disks (and network ones with locks): `flock` on ``.lock``, which the kernel lets go of when its holder dies,
however it dies; who left the file matters to nobody, so one of another user is taken away where the folder's rights
allow that. Object stores, and file systems without locks: ``.lock`` is made with create-if-absent (atomic on S3
and GCS; elsewhere check, then create) and rewritten every `BEAT` seconds by its holder. A newcomer that sees no beat
for `EXPIRY` seconds takes it over (on S3 only in the version that it saw, so that of two newcomers one is refused); a
holder that finds itself replaced (it was suspended for so long) is told by `check`. The file is gone after the run.

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
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pipeline.stores.disk import gone, is_at, wrap_os_errors
from pipeline.stores.remote import store_of
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
    claim = _Claim(volume, key)
    lock: _FileLock | _Heartbeat | None = None
    if volume.local_root is not None:
        volume.make()
        lock = _file_lock(claim)
    lock = lock or _Heartbeat(claim, beat, expiry)
    try:
        yield lock
    finally:
        lock.close()


class _Claim:
    """What this run writes into the file, and how it tells of another's; `key` as in `hold`."""

    def __init__(self, volume: Volume, key: str) -> None:
        self.volume, self._key = volume, key
        self._who = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": _user(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        }

    def text(self, **more: int) -> bytes:
        return json.dumps({**self._who, **more}).encode()

    def is_in(self, data: bytes) -> bool:
        return _parsed(data).get("id") == self._who["id"]

    def held(self, data: bytes, begin: str = "") -> HeldError:
        who = _parsed(data)
        whom = ", ".join(f"{name} {who[name]}" for name in ("host", "pid", "user", "since") if name in who)
        return HeldError(
            f"{self.volume.path('').rstrip('/')}: {begin}another run is writing this dataset "
            f"({whom or 'it does not say who'}); wait until it ends, or give another {self._key}="
        )


class _FileLock:
    """A lock of the kernel's on the file that has the name.

    Args:
        claim: what the file says.
        path: of the file, whose folder is the dataset's.
        descriptor: of the file, locked.
    """

    def __init__(self, claim: _Claim, path: str, descriptor: int) -> None:
        self._claim, self._path, self._descriptor = claim, path, descriptor
        self._folder = os.path.dirname(path)
        self._root = os.stat(self._folder)
        self._turn = threading.Lock()

    def check(self) -> None:
        """See `Lease`. What cannot be looked at now may be at the next look."""
        with self._turn:
            try:
                if is_at(self._descriptor, self._path):
                    return
                root = os.stat(self._folder)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise gone(self._folder) from error
            except OSError:
                return
            if not os.path.samestat(root, self._root):
                raise gone(self._folder, "another folder is there now")
            if (made := _file_lock(self._claim, _REMOVED)) is not None:
                os.close(self._descriptor)
                self._descriptor = made._descriptor

    def close(self) -> None:
        """Let go; the file goes first, while nobody else can hold it. Where it cannot (a disk that went read-only) it
        stays and holds nobody: the lock is the kernel's, and ends with the descriptor."""
        with contextlib.suppress(OSError):
            if is_at(self._descriptor, self._path):  # else it is another run's
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _file_lock(claim: _Claim, begin: str = "") -> _FileLock | None:
    """The lock; None where the file system has none. `begin`: of what is told where another run has it."""
    path = os.path.join(str(claim.volume.local_root), layout.LOCK)
    while True:
        descriptor, own = _open_lock(path)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise claim.held(os.pread(descriptor, 4096, 0), begin) from None
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return None
                where = path if own else f"{path}, which is of {_owner(path)} and not to be locked by this user"
                with wrap_os_errors(where):
                    raise
            if not is_at(descriptor, path):  # the one before has removed it between our open and our lock
                continue
            if not own:  # nobody holds it; it cannot say that we do, so ours takes its place
                _take_away(path)
                continue
            try:
                with wrap_os_errors(path):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, claim.text(), 0)
                lock = _FileLock(claim, path, descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise
            undo.pop_all()
            return lock


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
        return f"user {Path(path).owner()}"
    except (KeyError, OSError):
        return "another user"


class _Heartbeat:
    """A claim that is rewritten until it is let go of, and noticed when it is no longer there."""

    def __init__(self, claim: _Claim, beat: float, expiry: float) -> None:
        root = claim.volume.local_root
        url = claim.volume.url if root is None else f"file://{root}"
        self._claim, self._beat, self._store = claim, beat, store_of(url)
        self._path = f"{self._store.path_of(url).rstrip('/')}/{layout.LOCK}"
        self._take(expiry)
        self._stop = threading.Event()
        self._lost: bytes | None = None
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def _take(self, expiry: float) -> None:
        seen, etag, deadline = self._read(), None, time.monotonic() + expiry
        now = seen
        while now is not None and time.monotonic() < deadline:
            time.sleep(min(self._beat, max(deadline - time.monotonic(), 0.01)))
            etag = self._store.etag(self._path)  # before the bytes: where those are of a later version, we are refused
            if (now := self._read()) not in (seen, None):
                raise self._claim.held(now or b"")
        if now is None:
            etag = None
        elif etag is None:
            self._store.remove(self._path)
        # what is raised here also comes when the answer to our own first attempt was lost
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            self._store.write(self._path, self._claim.text(beat=0), new=etag is None, over=etag)
        found = self._read() or b""
        if not self._claim.is_in(found):
            raise self._claim.held(found)

    def check(self) -> None:
        """See `Lease`."""
        self._claim.volume.make()
        if self._lost is not None:
            raise self._claim.held(self._lost, _EXPIRED)

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):  # a store that fails for long: the next beat may reach it
                found = self._read()
                if found is not None and not self._claim.is_in(found):
                    self._lost = found
                    return
                count += 1
                # one that was removed is made as at first: another run may be just before it
                self._store.write(self._path, self._claim.text(beat=count), new=found is None)

    def close(self) -> None:
        """Stop beating, and let go."""
        self._stop.set()
        self._thread.join()
        if self._claim.is_in(self._read() or b""):
            self._store.remove(self._path)

    def _read(self) -> bytes | None:
        try:
            return self._store.read(self._path)
        except FileNotFoundError:
            return None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = documents.parse_json(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
