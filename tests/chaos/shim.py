"""Between a write path and the kernel: every call that changes a folder is a fault point, has a name, and can fail.

The calls are Python's own (`os.open`, `os.writev`, `os.fsync`, `os.replace`, ...), which is how everything here writes;
a test holds the names against Python's audit events, so that a new way to write does not go unseen. A point is a call
and the file that it is made on, with the random part of a temp name taken off, and a number:
``writev .tmp/toy%000001.tar #0``. So the points of two equal runs have equal names however their threads interleave.

    eio      this call fails once with EIO
    enospc   the disk is full: this call fails, and from here on each one that needs space
    erofs    read-only: this call fails, and from here on each one that changes anything
    short    this write takes only half of what it is given, as a kernel may; nobody should notice
    die      the process ends here, before the call
    torn     the process ends in the middle of this write, half of which is in the file
    power    the machine ends here: what was not fsynced is gone, data and names
    metadata the machine ends here: names are as they were, data that was not fsynced is gone (empty files)

A real disk keeps any subset of what was not fsynced; `power` and `metadata` are its two ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = ("write", "writev", "pwrite")
CALLS = ("open", *WRITES, "fsync", "ftruncate", "replace", "rename", "mkdir", "unlink", "rmdir", "close")
NEEDS_SPACE = ("open", *WRITES, "mkdir", "replace", "rename")
KINDS = ("eio", "enospc", "erofs", "short", "die", "torn", "power", "metadata")
DIED = 137
"""Exit code of a process that a fault ended."""

_RANDOM = re.compile(r"(\.tmp/.+)\.[0-9a-f]{12}$")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True)
class Point:
    """A call of the write path: which, on what (relative to the root), and the how-manieth of that name."""

    call: str
    path: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.path} #{self.number}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and where; `point` None is after the last call (for `power` and `metadata`)."""

    kind: str
    point: Point | None

    @property
    def possible(self) -> bool:
        """Whether the kernel has this to say of that call."""
        if self.kind in ("short", "torn"):
            return self.point is not None and self.point.call in WRITES
        return self.point is not None or self.kind in ("power", "metadata")


@dataclass(slots=True)
class _Change:
    """A change of a folder that was not fsynced: how to take it back."""

    folder: str
    undo: Callable[[], None]


