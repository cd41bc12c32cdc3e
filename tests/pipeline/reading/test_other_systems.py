"""The reading side where calls of Linux are missing: the same values, by what macOS and Windows have.

They are taken away in a process of its own, before anything of ours is imported there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.stream.stream_toys import make

ROOT = Path(__file__).parents[3]
MACOS = "RWF_NOWAIT posix_fadvise posix_fallocate fdatasync"
WINDOWS = f"{MACOS} pread preadv pwrite pwritev register_at_fork fork getuid geteuid O_CLOEXEC O_DIRECTORY O_NONBLOCK"
WINDOWS += " O_NOFOLLOW sched_getaffinity statvfs fcntl resource pwd grp"

READ = """
import hashlib, importlib, sys
import numpy, pyarrow, pyarrow.parquet, pydantic, fsspec, torch  # theirs: each has a build for these systems
from torch.utils.data import DataLoader
import os
missing = sys.argv[1].split()
for name in missing:
    if hasattr(os, name):
        delattr(os, name)
    else:
        sys.modules[name] = None
import last_shards as ls
if missing:
    from pipeline.stores import positioned
    positioned._LINUX = False
digest = hashlib.sha256()
dataset = ls.Dataset(sys.argv[2])
for token in dataset.tokens("samples", "toy"):
    sample = dataset.read(token)
    for name in ("grid", "mean", "path"):
        digest.update(sample["toy"][name].tobytes())
    digest.update(sample["samples"]["cam_f0.jpg"])
for threads in (0, 2):
    config = ls.StreamConfig(batch_size=4, threads=threads)
    for batch in ls.ShardStream(dataset, {"samples": ["cam_f0.jpg"], "toy": ["grid"]}, config).batches():
        digest.update(batch["toy"]["grid"].numpy().tobytes())
        digest.update(batch["samples"]["cam_f0.jpg"].numpy().tobytes())
print(digest.hexdigest())
if "fcntl" in missing:
    from pipeline.stores.cache import FileCache
    try:
        FileCache(ls.CacheConfig(folder=sys.argv[2], max_bytes=1), lambda *_: b"")
    except ls.ConfigError as error:
        assert "does not have; give none" in str(error)
    else:
        raise AssertionError("a cache without locks")
"""


def read(out: str, missing: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ, missing, out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("other_systems"))


@pytest.fixture(scope="module")
def here(out: str) -> str:
    return read(out, "")


@pytest.mark.parametrize("missing", [MACOS, WINDOWS], ids=["macos", "windows"])
def test_it_reads_the_same(out: str, here: str, missing: str) -> None:
    assert read(out, missing) == here
