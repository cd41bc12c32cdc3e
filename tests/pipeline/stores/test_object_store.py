"""What any remote store needs: which failures pass, no secrets in URLs, a cache that is bounded and never wrong."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub.errors import OfflineModeIsEnabled

from pipeline.reading.reader import Dataset, opened
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.stores.cache import CacheConfig, CommittedFile, FileCache
from pipeline.stores.retry import (
    ENVIRONMENT,
    StoreConfig,
    describe,
    retrying,
    store_config,
    transient,
    without_credentials,
)
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream, StreamConfig
from pipeline.writing.images import ShardImages, read_image
from shards_schema.commit import FileDigest
from shards_schema.errors import ConfigError, DigestError, SampleError, StoreError
from tests.pipeline.stream import stream_toys as toys

ROOT = Path(__file__).parents[3]
QUICK = StoreConfig(attempts=4, first_wait=0.001, longest_wait=0.002)


# --- which failures pass


def boto(code: str, status: int) -> Exception:
    """What botocore raises, by its shape."""
    error = type("ClientError", (Exception,), {})(f"An error occurred ({code})")
    error.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


HTTP = type("ClientResponseError", (Exception,), {})


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "busy"), True),
        (caused(OSError(errno.EREMOTEIO, "We encountered an internal error"), boto("InternalError", 500)), True),
        (caused(OSError(errno.EBUSY, "Please reduce your request rate"), boto("SlowDown", 503)), True),
        (caused(OSError(errno.EINVAL, "x"), boto("IncompleteBody", 400)), True),
        (caused(OSError(errno.EIO, "x"), boto("TooManyRequests", 429)), True),
        (type("ClientPayloadError", (Exception,), {})(), True),  # aiohttp: the body was cut
        (type("ReadTimeoutError", (type("HTTPClientError", (Exception,), {}),), {})(), True),  # botocore
        (caused(OSError(errno.EINVAL, "x"), boto("InvalidRange", 416)), False),
        (caused(OSError(errno.EINVAL, "x"), boto("InvalidArgument", 400)), False),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (PermissionError("x"), False),
        (OSError(errno.ENOSPC, "disk full"), False),
        (ValueError("a bug"), False),
    ],
)
def test_what_passes_is_asked_again(error: Exception, passes: bool) -> None:
    assert transient(error) is passes
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(Exception) as raised:  # noqa: PT011 (which one is checked below)
        retrying(call, "read s3://b/x", QUICK)
    if passes:
        assert len(calls) == 4
        assert isinstance(raised.value, StoreError)
        assert "read s3://b/x: failed 4 times" in str(raised.value)
        assert isinstance(pickle.loads(pickle.dumps(raised.value)), StoreError)  # it crosses Ray
    else:
        assert len(calls) == 1


def test_a_fault_that_ends_is_not_told() -> None:
    left = [TimeoutError(), ConnectionResetError(), TimeoutError()]
    assert retrying(lambda: "got" if not left else _raise(left.pop()), "x", QUICK) == "got"


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("code", ["NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_what_needs_a_person_says_so(code: str) -> None:
    error = caused(FileNotFoundError("x"), boto(code, 403))
    with pytest.raises(StoreError, match=f"read s3://b/x: {code}: .*in the environment"):
        retrying(lambda: _raise(error), "read s3://b/x", QUICK)


def test_waits_grow_and_differ() -> None:
    config = StoreConfig(first_wait=1, longest_wait=10)
    for attempt, whole in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (500, 10)):
        waits = [config.wait(attempt) for _ in range(100)]
        assert whole / 2 <= min(waits) < max(waits) <= whole


def test_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_config() == StoreConfig()
    monkeypatch.setenv(ENVIRONMENT, '{"attempts": 3}')
    assert store_config().attempts == 3
    for wrong in ("attempts=3", '{"tries": 3}', '{"attempts": 0}'):
        monkeypatch.setenv(ENVIRONMENT, wrong)
        with pytest.raises(ConfigError, match="should be JSON with some of attempts, "):
            store_config()


# --- no secrets


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/run",
        "https://hunter2@host/run",
        "https://host/run?X-Amz-Signature=hunter2",
        "simplecache::s3://AKIA:hunter2@bucket/run",
        "abfs://user:hunter2@account/run",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    for use in (Volume, Dataset, lambda url: NavsimSource(NavsimConfig(root=url, split="mini"))):
        with pytest.raises(ConfigError, match="give credentials in the environment") as raised:
            use(url)
        assert "hunter2" not in str(raised.value)


def test_errors_of_libraries_are_told_without_secrets() -> None:
    error = OSError(errno.EIO, "GET https://me:hunter2@host/x?token=hunter2&y=1 'https://h/z?sig=hunter2'")
    assert "hunter2" not in describe(error)
    assert without_credentials("s3://bucket/a/b is not there") == "s3://bucket/a/b is not there"


def test_an_unknown_protocol_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        Volume("nosuch://x/y")


# --- images


def test_a_failing_store_quarantines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, QUICK.model_dump_json())

    class Broken(MemoryFileSystem):  # type: ignore[misc]
        protocol = "broken"

        def cat_file(self, path: str, **kwargs: Any) -> bytes:
            raise ConnectionResetError

    fsspec.register_implementation("broken", Broken, clobber=True)
    with pytest.raises(StoreError, match="failed 4 times"):
        read_image("broken://a/b.jpg")
    with pytest.raises(SampleError, match="no such file"):
        read_image(f"memory://{uuid.uuid4().hex}.jpg")
    source = NavsimSource(NavsimConfig(root="broken://a", split="mini"))
    with pytest.raises(StoreError, match="failed 4 times"):
        source.scenes("log", [])


def test_images_are_fetched_side_by_side_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg

    monkeypatch.setenv(ENVIRONMENT, '{"concurrency": 4}')
    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    lock, now, most, undecoded, held = threading.Lock(), Counter[str](), Counter[str](), Counter[str](), []
    paths = [f"memory://image/{i}.jpg" for i in range(40)]
    four = threading.Barrier(4)

    def read(path: str) -> bytes:
        with lock:
            now["reads"] += 1
            undecoded["jpegs"] += 1
            most["reads"] = max(most["reads"], now["reads"])
            most["jpegs"] = max(most["jpegs"], undecoded["jpegs"])
        if path in paths[:4]:
            four.wait()  # comes to nothing unless four are under way at once
        with lock:
            now["reads"] -= 1
        if path == paths[7]:
            raise SampleError("image_missing", path)
        return bytes(jpeg)

    def make(data: bytes, image: Any) -> int:
        time.sleep(0.002)
        with lock:
            undecoded["jpegs"] -= 1
        return len(data)

    with ThreadPoolExecutor(1) as pool:
        images = ShardImages(read, {"a": make})
        for path in paths:
            images.want("a", path)
        images.start(pool)
        for path in paths:
            if path == paths[7]:
                with pytest.raises(SampleError):
                    images.take("a", path)
                continue
            held.append(images.take("a", path))
        assert held == [len(jpeg)] * 39
        assert images.decodes == 39
        assert most["reads"] == 4  # more than the one thread that decodes
        assert most["jpegs"] <= 10  # 2 x concurrency, the one being decoded, and the one that never was
        images.drop()
        # left in the middle: nothing hangs, nothing goes on
        images = ShardImages(read, {"a": make})
        for path in paths:
            images.want("a", path)
        images.start(pool)
        images.take("a", paths[0])
        images.drop()
    before = threading.active_count()
    time.sleep(0.05)
    assert threading.active_count() <= before


# --- the cache


def wanted(data: bytes, where: str = "memory://x") -> CommittedFile:
    file = CommittedFile(0, "x.tar", FileDigest(len(data), hashlib.sha256(data).hexdigest()), where)
    STORE[file] = [data]
    return file


STORE: dict[CommittedFile, list[bytes]] = {}
"""What is sent for a file, download by download; the last for ever."""


def cache(folder: Path, max_bytes: int, fetched: list[tuple[int, int]] | None = None) -> FileCache:
    def fetch(file: CommittedFile, start: int, end: int) -> bytes:
        if fetched is not None:
            fetched.append((start, end))
        sent = STORE[file]
        return (sent.pop(0) if len(sent) > 1 else sent[0])[start:end]

    return FileCache(CacheConfig(folder=str(folder), max_bytes=max_bytes), fetch)


def held(folder: Path) -> int:
    """Bytes in a cache that others may be writing: a file may get its name between the list and the look."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += 0 if path.name.startswith(".") else path.stat().st_size
    return total


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    data, fetched = os.urandom((8 << 20) + 5), list[tuple[int, int]]()
    one, other = cache(tmp_path, 1 << 30, fetched), cache(tmp_path, 1 << 30, fetched)
    ranges = [(0, 3), (1 << 20, 100), (8 << 20, 5)]
    for store in (one, other, one):
        assert store.read(wanted(data), ranges) == [data[a : a + n] for a, n in ranges]
    assert fetched == [(0, 8 << 20), (8 << 20, (8 << 20) + 5)]
    assert held(tmp_path) == len(data)


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    files = [bytes([i]) * 1000 for i in range(4)]
    fetched = list[tuple[int, int]]()
    store = cache(tmp_path, 3000, fetched)
    for i in (0, 1, 2, 0, 3):  # 3 pushes out 1
        store.read(wanted(files[i]), [(0, 1)])
        assert held(tmp_path) <= 3000
    fetched.clear()
    for i in (0, 2, 3):
        store.read(wanted(files[i]), [(0, 1)])
    assert not fetched
    store.read(wanted(files[1]), [(0, 1)])
    assert len(fetched) == 1
    assert store.read(wanted(b"x" * 3001), [(0, 1)]) is None  # larger than the cache: not kept
    assert len(fetched) == 1
    assert held(tmp_path) == 3000


