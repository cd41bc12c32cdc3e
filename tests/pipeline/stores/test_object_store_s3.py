"""A real S3 server on loopback that fails as stores fail: nothing is lost, nothing half is seen, bytes are equal.

Needs ``pip install -e '.[s3test]'``; skipped where it is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.reading.reader import Dataset, opened
from pipeline.reading.verify import verify
from pipeline.sources import registry
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.stores.cache import CacheConfig
from pipeline.stores.lease import hold
from pipeline.stores.records import committed
from pipeline.stores.remote import RemoteStore, store_of
from pipeline.stores.retry import ENVIRONMENT, StoreConfig
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream, StreamConfig
from pipeline.writing import run as runs
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema import layout
from shards_schema.errors import DatasetError, HeldError, IncompleteError, MissingFileError, StoreError
from shards_schema.plan import PlanConfig
from teachers.base import column_manifest
from tests.s3_server import Faults, FaultyS3, s3_server
from tests.toys import ToyTeacher

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

QUICK = StoreConfig(first_wait=0.01, longest_wait=0.1, concurrency=8, single_put_mb=10)
HASTY = QUICK.model_copy(update={"read_timeout": 1})
"""Waits a second for an answer: of a server that shares its cores, such a limit is a fault at random."""
EVERY = {"500": 0.06, "503": 0.06, "reset": 0.06, "lost": 0.04, "cut": 0.06}
SECRET = "hunter2hunter2"


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv(ENVIRONMENT, QUICK.model_dump_json())
        store_of("s3://bucket").fs.mkdir("bucket")
        yield server


@pytest.fixture(autouse=True)
def _well(s3: FaultyS3) -> Iterator[None]:
    s3.reset()
    yield
    s3.reset()


# --- files


@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost", "cut", "slow"])
def test_each_fault_is_outlived(s3: FaultyS3, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "slow":
        monkeypatch.setenv(ENVIRONMENT, HASTY.model_dump_json())
    volume = Volume(f"s3://bucket/fault-{fault}")
    rate, files = (0.15, 4) if fault == "slow" else (0.35, 5)
    s3.reset(Faults({fault: rate}, seed=1, slow=1.5))
    for i in range(files):
        data = os.urandom(5000 * i + 1)
        assert volume.put(f"a/{i}", data).sha256 == hashlib.sha256(data).hexdigest()
        assert volume.read(f"a/{i}") == data
        assert volume.size(f"a/{i}") == len(data)
        with volume.open(f"a/{i}") as file:
            file.seek(len(data) // 2)
            assert file.read() == data[len(data) // 2 :]
        assert volume.exists(f"a/{i}")
        assert not volume.exists(f"a/{i}-none")
    assert volume.names("a") == sorted(str(i) for i in range(files))
    assert len(volume.walk()) == files
    assert s3.met()[fault] >= 2


def test_a_store_that_stays_ill_is_told_with_the_count(s3: FaultyS3) -> None:
    volume = Volume("s3://bucket/ill")
    volume.put("x", b"1")
    s3.reset(Faults({"503": 1}))
    deeds = (
        lambda: volume.read("x"),
        lambda: volume.exists("x"),
        lambda: volume.put("x", b"2"),
        lambda: volume.names(""),
    )
    for deed in deeds:
        before = len(s3.log)
        with pytest.raises(StoreError, match=r"s3://bucket/ill.*: failed 7 times in .* HTTP 503"):
            deed()
        assert len(s3.log) - before == 7  # no library beneath retries as well
    s3.reset()
    assert volume.read("x") == b"1"


def test_what_waiting_does_not_mend_is_told_at_once(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume("s3://bucket/refused")
    s3.reset(Faults({"403": 1}))
    for deed in (
        lambda: volume.read("x"),
        lambda: volume.exists("x"),
        lambda: volume.put("x", b""),
        lambda: volume.names(""),
    ):
        before = len(s3.log)
        with pytest.raises(StoreError, match=r"s3://bucket/refused.*: refused \(HTTP 403.* credentials") as raised:
            deed()
        assert len(s3.log) - before == 1
        assert SECRET not in str(raised.value)
    s3.reset()
    with pytest.raises(StoreError, match="write s3://nobucket/x/y: NoSuchBucket: the bucket does not exist"):
        Volume("s3://nobucket/x").put("y", b"")
    with pytest.raises(StoreError, match="read s3://nobucket/x/y: NoSuchBucket"):
        Volume("s3://nobucket/x").read("y")
    with pytest.raises(MissingFileError, match="s3://bucket/refused/x is not there"):
        volume.read("x")


def test_half_an_upload_never_shows(s3: FaultyS3) -> None:
    volume = Volume("s3://bucket/half")
    volume.put("x", b"old")
    s3.reset(Faults({"reset": 1}, methods=("PUT",)))  # each breaks halfway through the body
    for name in ("x", "y"):
        with pytest.raises(StoreError, match="failed 7 times"):
            volume.put(name, os.urandom(3 << 20))
    s3.reset()
    assert volume.read("x") == b"old"
    assert volume.walk() == ["x"]


def uploads(prefix: str) -> list[Any]:
    found = store_of("s3://bucket").fs.call_s3("list_multipart_uploads", Bucket="bucket", Prefix=prefix)
    return list(found.get("Uploads") or [])


def test_large_files_go_in_parts_and_leave_none_behind(s3: FaultyS3) -> None:
    volume = Volume("s3://bucket/large")
    data = os.urandom((12 << 20) + 7)
    for _ in range(30):  # which requests fail follows from the upload's id, which is the server's to choose
        s3.reset(Faults({"500": 0.15, "lost": 0.1}, seed=3, only="partNumber"))
        assert volume.put("x", data).size == len(data)
        if s3.met():
            break
    assert s3.met()
    asked = [a for a in s3.log if "partNumber" in a.query]
    assert 3 < len(asked) < 12  # parts are made again one by one
    s3.reset()
    assert volume.read("x") == data
    s3.reset(Faults({"500": 1}, only="partNumber"))
    with pytest.raises(StoreError):
        volume.put("y", data)
    s3.reset()
    assert not volume.exists("y")
    assert uploads("large/") == []  # aborted
    call = store_of("s3://bucket").fs.call_s3
    for key in ("large/killed", "largest/other"):
        call("create_multipart_upload", Bucket="bucket", Key=key)  # and its process dies
    s3.reset(Faults({"403": 1}, only="uploads"))
    assert volume.sweep() == 0  # a key without this right can run all the same
    s3.reset()
    assert volume.sweep() == 1
    assert [u["Key"] for u in uploads("large")] == ["largest/other"]  # another's is left alone


def test_of_two_that_take_a_dead_claim_over_one_is_refused(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, claim, others = Volume("s3://bucket/dead"), {"beat": 0.05, "expiry": 0.2}, list[Any]()
    write = RemoteStore.write

    def write_late(self: RemoteStore, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(RemoteStore, "write", write)
        others.append(hold(volume, **claim))
        others[0].__enter__()  # while the first is about to write
        write(self, *arguments, **options)

    volume.put(layout.LOCK, b'{"host": "dead"}')
    monkeypatch.setattr(RemoteStore, "write", write_late)
    with pytest.raises(HeldError, match=f"pid {os.getpid()}"):
        hold(volume, **claim).__enter__()
    others[0].__exit__(None, None, None)
    assert volume.walk() == []
    assert {a.method for a in s3.log if a.key.endswith(layout.LOCK)} == {"GET", "HEAD", "PUT", "DELETE"}


# --- the job


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("logs") / "data"
    config = {"logs": 2, "frames": 8, "width": 96, "height": 54, "lidar_points": 0, "cameras": ["CAM_F0"]}
    quick = {"traffic": 0.0, "manoeuvres": ["straight"], "processes": 1}
    made = registry.build({"kind": "synthetic", "root": str(root), **config, **quick})
    assert made.synthetic
    return root


@pytest.fixture(scope="module")
def remote_logs(s3: FaultyS3, logs: Path) -> str:
    s3.reset()
    fs = store_of("s3://bucket").fs
    for path in logs.rglob("*"):
        if path.is_file() and ("CAM_F0" in path.parts or "sensor_blobs" not in path.parts):
            fs.pipe_file(f"bucket/data/{path.relative_to(logs).as_posix()}", path.read_bytes())
    return "s3://bucket/data"


def source_at(root: str) -> NavsimSource:
    filter_ = {"frame_interval": 1, "num_history_frames": 2, "num_future_frames": 3}
    return NavsimSource(NavsimConfig(root=root, split="mini", filter=filter_))  # type: ignore[arg-type]


def begin(root: str, out: str) -> runs.Run:
    samples = SamplesColumn(SamplesConfig(), num_history=2, num_future=3)
    manifests = [samples.manifest({}), column_manifest(ToyTeacher())]
    return runs.begin(source_at(root), out, manifests, plan_config=PlanConfig(shard_size=4))


def work(run: runs.Run, root: str, tasks: int | None = None) -> None:
    worker = ShardWorker(
        source=source_at(root),
        volume=run.volume,
        teachers=[ToyTeacher()],
        samples=SamplesColumn(SamplesConfig(), num_history=2, num_future=3),
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=4,
        zarr=True,
        config=WorkerConfig(device="cpu", decode_threads=2),
    )
    worker.load()
    try:
        for task in run.todo()[:tasks]:
            worker.process(task)
    finally:
        worker.close()


def make(root: str, out: str) -> runs.Run:
    run = begin(root, out)
    work(run, root)
    runs.close(run)
    return run


def contents(out: str) -> dict[str, str]:
    """Path -> digest; `dataset.json` and the records but for the source's root and the seals that follow from it."""
    volume, found = Volume(out), {}
    for path in volume.walk():
        data = volume.read(path)
        if path == layout.DATASET or layout.shard_of_record(path.rsplit("/", 1)[-1]) is not None:
            document = json.loads(data)
            document.get("source", {}).pop("root", None)
            document = {k: v for k, v in document.items() if k not in ("sha256", "dataset")}
            data = json.dumps(document, sort_keys=True).encode()
        found[path] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def local(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("local") / "out")
    make(str(logs), out)
    return out


