"""Every call of the write path as a fault point: all of one shard's commit, a stride of a run, and the judge judged."""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.stores.column import ColumnShardWriter
from pipeline.stores.lease import hold
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.errors import StoreError
from teachers.base import column_manifest
from tests.chaos.faults import Strikes, summary
from tests.chaos.shim import CALLS, KINDS, Fault, Point, Shim
from tests.chaos.world import World
from tests.toys import ToyTeacher

STRIDE = 193
"""Of the whole run's 4,800 (point, kind); `python -m tests.chaos faults` does them all."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where fsync costs nothing; what it would have kept is the shim's business."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def one_shard(out: Path) -> int:
    """Commit one shard of one column, as a worker does, between a driver's sweeps."""
    volume = Volume(str(out))
    with hold(volume):
        volume.sweep()
        if volume.exists(layout.record("toy", 0)):
            return 0
        teacher = ToyTeacher()
        writer = ColumnShardWriter(volume, column_manifest(teacher), dataset="d", shard=0, shard_size=4, zarr=True)
        with writer:
            for row, token in enumerate(("a", "b", "c")):
                rng = np.random.default_rng(row)
                writer.add_targets(
                    token,
                    row,
                    {
                        "grid": rng.standard_normal((3, 8, 12, 16)).astype(np.float16),
                        "mean": rng.standard_normal(3).astype(np.float32),
                        "path": np.arange(row, dtype=np.int16),
                    },
                )
            writer.commit(["a", "b", "c"])
        volume.sweep()
    return 1


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_step_of_a_commit_can_fail(memory: Path, stride: int) -> None:
    """With a stride, each step fails by some of the kinds, and each kind comes at some of the steps."""
    strikes = Strikes(one_shard, memory)
    assert {p.call for p in strikes.points} == set(CALLS) - {"write", "rename"}
    assert len({str(p) for p in strikes.points}) == len(strikes.points) > 60
    turn = {point: i for i, point in enumerate([*strikes.points, None])}
    faults = [f for f in strikes.every() if (turn[f.point] + KINDS.index(f.kind)) % stride == 0]
    assert {fault.point for fault in faults} == {*strikes.points, None}
    outcomes = [strikes.strike(fault) for fault in faults]
    assert [o for o in outcomes if o.wrong] == []
    rows = {row["kind"]: row for row in summary(outcomes)}
    assert rows.keys() == set(KINDS)
    assert rows["short"]["ends"] == {"ended well": rows["short"]["injected"]}
    assert all(rows[kind]["ends"] == {"died": rows[kind]["injected"]} for kind in ("die", "torn", "power", "metadata"))
    assert rows["enospc"]["ends"]["raised StoreError"] > 0.8 * rows["enospc"]["injected"]


def test_a_whole_run_at_a_stride(memory: Path) -> None:
    strikes = Strikes(World.make(memory / "images", logs=2).job, memory)
    assert len(strikes.points) > 500
    faults = strikes.every()[::STRIDE]
    assert {f.kind for f in faults} >= set(KINDS) - {"short", "torn"}
    outcomes = [strikes.strike(fault, verified=i % 10 == 0) for i, fault in enumerate(faults)]
    outcomes.append(strikes.storm(random.Random(1)))
    assert [o for o in outcomes if o.wrong] == []


_events: list[tuple[str, tuple[Any, ...]]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event in _AUDITED:
        _events.append((event, arguments))


_AUDITED = {
    "open": "open", "os.mkdir": "mkdir", "os.rename": "replace", "os.remove": "unlink", "os.rmdir": "rmdir",
    "os.truncate": "ftruncate", "os.link": "link", "os.symlink": "symlink", "os.chmod": "chmod",
}  # fmt: skip


def test_the_shim_sees_every_change_that_python_tells_of(memory: Path) -> None:
    """Held against the interpreter's own audit events, so that a new way to write cannot go around the fault points."""
    global _events
    world = World.make(memory / "images", logs=2)
    world.job(memory / "warm")
    sys.addaudithook(_hook)
    shim = Shim(memory / "out")
    _events = []
    try:
        with shim.installed():
            world.job(shim.root)
        events = _events
    finally:
        _events = None
    told: Counter[str] = Counter()
    for event, arguments in events:
        path = arguments[0] if isinstance(arguments[0], str) else ""
        if event == "open":
            inside = path.startswith(f"{shim.root}/") and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:  # relative to a descriptor, or a descriptor itself: nobody else is at work here
            inside = f"{path}/".startswith(f"{shim.root}/") or not path.startswith("/")
            inside = inside and f"{shim.root}.kept" not in str(arguments)  # what the shim keeps for a power cut
        told[_AUDITED[event]] += bool(inside)
    seen = Counter(p.call for p in shim.points)
    seen["open"] = len(shim.opened)
    assert told["open"] > 50
    assert +told == Counter({call: seen[call] for call in told if seen[call]})


def write(out: Path, name: str, data: bytes, *, sync: bool = True, temp: bool = True) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    place = out / f"{name}.half" if temp else out / name
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, data)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if temp:
        os.replace(place, out / name)


def in_place(out: Path) -> int:
    if not (out / "file").exists():
        write(out, "file", b"x" * 100, temp=False)
    return 0


def never_synced(out: Path) -> int:
    if not (out / "file").exists():
        write(out, "file", b"x" * 100, sync=False)
    return 0


