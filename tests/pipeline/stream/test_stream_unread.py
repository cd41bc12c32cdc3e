"""Arrays that go from the file into a batch with one copy, which is checked; threads only where there is work."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.reading.reader import Dataset, opened
from pipeline.reading.values import Unread
from pipeline.stores import ranges
from pipeline.stores.checksum import crc32c
from pipeline.stores.records import read_record
from pipeline.stores.volume import Volume
from pipeline.stream import LatentCollator, Mixture, SampleTable, ShardStream, StreamConfig
from pipeline.stream.collate import Collate
from pipeline.stream.fetch import ahead
from shards_schema import layout
from shards_schema.errors import DatasetError, DigestError, StoreError
from tests.pipeline.stream.stream_toys import TARGETS, make

ARRAYS = {"toy": ["grid", "mean", "path"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("unread"))


@pytest.fixture
def out(made: str, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def stream(dataset: Dataset, targets: Any = ARRAYS, **config: Any) -> ShardStream:
    return ShardStream(dataset, targets, StreamConfig(**config), rank=0, world_size=1)


def tokens(batches: list[dict[str, Any]]) -> list[str]:
    return [token for batch in batches for token in batch["token"]]


def unread(dataset: Dataset, token: str, name: str) -> Unread:
    below = opened(dataset)
    found = below.take(below.find(token, {"toy": [name]}), "unread")["toy"][name]
    assert isinstance(found, Unread)
    return found


def edit(out: Path, token: str, name: str, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a member in place, in the file that readers have mapped."""
    for shard in range(3):
        record = read_record(Volume(str(out)), "toy", shard)
        if token in record.tokens:
            offset, size, _ = record.members[f"{name}.npy"][record.tokens.index(token)]
            with open(out / layout.tar("toy", shard), "r+b") as file:
                file.seek(offset)
                data = bytearray(file.read(size))
                change(data)
                file.seek(offset)
                file.write(data)


def flipped(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] ^= 4

    return change