def test_input_and_output_on_a_failing_store_equal_the_local_run(s3: FaultyS3, remote_logs: str, local: str) -> None:
    s3.reset(Faults(EVERY, seed=5))
    out = "s3://bucket/run"
    make(remote_logs, out)
    assert set(s3.met()) == set(EVERY), s3.met()
    assert contents(out) == contents(local)
    report = verify(out)
    assert report.faults == ()
    assert report.incomplete == {}
    assert sum(report.quarantined.values()) == 0
    assert SECRET not in Volume(out).read(layout.DATASET).decode()
    puts = [a.key for a in s3.log if a.method == "PUT"]
    for column in ("samples", "toy"):  # the record after everything that it names
        for shard in committed(Volume(out), column):
            record = Volume(out).path(layout.record(column, shard)).removeprefix("s3://")
            for path in json.loads(Volume(out).read(layout.record(column, shard)))["files"]:
                last = max(i for i, key in enumerate(puts) if key == f"bucket/run/{path}")
                assert last < puts.index(record)


def test_the_same_from_a_store_in_memory(logs: Path, local: str, tmp_path: Path) -> None:
    import fsspec

    root, out = f"memory://{tmp_path}/data", f"memory://{tmp_path}/out"
    fsspec.filesystem("memory").put(str(logs), f"{tmp_path}/data", recursive=True)
    make(root, out)
    assert contents(out) == contents(local)


