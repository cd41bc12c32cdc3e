"""What a disk or a store fails at for a moment is held against no sample: each read of a source, each way to fail."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from maps.nuplan_map import load_map
from pipeline.sources import files
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from pipeline.stores.remote import store_of
from pipeline.stores.retry import ENVIRONMENT
from pipeline.writing import run as runs
from pipeline.writing.images import read_image
from scoring.devkit.metric_cache import find_caches, read_cache
from shards_schema.errors import MissingFileError, SampleError, StoreError
from shards_schema.records import Scene
from tests import made_once
from tests.committed import begin
from tests.toys import ToySource, ToyTeacher, write_images

DATA = Path(__file__).parents[2] / "data"
LOG = next((DATA / "navsim").glob("*.pkl"))
PASSING = ["EMFILE", "ENFILE", "EIO", "ESTALE", "EACCES", "ETIMEDOUT", "ENOMEM"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, '{"attempts": 3, "first_wait": 0.001}')


def _image(room: Path) -> tuple[Path, Callable[[], object]]:
    path = room / "log00" / "000.jpg"
    write_images(room, 1, 1)
    return path, lambda: read_image(str(path))


def _log(room: Path) -> tuple[Path, Callable[[], object]]:
    path = room / "navsim_logs" / "mini" / LOG.name
    path.parent.mkdir(parents=True)
    shutil.copy(LOG, path)
    source = NavsimSource(NavsimConfig(root=str(room), split="mini"))
    return path, lambda: (source.scan(), source.scenes(LOG.stem, []))


def _map(room: Path) -> tuple[Path, Callable[[], object]]:
    path = room / "map.gpkg"
    path.write_bytes(gzip.decompress((DATA / "pdm" / "maps" / "two_logs.gpkg.gz").read_bytes()))
    world = load_map(path)
    return path, lambda: world._file.layer("lanes_polygons", shapes=False)


def _cache(room: Path) -> tuple[Path, Callable[[], object]]:
    there = sorted(find_caches(DATA / "pdm" / "metric_cache_v2").values())[0]
    path = room / there.name
    shutil.copy(there, path)
    return path, lambda: read_cache(path)


@contextmanager
def _no_descriptor() -> Iterator[None]:
    """This process has all the open files that it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


READS = {"image": _image, "log": _log, "map": _map, "cache": _cache}


@pytest.mark.parametrize("what", READS)
def test_a_folder_that_goes_away_and_a_process_without_descriptors(tmp_path: Path, what: str) -> None:
    room = tmp_path / "room"
    room.mkdir()
    path, read = READS[what](room)
    read()
    with _no_descriptor(), pytest.raises(StoreError, match="Too many open files"):
        read()
    os.rename(path.parent, tmp_path / "away")
    if what == "log":
        source = NavsimSource(NavsimConfig(root=str(room), split="mini"))
        read = lambda: source.scenes(LOG.stem, [])  # noqa: E731  (a scan says that the folder holds no logs)
    with pytest.raises(StoreError, match="not there"):
        read()
    os.rename(tmp_path / "away", path.parent)
    read()


@pytest.mark.parametrize("what", [w for w in READS if w != "map"])  # GDAL opens its files itself
@pytest.mark.parametrize("name", PASSING)
def test_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, name: str) -> None:
    """Asked again, and then told as the store's fault; the kernel's answer is given here, as root may read anything."""
    path, read = READS[what](tmp_path)
    real, asked, fails = os.open, [0], [99]

    def refused(asked_for: Any, flags: int, *more: Any, **options: Any) -> int:
        if str(asked_for).endswith(path.name):
            asked[0] += 1
            if asked[0] <= fails[0]:
                raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(asked_for))
        return real(asked_for, flags, *more, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoreError, match=os.strerror(getattr(errno, name))):
        read()
    if what != "cache":  # those are read again with their shard
        assert asked[0] == 3
        asked[0], fails[0] = 0, 2
        read()


def test_what_is_held_against_a_file(tmp_path: Path) -> None:
    path, read = _image(tmp_path)
    path.unlink()
    with pytest.raises(SampleError, match=r"000\.jpg: no such file") as missing:
        read()
    assert missing.value.code == "image_missing"
    for bad in (f"{path.parent}", f"{path.parent}/{'x' * 300}.jpg", f"{tmp_path}/file/a.jpg", f"{tmp_path}/loop"):
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(SampleError) as caught:
            read_image(bad)
        assert caught.value.code == "image_unreadable"
    with pytest.raises(StoreError):
        read_image(f"{tmp_path}/never/there.jpg")
    with pytest.raises(SampleError) as known:
        read_image(f"{tmp_path}/never/there.jpg", absent={f"{tmp_path}/never/there.jpg"})
    assert known.value.code == "image_missing"
    with pytest.raises(MissingFileError):
        read_cache(tmp_path / "metric_cache.pkl")