@dataclass(slots=True)
class Shim:
    """The calls on one folder tree; use `installed`.

    Attributes:
        root: the tree.
        fault: what to inject; None only records.
        points: every point passed, in order.
        fired: whether the fault was met.
        opened: paths (relative) that were opened for writing.
    """

    root: Path
    fault: Fault | None = None
    points: list[Point] = field(default_factory=list)
    fired: bool = False
    opened: list[str] = field(default_factory=list)
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    _names: dict[int, str] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)
    _real: dict[str, Callable[..., Any]] = field(default_factory=lambda: {name: getattr(os, name) for name in CALLS})
    _dirty: dict[int, None] = field(default_factory=dict)
    _changes: list[_Change] = field(default_factory=list)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Shim]:
        """Stand between `os` and the kernel for the time of the block."""
        for name in CALLS:
            setattr(os, name, self._between(name))
        try:
            yield self
        finally:
            for name, call in self._real.items():
                setattr(os, name, call)

    def cut(self, kind: str) -> None:
        """End as a machine does without power, now."""
        with self._lock:
            if kind == "power":
                for change in reversed(self._changes):
                    with contextlib.suppress(OSError):
                        change.undo()
            if kind in ("power", "metadata"):
                self._forget_data()
            os._exit(DIED)

    def _forget_data(self) -> None:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                if os.stat(path).st_ino in self._dirty:
                    os.truncate(path, 0)

    def _between(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                path = self._path(name, args, kwargs)
                if path is None:
                    return self._real[name](*args, **kwargs)
                return self._called(name, path, args, kwargs)

        return call

    def _path(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """The absolute path that a call is made on; None where it is none of ours."""
        if name in (*WRITES, "fsync", "ftruncate", "close"):
            return self._names.get(args[0])
        if not isinstance(args[0], str | os.PathLike):
            return None
        target = os.fspath(args[1] if name in ("replace", "rename") else args[0])
        if kwargs.get("dir_fd") is not None:
            folder = self._names.get(kwargs["dir_fd"])
            return None if folder is None else os.path.join(folder, target)
        root = str(self.root)
        ours = isinstance(target, str) and (target in (root, str(self.root.parent)) or target.startswith(root + "/"))
        return target if ours else None

    def _called(self, name: str, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        label = _RANDOM.sub(r"\1", os.path.relpath(path, self.root))
        point = Point(name, label, self._seen[name, label])
        self._seen[name, label] += 1
        self.points.append(point)
        if self.fault is not None:
            done = self._inject(self.fault.kind, point, name, args, kwargs)
            if done is not None:
                return done
        return self._do(name, path, args, kwargs)

    def _do(self, name: str, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The real call, and what of it a power cut would take back."""
        folder = os.path.dirname(path)
        before = self._keep(path) if name in ("replace", "rename", "unlink") else None
        creates = name == "open" and args[1] & os.O_CREAT and not os.path.exists(path)
        result = self._real[name](*args, **kwargs)
        if name == "open":
            self._names[result] = path
            if args[1] & _WRITING:
                self.opened.append(os.path.relpath(path, self.root))
            if creates:
                self._changes.append(_Change(folder, lambda: self._real["unlink"](path)))
        elif name in (*WRITES, "ftruncate"):
            self._dirty[os.fstat(args[0]).st_ino] = None
        elif name == "fsync":
            self._dirty.pop(os.fstat(args[0]).st_ino, None)
            self._changes = [c for c in self._changes if c.folder != path]
        elif name == "close":
            del self._names[args[0]]
        elif name == "mkdir":
            self._changes.append(_Change(folder, lambda: shutil.rmtree(path)))
        elif name in ("replace", "rename"):
            self._changes.append(_Change(folder, lambda: self._move_back(os.fspath(args[0]), path, before)))
        elif name == "unlink" and before is not None:
            self._changes.append(_Change(folder, lambda: self._real["replace"](before, path)))
        return result

    def _keep(self, path: str) -> str | None:
        """Another name, outside the tree, for what a call is about to take away."""
        if not os.path.isfile(path):
            return None
        keep = self.root.parent / f"{self.root.name}.kept"
        if not keep.is_dir():
            self._real["mkdir"](keep)
        other = str(keep / str(time.monotonic_ns()))
        os.link(path, other)
        return other

    def _move_back(self, source: str, target: str, before: str | None) -> None:
        if os.path.isdir(os.path.dirname(source)):
            self._real["replace"](target, source)
        else:
            self._real["unlink"](target)
        if before is not None:
            self._real["replace"](before, target)

    def _inject(self, kind: str, point: Point, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The fault, if this is its place; a result where the call is answered here, else None."""
        assert self.fault is not None
        here = point == self.fault.point
        after = self.fired
        self.fired = self.fired or here
        if kind in ("die", "power", "metadata") and here:
            self.cut(kind)
        if kind == "eio" and here:
            self._fail(errno.EIO, name, args)
        if kind == "enospc" and (here or (after and self._takes_space(name, args))):
            self._fail(errno.ENOSPC, name, args)
        if kind == "erofs" and (here or (after and name not in ("close", "fsync") and self._changes_disk(name, args))):
            self._fail(errno.EROFS, name, args)
        if kind in ("short", "torn") and here:
            done = self._half(name, args)
            if kind == "torn":
                os._exit(DIED)
            return done
        return None

    def _takes_space(self, name: str, args: tuple[Any, ...]) -> bool:
        return name in NEEDS_SPACE and (name != "open" or bool(args[1] & os.O_CREAT))

    def _changes_disk(self, name: str, args: tuple[Any, ...]) -> bool:
        return name != "open" or bool(args[1] & _WRITING)

    def _fail(self, code: int, name: str, args: tuple[Any, ...]) -> None:
        if name == "close":  # the descriptor is gone all the same, as Linux has it
            del self._names[args[0]]
            self._real["close"](args[0])
        raise OSError(code, os.strerror(code), args[0] if isinstance(args[0], str | os.PathLike) else None)

    def _half(self, name: str, args: tuple[Any, ...]) -> int:
        data = b"".join(bytes(b) for b in args[1]) if name == "writev" else bytes(args[1])
        self._dirty[os.fstat(args[0]).st_ino] = None
        half = data[: max(len(data) // 2, 1)]
        return int(
            self._real["pwrite"](args[0], half, args[2]) if name == "pwrite" else self._real["write"](args[0], half)
        )
