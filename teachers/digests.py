"""sha256 of files, computed once a machine: the eight workers of a node, and the next run, take what the first found.

What a file of 64 MiB or more came to is kept in ``$XDG_CACHE_HOME/last-shards/digests`` (``~/.cache/...``), an entry
each, named by the sha256 of what could be told of the file without reading it: resolved path, device, inode, size,
mtime and ctime in nanoseconds. Who finds no entry reads the file under a lock (``flock``, which the kernel takes from
the dead), and the others wait; not for ever, should the holder hang. Entries get there whole, by rename, and hold a
checksum; one that is cut, or another file's, counts as none. Where there can be no such folder, or others may write
there, every process reads for itself; ``XDG_CACHE_HOME=/dev/null`` is the switch.

The trade-off: a file is believed to be what it was because its times say so. A writer may set the mtime as it likes
(``touch -d``, ``rsync -t``), but no user the ctime: that takes root and a clock set back. Two holes are closed: a file
that was changed less than two seconds ago is waited for, since a second change could bear the same time (git's "racy"
files); and on a read-only file system whose ctime is in whole seconds, the mark of an image (squashfs) in which the
times are the packer's, nothing is kept. One is left open: a disk that changes bits by itself is found when an entry is
30 days old, no sooner. So the digest that names a run's weights is as good as the machine's clock and disk; who may
write into the folder could as well replace the program.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shards_schema.inputs import documents

_BLOCK = 1 << 22
_WORTH = 64 << 20
"""Bytes below which a file is read faster than it is worth an entry."""
_SETTLED = 2.0
"""Seconds within which two changes may bear the same time: the coarsest file system's (FAT)."""
_BELIEVED = 30 * 86400.0
"""Seconds for which an entry is taken."""
_LOOK = 0.1
"""Seconds between two looks at a lock."""
_PATIENCE, _SLOWEST = 30.0, 50e6
"""How long a lock is waited for: seconds, and bytes a second at which its holder reads the file."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a file is, as far as can be told without reading it."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> _State:
        resolved = path.resolve()
        found = resolved.stat()
        times = (found.st_mtime_ns, found.st_ctime_ns)
        return cls(str(resolved), found.st_dev, found.st_ino, found.st_size, *times)

    @property
    def name(self) -> str:
        return _sha256(json.dumps(asdict(self), sort_keys=True))


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal; remembered in this process and, where it is large, on this machine.

    Raises:
        OSError: the file cannot be read.
    """
    return _remembered(_State.of(path))


@functools.lru_cache(maxsize=64)
def _remembered(state: _State) -> str:
    if state.size < _WORTH or not _tells(state) or (folder := _folder()) is None:
        return _read(state.path)
    entry = folder / f"{state.name}.json"
    if (kept := _kept(entry, state)) is not None:
        return kept
    with _turn(folder / f"{state.name}.lock", _PATIENCE + state.size / _SLOWEST):
        if (kept := _kept(entry, state)) is not None:
            return kept
        digest = _read(state.path)
        if _State.of(Path(state.path)) == state:
            _keep(entry, state, digest)
        return digest


def _read(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _tells(state: _State) -> bool:
    """Whether a change of the file would show in its times; waits where only its youth is against it."""
    whole_seconds = state.ctime_ns % 1_000_000_000 == 0
    if whole_seconds and os.statvfs(state.path).f_flag & os.ST_RDONLY:
        return False
    age = time.time() - max(state.mtime_ns, state.ctime_ns) / 1e9
    if 0 <= age < _SETTLED:
        time.sleep(_SETTLED - age)
    return age >= 0  # else some clock is wrong


def _folder() -> Path | None:
    """The cache's folder, made if need be; None where there can be none."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as the specification has it
        base = os.path.expanduser("~/.cache")
    folder = Path(base) / "last-shards" / "digests"
    if not folder.is_absolute():  # no HOME, and a user whom the system does not know
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    shared = found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022
    return None if shared else folder  # others may write there, and name our weights


def _kept(entry: Path, state: _State) -> str | None:
    """The digest that an entry holds, if it is one of this state and not too old."""
    try:
        if time.time() - entry.stat().st_mtime > _BELIEVED:
            return None
        content = documents.parse_json(entry.read_bytes())
        digest = content["sha256"]
        return digest if isinstance(digest, str) and content["check"] == _check(state, digest) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(entry: Path, state: _State, digest: str) -> None:
    """Write an entry, and remove those that nobody believes any more; where that fails, nothing is kept."""
    content = {"path": state.path, "sha256": digest, "check": _check(state, digest)}
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=entry.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file)
            os.replace(temporary, entry)
        except BaseException:
            os.unlink(temporary)
            raise
        for old in entry.parent.iterdir():
            with suppress(OSError):
                if time.time() - old.stat().st_mtime > _BELIEVED:
                    old.unlink()


def _check(state: _State, digest: str) -> str:
    return _sha256(f"{state.name}:{digest}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _turn(lock: Path, patience: float) -> Iterator[None]:
    """One process at a time; after `patience` seconds, or where nothing can be locked, whoever comes."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOOK)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        with suppress(OSError):  # in words: a process that was forked meanwhile has it too, and would keep it locked
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