def test_a_run_that_the_store_stopped_is_resumed(s3: FaultyS3, remote_logs: str, local: str) -> None:
    out = "s3://bucket/resumed"
    run = begin(remote_logs, out)
    work(run, remote_logs, tasks=1)
    s3.reset(Faults({"503": 1}, only="sensor_blobs"))
    with pytest.raises(StoreError, match="failed 7 times"):  # not a quarantined sample
        work(run, remote_logs)
    s3.reset(Faults({"503": 1}, methods=("PUT",)))
    with pytest.raises(StoreError, match="write s3://bucket/resumed"):
        work(run, remote_logs)
    s3.reset(Faults({"500": 1}, only="dataset.json"))
    with pytest.raises(StoreError, match=r"dataset\.json"):  # "I cannot see it" is not "it is not there"
        begin(remote_logs, out)
    s3.reset()
    assert len(begin(remote_logs, out).todo()) == run.plan.shards - 1
    make(remote_logs, out)
    assert contents(out) == contents(local)
    assert verify(out).faults == ()


def test_listings_that_come_late_lose_nothing(s3: FaultyS3, remote_logs: str, local: str) -> None:
    out = "s3://bucket/late"
    s3.reset(Faults(listing_delay=3.0))
    for _ in range(8):  # the same command again, as the error says
        try:
            run = make(remote_logs, out)
            break
        except IncompleteError:  # close() goes by the listing: it says "run the same command again"
            time.sleep(1)
    s3.reset(Faults(listing_delay=60.0))  # whoever reads now is shown none of the records
    volume = Volume(out)
    volume.put("toy/000001.json", volume.read("toy/000001.json"))
    dataset = Dataset(out, columns=["samples", "toy"])
    assert len(dataset.tokens("samples", "toy")) == run.plan.samples
    s3.reset()
    assert contents(out) == contents(local)
    assert verify(out).faults == ()