def never_swept(out: Path) -> int:
    if not (out / "file").exists():
        name = f"file{random.random()}"
        write(out, name, b"x" * 100)
        os.replace(out / name, out / "file")
    return 0


def deaf(out: Path) -> int:
    try:
        write(out, "file", b"x" * 100)
    except OSError:
        return 0
    return 0


@pytest.mark.parametrize(
    ("job", "kind", "said"),
    [
        (in_place, "torn", "other=('file',)"),
        (in_place, "short", "other=('file',)"),  # takes half a write for a whole one
        (never_synced, "metadata", "other=('file',)"),
        (never_swept, "die", "leftover=("),
        (never_swept, "eio", "traceback"),
    ],
)
def test_the_judge_finds_what_is_wrong(memory: Path, job: Callable[[Path], int], kind: str, said: str) -> None:
    strikes = Strikes(job, memory)
    outcomes = [strikes.strike(fault) for fault in strikes.every([kind])]
    assert any(said in wrong for o in outcomes for wrong in o.wrong), outcomes


def test_a_run_that_swallows_an_error_is_found(memory: Path) -> None:
    """It ends well with nothing written; only the next run would make it, so the first one lied."""
    strikes = Strikes(deaf, memory)
    outcome = strikes.strike(Fault("eio", next(p for p in strikes.points if p.call == "write")))
    assert outcome.end == "ended well"
    assert any("ended well" in wrong for wrong in outcome.wrong), outcome


def test_a_run_that_never_meets_its_fault_is_no_proof(memory: Path) -> None:
    strikes = Strikes(one_shard, memory)
    for kind in ("eio", "die"):
        outcome = strikes.strike(Fault(kind, Point("open", "nowhere", 0)))
        assert any("not met" in wrong for wrong in outcome.wrong), outcome


# The bugs that the enumeration found, each by name.


def fail(monkeypatch: pytest.MonkeyPatch, call: str, code: int, *, after: int = 0, path: str = "") -> None:
    """From the `after`-th on, `os.<call>` fails where it is given a path with `path` in it."""
    real, count = getattr(os, call), Counter[str]()

    def failing(*args: Any, **kwargs: Any) -> Any:
        if path in str(args[0]):
            count["calls"] += 1
            if count["calls"] > after:
                raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_full_disk_is_told_as_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "writev", errno.ENOSPC)
    with pytest.raises(StoreError, match=r"samples/000000\.tar: No space left on device .*is full.*same command again"):
        Volume(str(tmp_path)).put("samples/000000.tar", b"x")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_lease_on_a_disk_that_went_read_only_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()

    def run() -> None:
        with monkeypatch.context() as disk, hold(Volume(str(tmp_path))):
            fail(disk, "unlink", errno.EROFS)
            raise RuntimeError("the real reason")

    with pytest.raises(RuntimeError, match="the real reason"):
        run()
    assert descriptors() == before
    with hold(Volume(str(tmp_path))):
        pass
    assert not (tmp_path / layout.LOCK).exists()


def test_a_lease_that_cannot_be_written_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    with monkeypatch.context() as disk:
        fail(disk, "pwrite", errno.ENOSPC)
        with pytest.raises(StoreError, match=r"\.lock: No space left"):
            hold(Volume(str(tmp_path))).__enter__()
    assert descriptors() == before
    with hold(Volume(str(tmp_path))):
        pass


def test_a_shard_whose_second_file_cannot_be_opened_gives_the_first_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    fail(monkeypatch, "open", errno.ENOSPC, after=1, path=f"{layout.TEMP}/")
    with pytest.raises(StoreError, match="No space left") as raised:
        ColumnShardWriter(
            Volume(str(tmp_path)), column_manifest(ToyTeacher()), dataset="d", shard=0, shard_size=4, zarr=True
        )
    assert raised.value.__traceback__ is not None  # which holds the writer: nothing here waits for the collector
    assert descriptors() == before
    assert list((tmp_path / layout.TEMP).iterdir()) == []


def test_the_root_of_a_dataset_is_durable(memory: Path) -> None:
    """A power cut right after a run that ended well used to be allowed to take the folder, and all in it, away."""
    outcome = Strikes(one_shard, memory).strike(Fault("power", None))
    assert outcome.wrong == ()
    assert outcome.redone == 0


@pytest.mark.parametrize("breaths", [1, 3, 1000])
def test_a_sweep_bears_the_last_breaths_of_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaths: int
) -> None:
    """Workers outlive their driver by a moment, and begin files while the next driver sweeps."""
    folder = tmp_path / layout.TEMP
    folder.mkdir()
    (folder / "0").write_bytes(b"half")
    real, begun = os.rmdir, Counter[str]()

    def rmdir(path: Any, **kwargs: Any) -> None:
        begun["files"] += 1
        if begun["files"] <= breaths:
            (folder / str(begun["files"])).write_bytes(b"half")
        real(path, **kwargs)

    monkeypatch.setattr(os, "rmdir", rmdir)
    swept = Volume(str(tmp_path)).sweep()
    assert swept == min(breaths + 1, 5)
    assert folder.exists() == (breaths == 1000)
    monkeypatch.undo()
    Volume(str(tmp_path)).sweep()
    assert not folder.exists()