def test_could_not_look_is_not_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, 1, 1)
    assert files.names(str(tmp_path)) == {"log00"}
    assert files.names(str(tmp_path / "a" / "b")) == set()
    assert files.exists(str(tmp_path / "log00" / "000.jpg"))
    assert not files.exists(str(tmp_path / "log00" / "001.jpg"))
    with pytest.raises(StoreError, match="not there"):
        files.exists(str(tmp_path / "a" / "b.jpg"))
    with _no_descriptor(), pytest.raises(StoreError, match="Too many"):
        files.names(str(tmp_path))

    def refused(path: Any, *more: Any, **options: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refused)
        with pytest.raises(StoreError, match="Stale"):
            files.exists(str(tmp_path / "log00" / "000.jpg"))


def test_a_folder_that_was_never_there(tmp_path: Path) -> None:
    """What the start found missing is image_missing, though its folder is not there; what it found is not."""
    write_images(tmp_path / "data", 3, 9)
    source = ToySource(str(tmp_path / "data"))
    run, worker = begin(source, tmp_path / "out", [ToyTeacher()])
    log = run.todo()[0].scenes[0].ref.log
    records = {log: source.scenes(log, [p.ref for p in run.todo()[0].scenes])}
    worker._source = ToySourceKnowing(source, records)
    shutil.rmtree(tmp_path / "data" / log)
    tokens = [p.ref.token for p in run.todo()[0].scenes]
    lost: dict[str, Any] = {token: tuple((step, "CAM_F0") for step in range(3)) for token in tokens}
    knowing = replace(run, scan=replace(run.scan, missing={"samples": lost, "toy": lost}))
    receipt = worker.process(knowing.todo()[0])
    worker.close()
    assert [dict(c.quarantined) for c in receipt.columns] == [{"image_missing": 5}] * 2


def test_a_shard_whose_images_go_away_is_not_committed(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 3, 9)
    source = ToySource(str(tmp_path / "data"))
    run, worker = begin(source, tmp_path / "out", [ToyTeacher()])
    first, second, *rest = run.todo()
    worker.process(first)
    log = tmp_path / "data" / second.scenes[0].ref.log
    scenes = source.scenes(log.name, [p.ref for p in second.scenes])
    away = ToySourceKnowing(source, {log.name: scenes})
    os.rename(log, tmp_path / "away")
    worker._source = away
    with pytest.raises(StoreError, match=f"{log.name}.*not there"):
        worker.process(second)
    os.rename(tmp_path / "away", log)
    for task in (second, *rest):
        worker.process(task)
    worker.close()
    assert [sum(t.quarantined.values()) for t in runs.close(run)] == [0, 0]


class ToySourceKnowing:
    """A source that has the records of some logs at hand, as one whose logs lie elsewhere than its images."""

    def __init__(self, source: ToySource, known: dict[str, list[Scene | SampleError]]) -> None:
        self._source, self._known = source, known

    def scenes(self, log: str, refs: Any) -> list[Scene | SampleError]:
        return self._known.get(log) or self._source.scenes(log, refs)


# --- nuPlan, near and far


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once.nuplan(tmp_path_factory)


EVERY = {"num_history_frames": 2, "num_future_frames": 1, "frame_interval": 1}


def _nuplan(root: str, made: Path) -> NuplanSource:
    maps = str(made / "maps")
    return NuplanSource(NuplanConfig(root=root, split="mini", maps_root=maps, filter=EVERY))  # type: ignore[arg-type]


def test_a_log_of_nuplan_on_a_disk_that_fails(made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "data", symlinks=True))
    source = _nuplan(f"{root}/nuplan-v1.1", root)
    scan = source.scan()
    log = scan.refs[0].log
    assert all(isinstance(s, Scene) for s in source.scenes(log, scan.refs))
    with _no_descriptor(), pytest.raises(StoreError):
        source.scenes(log, scan.refs)
    blobs = root / "nuplan-v1.1" / "sensor_blobs"
    os.rename(blobs, tmp_path / "away")
    with pytest.raises(StoreError):  # a window has frames before it or not: that is in the bits
        source.scenes(log, scan.refs)
    os.rename(tmp_path / "away", blobs)
    os.rename(root / "nuplan-v1.1" / "splits", tmp_path / "away")
    with pytest.raises(StoreError):
        source.scenes(log, scan.refs)