# --- reading


def bytes_in(folder: Path) -> int:
    """Of the files of a cache that others are writing: one may get its name between the list and the look."""
    total = 0
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_ranges_and_the_cache_read_what_the_disk_has(
    s3: FaultyS3, remote_logs: str, local: str, tmp_path: Path
) -> None:
    out, folder = "s3://bucket/read", tmp_path / "cache"
    fs = store_of("s3://bucket").fs
    fs.put(local, "bucket/read", recursive=True)
    s3.reset(Faults(EVERY, seed=9))
    there = Dataset(local)
    wanted = {"samples": ["json", "cam_f0.jpg"], "toy": ["grid", "mean"]}
    plain = Dataset(out)
    before = s3.count("GET", ".tar")
    token = there.tokens("toy")[0]
    _equal(plain.read(token, wanted), there.read(token, wanted))
    assert s3.count("GET", ".tar") - before == 4  # one request a member, of its bytes alone
    s3.reset(Faults(EVERY, seed=10))
    files = [file for shard in opened(there).tars(["samples", "toy"]).values() for file in shard]
    size = sum(file.digest.size for file in files)
    config = StreamConfig(batch_size=2, shuffle="window", window=2, seed=3)
    for reader in range(2):  # another process of the node, later: nothing more to fetch
        dataset = Dataset(out, cache=CacheConfig(folder=str(folder), max_bytes=size))
        made = ShardStream(dataset, wanted, config, rank=0, world_size=1)
        for epoch in range(2):
            made.set_epoch(epoch)
            for sample in made:
                _equal(
                    {k: v for k, v in sample.items() if k == "toy"}, there.read(sample["token"], {"toy": wanted["toy"]})
                )
                assert bytes_in(folder) <= size
        tars = [a.key for a in s3.log if a.method == "GET" and a.key.endswith(".tar") and a.fault in (None, "slow")]
        assert len(tars) == len(set(tars)) == len(files), reader


def _equal(a: Any, b: Any) -> None:
    for column, values in a.items():
        for name, value in values.items():
            if isinstance(value, bytes | dict):
                assert value == b[column][name]
            else:
                np.testing.assert_array_equal(np.asarray(value), b[column][name])


def test_a_changed_file_is_not_served_from_the_cache(s3: FaultyS3, local: str, tmp_path: Path) -> None:
    fs = store_of("s3://bucket").fs
    fs.put(local, "bucket/changed", recursive=True)
    volume = Volume("s3://bucket/changed")
    data = bytearray(volume.read("toy/000000.tar"))
    data[len(data) // 2] ^= 1
    volume.put("toy/000000.tar", bytes(data))
    dataset = Dataset("s3://bucket/changed", cache=CacheConfig(folder=str(tmp_path), max_bytes=1 << 30))
    with pytest.raises(DatasetError, match=r"shard 0, s3://bucket/changed/toy/000000.tar: sha256"):
        dataset.read(dataset.tokens("toy")[0])
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == [] or {
        hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in tmp_path.glob("[!.]*")
    } == {True}