@pytest.mark.parametrize("threads", [None, 2])
@pytest.mark.parametrize("place", [0, 7])
@pytest.mark.parametrize("name", ["grid", "mean", "path"])
@pytest.mark.parametrize("at", [0, 20, 61, -1], ids=["magic", "dtype", "shape", "last value"])
def test_a_flipped_bit_is_refused_in_the_batch(out: Path, threads: int | None, place: int, name: str, at: int) -> None:
    """Of the first array of its kind, which is checked before it is copied, and of a later one, whose copy is."""
    made = stream(Dataset(str(out)), threads=threads, shuffle="none", batch_size=2)
    token = next(t for t in made.tokens[place:] if int(t, 16) % 5)  # not a ragged one of no length
    edit(out, token, name, flipped(at))
    batches = iter(made.batches())
    got = [next(batches) for _ in range(made.tokens.index(token) // 2)]
    with pytest.raises(DigestError, match=rf"shard \d, .*toy/00000\d.tar: {token}\.{name}\.npy: CRC-32C"):
        next(batches)
    assert tokens(got) == list(made.tokens[: 2 * len(got)])  # all before it


def test_a_header_that_is_anothers_is_refused_as_changed(out: Path) -> None:
    """Two shapes of as many values, both seen in members that are whole: the shape of one is written into the other."""
    dataset = Dataset(str(out))
    tokens = dataset.tokens("toy")
    for token in tokens:
        unread(dataset, token, "grid")
    array = dataset.read(tokens[3], {"toy": ["grid"]})["toy"]["grid"]
    turned = str(array.shape[::-1]).encode()
    kinds = opened(dataset)._values._kinds
    (((header, size), kind),) = kinds.items()
    assert len(turned) == len(str(array.shape))
    other = header.replace(str(array.shape).encode(), turned)
    kinds[other, size] = kind._replace(shape=array.shape[::-1], crc32c=crc32c(other))

    def turn(data: bytearray) -> None:
        at = data.index(str(array.shape).encode())
        data[at : at + len(turned)] = turned

    edit(out, tokens[3], "grid", turn)
    assert unread(dataset, tokens[3], "grid").shape == array.shape[::-1]
    with pytest.raises(DigestError, match=rf"{tokens[3]}\.grid\.npy"):
        list(stream(dataset, {"toy": ["grid"]}, batch_size=5, shuffle="none").batches())


def test_what_is_checked_is_what_is_used(out: Path) -> None:
    """The file may change at any moment until the copy: an array that was found long before is no way around it."""
    dataset = Dataset(str(out))
    token, later = dataset.tokens("toy")[:2]
    clean = dataset.read(token, ARRAYS)["toy"]["grid"].copy()
    taken, damaged = unread(dataset, token, "grid"), unread(dataset, later, "grid")
    kept = taken.owned()
    edit(out, token, "grid", flipped(-1))
    edit(out, later, "grid", flipped(-1))
    assert np.array_equal(kept, clean)
    for again in (taken, damaged):
        with pytest.raises(DigestError):
            again.owned()
    edit(out, token, "grid", flipped(-1))
    assert np.array_equal(taken.owned(), clean)


@pytest.mark.parametrize("how", ["contiguous", "strided", "another dtype"])
def test_into_any_memory(out: Path, how: str) -> None:
    dataset = Dataset(str(out))
    first, token = dataset.tokens("toy")[:2]
    unread(dataset, first, "grid")
    array = unread(dataset, token, "grid")
    wanted = dataset.read(token, ARRAYS)["toy"]["grid"]
    room = {
        "contiguous": np.zeros(array.shape, array.dtype),
        "strided": np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2],
        "another dtype": np.zeros(array.shape, np.float64),
    }[how]
    array.into(room)
    assert np.array_equal(room, wanted)
    assert wanted.any()
    edit(out, token, "grid", flipped(-1))
    with pytest.raises(DigestError):
        array.into(room)


def test_owned_arrays_may_be_written_to(out: Path) -> None:
    dataset = Dataset(str(out))
    token = dataset.tokens("toy")[0]
    for _ in range(2):  # the first of its kind, and one that is known
        mine, views = dataset.read(token, ARRAYS, owned=True)["toy"], dataset.read(token, ARRAYS)["toy"]
        for name, array in mine.items():
            assert np.array_equal(array, views[name])
            array[...] = 7
        assert not views["grid"].flags.writeable
    edit(out, token, "mean", flipped(-1))
    with pytest.raises(DigestError, match=rf"{token}\.mean\.npy"):
        dataset.read(token, ARRAYS, owned=True)


def test_nothing_is_compared_where_nobody_asks(out: Path) -> None:
    token = Dataset(str(out)).tokens("toy")[0]
    edit(out, token, "mean", flipped(-1))
    made = stream(Dataset(str(out), check_members=False), batch_size=5)
    assert sum(len(batch["token"]) for batch in made.batches()) == 15


def test_latents_by_token_are_checked_too(out: Path) -> None:
    dataset = Dataset(str(out))
    tokens = dataset.tokens("toy")[:3]
    collate = LatentCollator(dataset, ARRAYS, lambda features: {"n": len(features)})
    batch = collate([{"token": token} for token in tokens])
    for token, grid in zip(tokens, batch["latents"]["toy"]["grid"], strict=True):
        assert np.array_equal(grid.numpy(), dataset.read(token, ARRAYS)["toy"]["grid"])
    edit(out, tokens[2], "grid", flipped(-1))
    with pytest.raises(DigestError, match=rf"{tokens[2]}\.grid"):
        collate([{"token": token} for token in tokens])


def test_latents_by_token_in_a_worker_that_was_forked_while_another_thread_read(made: str) -> None:
    dataset = Dataset(made)
    tokens = dataset.tokens("toy")[:4]
    collate = LatentCollator(dataset, ARRAYS, lambda features: {"n": len(features)})
    loader: DataLoader[Any] = DataLoader(
        [{"token": token} for token in tokens],  # type: ignore[arg-type]
        batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context="fork", timeout=200,
    )  # fmt: skip
    with opened(dataset).files._lock:  # as that thread has it
        batches = list(loader)
    grids = torch.cat([batch["latents"]["toy"]["grid"] for batch in batches])
    for token, grid in zip(tokens, grids, strict=True):
        assert np.array_equal(grid.numpy(), dataset.read(token, ARRAYS)["toy"]["grid"])


def test_the_checksum_of_two_parts() -> None:
    data = np.random.default_rng(0).bytes(1000)
    assert crc32c(data) == crc32c(data[300:], crc32c(data[:300])) == crc32c(memoryview(data), 0)
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, and every catalogue of checksums


def test_arrays_of_two_dtypes_are_no_batch(out: Path) -> None:
    """Which of them came first would decide what becomes of the values."""
    dataset = Dataset(str(out))
    token = dataset.tokens("toy")[0]
    pair = [{"x": unread(dataset, token, "mean")}, {"x": np.zeros(3, np.float16)}]
    for samples in (pair, pair[::-1]):
        with pytest.raises(DatasetError, match=r"x: the samples of a batch have .* dtypes float16, float32"):
            Collate({})(samples)
    with pytest.raises(TypeError, match="same_kind"):
        unread(dataset, token, "mean").into(np.zeros(3, np.int32))


# Faults of the disk


def test_a_hint_is_given_of_a_file_that_is_open(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may let it go at any moment: with `max_open` 1 the next that another thread asks for does."""
    dataset = Dataset(made, max_open=1)
    files = opened(dataset).files
    file, given = files._file, []

    def let_go(*asked: Any) -> Any:
        opened = file(*asked)
        files._open.clear()
        return opened

    def advise(descriptor: int, *_: int) -> None:
        os.fstat(descriptor)
        given.append(descriptor)

    monkeypatch.setattr(files, "_file", let_go)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    for token in dataset.tokens("toy"):
        files.expect(opened(dataset).find(token, {"toy": ["mean"]}).members)
    assert len(given) == 15


@pytest.mark.parametrize("threads", [0, 2])
def test_a_file_that_cannot_be_opened_is_told_in_its_place(
    made: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = stream(Dataset(made), batch_size=2, shuffle="none", threads=threads)
    opens = os.open

    def refused(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("toy/000001.tar"):
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    first = int(np.flatnonzero(own.table.shards == 1)[0])
    batches = iter(own.batches())
    got = [next(batches) for _ in range(first // 2)]
    with pytest.raises(StoreError, match="could not be read: Permission denied") as told:
        next(batches)
    assert tokens(got) == list(own.tokens[: 2 * len(got)])  # all before it
    assert told.value.__notes__ == [f"while reading shard 1, token {own.tokens[first]} of {made}"]


# Threads


def names() -> set[str]:
    return {thread.name.rpartition("_")[0] for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("targets", "options", "threads"),
    [
        (ARRAYS, {}, 0),
        ({"toy": None}, {}, 0),
        ({"samples": ["json"], "toy": ["grid"]}, {}, 0),
        (TARGETS, {}, 2),
        ({"samples": None}, {}, 2),
        (ARRAYS, {"transform": dict}, 2),
    ],
)
def test_threads_are_there_where_there_is_work(made: str, targets: Any, options: dict[str, Any], threads: int) -> None:
    dataset = Dataset(made)
    batches: dict[int | None, list[Any]] = {}
    for chosen in (None, 0, 1):
        config = StreamConfig(batch_size=4, threads=chosen, seed=3)
        own = ShardStream(dataset, targets, config, rank=0, world_size=1, **options)
        walk = iter(own.batches())
        first = next(walk)
        expected = threads if chosen is None else chosen
        assert ("shard-stream" in names()) == (expected > 0)
        batches[chosen] = [first, *walk]
        assert own.state_dict()["position"] == 15
        assert own.state_dict() == ShardStream(dataset, targets, config, rank=0, world_size=1).state_dict() | {
            "position": 15
        }
        if chosen is None:
            assert own.config.threads_for(own.works) == threads
    assert repr(batches[None]) == repr(batches[0]) == repr(batches[1])


@pytest.mark.parametrize("batched", [True, False])
def test_threads_end_with_their_last_user(made: str, batched: bool) -> None:
    """Not when garbage is next collected, which may be in one of them, or where a lock is held that one waits for."""
    own = stream(Dataset(made), batch_size=2, threads=2, prefetch=2)
    gc.disable()
    try:
        walk = iter(own.batches() if batched else own)
        next(walk)
        assert "shard-stream" in names()
        del walk
        assert "shard-stream" not in names()
    finally:
        gc.enable()


def test_a_collate_of_ones_own_is_work_and_a_mixture_is_what_its_streams_are(made: str) -> None:
    dataset = Dataset(made)
    walk = iter(stream(dataset).batches(collate=list))
    next(walk)
    assert "shard-stream" in names()
    walk.close()  # type: ignore[attr-defined]
    quick, slow = stream(dataset), stream(dataset, TARGETS)
    assert not Mixture([(quick, 1), (quick, 1)]).works
    assert Mixture([(quick, 1), (slow, 1)]).works


def test_a_store_is_work(made: str) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(made, "/unread", recursive=True)
    try:
        far, near = Dataset("memory://unread"), Dataset(made)
        assert stream(far).works
        assert not stream(near).works
        remote = [batch["token"] for batch in stream(far, batch_size=4, threads=0).batches()]
        assert remote == [batch["token"] for batch in stream(near, batch_size=4).batches()]
    finally:
        fs.rm("/unread", recursive=True)


def test_targets_that_are_stored_encoded_are_work(tmp_path: Path) -> None:
    dataset = Dataset(make(tmp_path, logs=1, storage={"toy": {"grid": "int8"}}))
    assert stream(dataset).works
    assert stream(dataset, {"toy": ["grid.npy"]}).works
    assert not stream(dataset, {"toy": ["mean"]}).works
    for sample in stream(dataset):
        mine, views = dataset.read(sample["token"], owned=True)["toy"], dataset.read(sample["token"])["toy"]
        assert np.array_equal(sample["toy"]["grid"].numpy(), views["grid"])
        assert (mine["grid"].flags.writeable, views["grid"].flags.writeable) == (True, False)


@pytest.mark.parametrize("depth", [1, 2, 5, 40])
def test_without_threads_reads_begin_ahead_and_finish_in_turn(depth: int) -> None:
    told: list[tuple[str, int]] = []

    def begin(n: int) -> int:
        told.append(("begin", n))
        return n

    def finish(n: int) -> int:
        told.append(("finish", n))
        return n

    got: Iterator[int] = ahead(begin, finish, iter(range(12)), threads=0, depth=depth)
    assert not told
    assert list(got) == list(range(12))
    under_way = most = 0
    for what, n in told:
        under_way += 1 if what == "begin" else -1
        most = max(most, under_way)
        assert what == "begin" or ("begin", min(n + 1, 11)) in told[: told.index((what, n))]
    assert told.index(("finish", 0)) == 3 if depth > 1 else 2  # the first waits for no more than two of the others
    assert most == min(depth + 1, 7)  # one more with each, until there are none
    assert list(ahead(begin, finish, iter([]), threads=0, depth=3)) == []


def test_the_disk_is_asked_for_what_is_not_in_memory(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large range of a real file, in the page cache and not."""
    monkeypatch.setattr(ranges, "_LARGE", 1)
    told: list[int] = []

    def advise(descriptor: int, start: int, size: int, advice: int) -> None:
        told.append(start)
        fadvise(descriptor, start, size, advice)

    fadvise = os.posix_fadvise
    dataset = Dataset(made)
    below = opened(dataset)
    found = [below.find(token, {"toy": ["grid"]}) for token in dataset.tokens("toy")]
    for file in Path(made).rglob("*.tar"):
        with open(file, "rb") as tar:
            os.fsync(tar.fileno())
            fadvise(tar.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    below.files.expect(found[0].members)
    if not told:
        pytest.skip("this file system keeps its files in memory")
    for one in found:
        below.take(one)
    told.clear()
    for one in found:
        below.files.expect(one.members)
    assert told == []


def test_a_batch_is_the_same_with_and_without_a_transform(made: str) -> None:
    dataset = Dataset(made)
    plain = list(stream(dataset, batch_size=5).batches())
    through = list(ShardStream(dataset, ARRAYS, StreamConfig(batch_size=5), transform=dict).batches())
    for a, b in zip(plain, through, strict=True):
        assert a["token"] == b["token"]
        assert all(torch.equal(a["toy"][name], b["toy"][name]) for name in (*ARRAYS["toy"], "path_mask"))
    assert json.dumps([a["token"] for a in plain])


@pytest.mark.parametrize("threads", [0, 2])
def test_a_transform_gets_the_same_types_on_every_path(made: str, threads: int) -> None:
    """Tensors that it may write to, images among them, whoever makes the batch."""
    dataset, wanted = Dataset(made), {"samples": ["cam_f0.jpg", "json"], "toy": ["grid", "mean", "path"]}
    seen: list[dict[str, Any]] = []

    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        seen.append(sample)
        values = [value for column in wanted for name, value in sample[column].items() if name != "json"]
        assert all(type(value) is torch.Tensor for value in values)
        for value in values:
            value += 1
        return sample

    config = StreamConfig(threads=threads, batch_size=4)
    own = ShardStream(dataset, wanted, config, transform=transform)
    table = SampleTable(dataset, wanted, transform=transform)
    mixed = Mixture([(own, 1)], config, epoch_size=15).batches()
    for path in (own, own.batches(), own.batches(collate=list), table, mixed):
        assert sum(1 for _ in path) in (4, 15)
    assert len(seen) == 5 * 15
    plain = {sample["token"]: sample for sample in SampleTable(dataset, wanted)}
    for sample in seen:
        stored = plain[sample["token"]]
        assert torch.equal(sample["toy"]["grid"], stored["toy"]["grid"] + 1)
        assert torch.equal(sample["samples"]["cam_f0.jpg"], stored["samples"]["cam_f0.jpg"] + 1)
