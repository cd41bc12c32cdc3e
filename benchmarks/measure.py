"""What every measurement needs: the machine in words, medians with their spread, a folder that goes away, processes."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")
PACKAGES = ("ray", "torch", "numpy", "simplejpeg", "webdataset", "zarr", "google-crc32c")
ROOT = Path(__file__).parent.parent


def print_machine() -> None:
    """Machine, load, versions, commit."""
    one, five, _ = os.getloadavg()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')}, {cpu()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"
    )
    print(
        f"load average at the start {one:.1f} (1 min), {five:.1f} (5 min); temporary files in {tempfile.gettempdir()}"
    )
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    print(f"commit {commit()}; python {platform.python_version()}, {versions}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown CPU")


def commit() -> str:
    """Of the working tree, with ``-dirty`` where it was edited; unknown where git or its folder is not here."""
    run = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(run, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def spread(values: Sequence[float], digits: int = 0) -> str:
    """``median (lowest to highest)``."""
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def interleaved(actions: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each action's results; every other round goes backwards, so that a drift of the machine favours none.

    One round before the first is not counted (files, pages and imports warm up in it).
    """
    results: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(-1, repeats):
        order = list(actions) if repeat % 2 else list(actions)[::-1]
        for name in order:
            value = actions[name]()
            if repeat >= 0:
                results[name].append(value)
    return results


def status(key: str) -> float:
    """Of this process, in MB: VmRSS, what it holds; VmHWM, the most that it held."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) * 1024 / 1e6


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder under the system's temporary one, removed with all that is in it."""
    with tempfile.TemporaryDirectory(prefix="last-shards-bench-") as folder:
        yield Path(folder)


def apart(measure: Callable[[], Value]) -> Value:
    """The result of `measure`, called in a forked process with one torch thread.

    Raises:
        RuntimeError: it ended without one.
    """
    import torch  # which the list of the measurements need not have

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        there.send(measure())

    process = context.Process(target=child)
    process.start()
    there.close()
    try:
        return cast(Value, here.recv())
    except EOFError as error:
        raise RuntimeError("the measured process failed; its traceback stands above") from error
    finally:
        process.join()


def drop(folder: Path) -> None:
    """Drop a folder's files from the page cache.

    Raises:
        RuntimeError: they stayed, so that a cold rate would be a lie.
    """
    stayed = total = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                cached = _cached(file.fileno())
            stayed, total = stayed + int(cached.sum()), total + len(cached)
    if stayed > 0.02 * total:
        raise RuntimeError(f"{folder}: {stayed} of {total} pages are still in the page cache")


def _cached(descriptor: int) -> NDArray[np.bool_]:
    """Which pages of a file are in the page cache (mincore)."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        arguments = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        failed = ctypes.CDLL(None, use_errno=True).mincore(*arguments)
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return (pages & 1).astype(bool)


def ranks(count: int, module: str, *words: str) -> str:
    """What `count` ranks of ``python -m module words`` print, with torchrun's environment.

    Raises:
        RuntimeError: one of them failed.
    """
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", module]
    done = subprocess.run([*run, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measured run failed:\n{done.stderr}")
    return done.stdout