class Shaky(MemoryFileSystem):  # type: ignore[misc]
    """A store of synchronous calls, like hf://, that fails `left` times at any question of `kinds`, and counts."""

    protocol = "shaky"
    cachable = False
    left = 0
    kinds: frozenset[str] = frozenset()
    asked: dict[str, int] = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("shaky://", "memory://")))

    def _ask(self, kind: str) -> None:
        Shaky.asked[kind] = Shaky.asked.get(kind, 0) + 1
        if Shaky.left and kind in Shaky.kinds:
            Shaky.left -= 1
            raise ConnectionResetError("reset by peer")

    def info(self, path: str, **kwargs: Any) -> Any:
        self._ask("info")
        return super().info(path, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._ask("ls")
        return super().ls(path, detail=detail, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._ask("cat")
        return bytes(super().cat_file(path, start, end, **kwargs))


@pytest.fixture
def far(made: Path) -> Iterator[str]:
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    memory = fsspec.filesystem("memory")
    memory.put(f"{made / 'nuplan-v1.1'}/splits", "/shaky/nuplan-v1.1/splits", recursive=True)
    memory.put(f"{made / 'sensor_blobs' / 'mini'}", "/shaky/nuplan-v1.1/sensor_blobs", recursive=True)
    Shaky.left, Shaky.asked = 0, {}
    yield "shaky://shaky/nuplan-v1.1"
    Shaky.left = 0
    memory.rm("/shaky", recursive=True)


def test_nuplan_over_a_store_that_fails(made: Path, far: str) -> None:
    """Every kind of question, failing for a moment: the same scenes; for long: the store's fault, and no scene less."""
    source = _nuplan(far, made)
    scan = source.scan()
    log, refs = scan.refs[0].log, scan.refs
    plain = source.scenes(log, refs)
    assert any(scene.before for scene in plain if isinstance(scene, Scene))
    for kind in ("info", "ls", "cat"):
        Shaky.kinds, Shaky.left = frozenset({kind}), 2
        assert source.scan() == scan
        Shaky.left = 2
        again = source.scenes(log, refs)
        assert [len(s.before) for s in again if isinstance(s, Scene)] == [
            len(s.before) for s in plain if isinstance(s, Scene)
        ]
    for kind in ("info", "ls"):
        Shaky.kinds, Shaky.left = frozenset({kind}), 999
        with pytest.raises(StoreError, match="failed 3 times"):
            source.scan()
    Shaky.kinds, Shaky.left = frozenset({"info"}), 999
    with pytest.raises(StoreError, match="failed 3 times"):
        source.scenes(log, refs)


def test_a_remote_log_is_fetched_once(made: Path, far: str) -> None:
    source = _nuplan(far, made)
    refs = source.scan().refs
    fetched = Shaky.asked["cat"]
    for ref in refs:
        source.scenes(ref.log, [ref])
    assert Shaky.asked["cat"] == fetched
    path = store_of(far).path_of(f"{far}/splits/mini/{refs[0].log}.db")
    memory = fsspec.filesystem("memory")
    data = memory.cat_file(path)
    memory.pipe_file(path, data[:-4096])  # what is there is another log now
    with pytest.raises(SampleError, match="its header says"):
        source.scenes(refs[0].log, refs)
    memory.rm_file(path)
    with pytest.raises(SampleError, match="no such file"):
        source.scenes(refs[0].log, refs)


def test_a_token_that_expired_says_nothing_of_a_file(monkeypatch: pytest.MonkeyPatch, far: str) -> None:
    """huggingface_hub tells it as `FileNotFoundError`, raised from what the hub said."""

    class RepositoryNotFoundError(Exception):
        """By its name, as `pipeline.stores.retry` knows every library."""

    def gone(self: Any, path: str, *more: Any, **options: Any) -> bytes:
        raise FileNotFoundError(path) from RepositoryNotFoundError("401")

    monkeypatch.setattr(Shaky, "cat_file", gone)
    with pytest.raises(StoreError, match="nothing is known of the file"):
        read_image(f"{far}/sensor_blobs/a.jpg")