def test_what_arrives_wrong_is_not_kept(tmp_path: Path) -> None:
    file = wanted(b"x" * 100, "s3://b/toy/000000.tar")
    STORE[file] = [b"y" * 100]
    with pytest.raises(DigestError, match=r"s3://b/toy/000000.tar: sha256 .* commit record says"):
        cache(tmp_path, 1000).read(file, [(0, 1)])
    assert held(tmp_path) == 0
    STORE[file] = [b"y" * 100, b"x" * 100]  # wrong on the way, once
    assert cache(tmp_path, 1000).read(file, [(0, 1)]) == [b"x"]


def test_a_file_that_was_cut_on_disk_is_fetched_again(tmp_path: Path) -> None:
    store, data = cache(tmp_path, 1000), os.urandom(100)
    store.read(wanted(data), [(0, 1)])
    path = tmp_path / hashlib.sha256(data).hexdigest()
    path.write_bytes(data[:50])
    assert store.read(wanted(data), [(60, 10)]) == [data[60:70]]
    assert path.read_bytes() == data


PROCESS = """
import sys, time, random, hashlib
from pathlib import Path
from pipeline.stores.cache import CacheConfig, CommittedFile, FileCache
from shards_schema.commit import FileDigest
folder, log, (max_bytes, seed, wait) = Path(sys.argv[1]), Path(sys.argv[2]), map(float, sys.argv[3:6])
def content(i):
    return bytes([i]) * (1000 + i)
def fetch(file, start, end):
    with log.open("a") as seen:
        seen.write(f"{file.shard}\\n")
    time.sleep(wait)
    return content(file.shard)[start:end]
cache = FileCache(CacheConfig(folder=str(folder), max_bytes=max_bytes), fetch)
rng = random.Random(seed)
def wanted(i):
    return CommittedFile(i, "x.tar", FileDigest(1000 + i, hashlib.sha256(content(i)).hexdigest()), "x")
print("ready", flush=True)
for _ in range(int(sys.argv[6])):
    i = rng.randrange(8)
    got = cache.read(wanted(i), [(0, 10), (990, 10)])
    assert got is None or got == [bytes([i]) * 10] * 2, got
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_share_it_and_the_bound_holds(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    log.touch()
    roomy = [start(folder, log, 100_000, seed, 0.01, 60) for seed in range(2)]
    assert [p.wait() for p in roomy] == [0, 0]
    assert sorted(log.read_text().split()) == [str(i) for i in range(8)]  # each file once, whoever asked first
    folder = tmp_path / "tight"
    tight = [start(folder, log, 3500, seed, 0.001, 60) for seed in range(2)]
    most = 0
    while any(p.poll() is None for p in tight):
        sizes = []
        for path in folder.iterdir() if folder.exists() else ():
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:  # this look is torn: a file was renamed or went
                break
        else:
            most = max(most, sum(sizes))
        time.sleep(0.001)
    assert [p.wait() for p in tight] == [0, 0]
    assert 0 < held(folder) <= 3500
    assert most <= 3500 + 1008  # a look may see a part before and the same file after its renaming


def test_half_a_file_of_a_killed_process_never_counts(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    process = start(folder, log, 1100, 0, 60, 1)
    while not (log.exists() and log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = folder.glob("*.part")
    assert part.stat().st_size >= 1000
    data = b"z" * 1050
    assert cache(folder, 1100).read(wanted(data), [(1049, 1)]) == [b"z"]  # there was room for one of the two
    assert not part.exists()
    assert held(folder) == 1050


# --- reader and stream through the cache


class Counted(MemoryFileSystem):  # type: ignore[misc]
    """Notes each request for bytes."""

    protocol = "asked"
    asked: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("asked://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.asked[path.rsplit("/", 2)[-2] + "/" + path.rsplit("/", 1)[-1]] += 1
        return bytes(super().cat_file(path, start=start, end=end, **kwargs))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toys.make(tmp_path_factory.mktemp("cached"), logs=6)


@pytest.fixture
def remote(out: str) -> Iterator[str]:
    fsspec.register_implementation("asked", Counted, clobber=True)
    Counted().put(out, "/cache-test", recursive=True)
    Counted.asked.clear()
    yield "asked://cache-test"
    Counted().rm("/cache-test", recursive=True)


def tars() -> dict[str, int]:
    return {name: n for name, n in Counted.asked.items() if name.endswith(".tar")}


def stream(dataset: Dataset, **options: Any) -> ShardStream:
    return ShardStream(dataset, toys.TARGETS, StreamConfig(batch_size=3, seed=1, **options), rank=0, world_size=1)


def values(made: ShardStream) -> list[tuple[str, bytes]]:
    return [(s["token"], s["toy"]["grid"].numpy().tobytes()) for s in made]


@pytest.mark.parametrize("options", [{"shuffle": "window", "window": 2}, {"shuffle": "none"}, {}])
def test_each_shard_is_fetched_once_for_all_epochs(
    out: str, remote: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = stream(Dataset(remote, cache=CacheConfig(folder=str(tmp_path), max_bytes=1 << 30)), **options)
    plain = stream(Dataset(out), **options)
    for epoch in range(2):
        made.set_epoch(epoch)
        plain.set_epoch(epoch)
        assert values(made) == values(plain)
    assert len(tars()) == 12
    assert set(tars().values()) == {1}


def test_a_window_needs_no_more_room_than_itself_and_what_comes(out: str, remote: str, tmp_path: Path) -> None:
    tars_of = opened(Dataset(out)).tars(["samples", "toy"])
    room = 4 * max(sum(tar.digest.size for tar in tars) for tars in tars_of.values())  # of 6 shards
    dataset = Dataset(remote, cache=CacheConfig(folder=str(tmp_path), max_bytes=room))
    made = stream(dataset, shuffle="window", window=1, prefetch=1, threads=1)
    tokens = []
    for sample in made:
        tokens.append(sample["token"])
        assert held(tmp_path) <= room
        time.sleep(0.01)
    assert len(tokens) == 30
    assert set(tars().values()) == {1}, tars()


def test_the_next_shards_come_before_they_are_read(out: str, remote: str, tmp_path: Path) -> None:
    dataset = Dataset(remote, cache=CacheConfig(folder=str(tmp_path), max_bytes=1 << 30))
    made = iter(stream(dataset, shuffle="none", window=2, prefetch=1, threads=0))
    next(made)
    while len(tars()) < 6:
        time.sleep(0.01)
    assert sorted(tars()) == [f"{column}/{shard:06d}.tar" for column in ("samples", "toy") for shard in range(3)]


def test_a_cache_that_is_too_small_costs_requests_and_nothing_else(out: str, remote: str, tmp_path: Path) -> None:
    dataset = Dataset(remote, cache=CacheConfig(folder=str(tmp_path), max_bytes=10))
    assert values(stream(dataset)) == values(stream(Dataset(out)))
    assert held(tmp_path) == 0


def test_a_dataset_with_a_cache_pickles_and_forks(out: str, remote: str, tmp_path: Path) -> None:
    dataset = Dataset(remote, cache=CacheConfig(folder=str(tmp_path), max_bytes=1 << 30))
    token = dataset.tokens("toy")[0]
    for twin in (dataset, pickle.loads(pickle.dumps(dataset)), copy.copy(dataset)):
        np.testing.assert_array_equal(
            twin.read(token, {"toy": ["grid"]})["toy"]["grid"], Dataset(out).read(token)["toy"]["grid"]
        )
    assert tars() == {"toy/000000.tar": 1}


def test_a_local_dataset_leaves_the_cache_alone(out: str, tmp_path: Path) -> None:
    dataset = Dataset(out, cache=CacheConfig(folder=str(tmp_path / "c"), max_bytes=1 << 30))
    dataset.read(dataset.tokens("toy")[0])
    assert not (tmp_path / "c").exists()


def test_a_hub_that_is_switched_off_is_not_asked_again() -> None:
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        raise OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.")

    with pytest.raises(StoreError, match="read hf://x: HF_HUB_OFFLINE is set, so the hub was not asked"):
        retrying(ask, "read hf://x", StoreConfig(first_wait=0))
    assert asked == 1
