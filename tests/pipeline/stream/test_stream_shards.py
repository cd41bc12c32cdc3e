"""The stream over a real dataset: every sample once, one order however it is read, resume anywhere, clean faults."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.reading.reader import Dataset
from pipeline.stream import Mixture, SampleTable, ShardStream, StreamConfig
from pipeline.stream.collate import pin
from shards_schema import layout
from shards_schema.errors import (
    AbsentError,
    ConfigError,
    DatasetError,
    DigestError,
    IncompleteError,
    MismatchError,
    MissingFileError,
)
from tests.pipeline.stream.stream_toys import SMALL, TARGETS, make

BAD = "0000000100000003"

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's own
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("poisoned"), poison=BAD)


@pytest.fixture(scope="module")
def dataset(out: str) -> Dataset:
    return Dataset(out)


def stream(dataset: Dataset, rank: int = 0, world: int = 1, targets: Any = SMALL, **config: Any) -> ShardStream:
    return ShardStream(dataset, targets, StreamConfig(**config), rank=rank, world_size=world)


def tokens(items: Any) -> list[str]:
    return [t for i in items for t in ([i["token"]] if isinstance(i["token"], str) else i["token"])]


def in_order(dataset: Dataset, epoch: int = 0, **config: Any) -> list[str]:
    made = stream(dataset, **config)
    return [made.tokens[i] for i in made.order_of(epoch)]


def test_a_sample_is_what_the_dataset_holds(dataset: Dataset) -> None:
    for sample in stream(dataset, targets=TARGETS):
        assert set(sample) == {"token", "samples", "toy"}
        raw = dataset.read(sample["token"], TARGETS)
        assert sample["samples"]["json"] == raw["samples"]["json"]
        assert sample["samples"]["cam_f0.jpg"].shape == (32, 48, 3)
        assert sample["samples"]["cam_f0.jpg"].dtype == torch.uint8
        for name, array in raw["toy"].items():
            tensor = sample["toy"][name]
            assert np.array_equal(tensor.numpy(), array)
            tensor.zero_()  # memory of its own: this would kill the process if it were the mapped file
    assert dataset.read(sample["token"], SMALL)["toy"]["mean"].any()


def test_only_what_is_asked_for_is_touched(out: str) -> None:
    copy = Path(out).parent / "touched"
    shutil.copytree(out, copy)
    for tar in (copy / "samples").glob("*.tar"):
        tar.unlink()
    made = stream(Dataset(str(copy), columns=["toy"]))
    assert len(tokens(made)) == 15
    with pytest.raises(MissingFileError, match=r"samples/00000\d\.tar") as caught:
        tokens(stream(Dataset(str(copy)), targets=TARGETS))
    assert "token" in caught.value.__notes__[0]
    shutil.rmtree(copy)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["none", "global", "window"]),
    st.sampled_from(["drop", "pad"]),
    st.integers(0, 3),
)
def test_ranks_share_an_epoch(
    dataset: Dataset, world: int, batch: int, shuffle: str, uneven: str, threads: int
) -> None:
    config: dict[str, Any] = {"shuffle": shuffle, "uneven": uneven, "batch_size": batch, "threads": threads}
    config |= {"window": 2, "lanes": world, "prefetch": 5}
    ranks = [stream(dataset, r, world, **config) for r in range(world)]
    parts = [tokens(s) for s in ranks]
    assert {len(p) for p in parts} == {len(ranks[0])}
    assert [tokens(s.batches()) for s in ranks] == parts
    whole = in_order(dataset, **config)
    dealt = [parts[i % world][i // world] for i in range(world * len(parts[0]))]
    wanted = 15 // world * world if uneven == "drop" else -(-15 // world) * world
    assert dealt == (whole + whole)[:wanted]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_another_number_of_ranks_goes_on_at_the_next_sample(
    dataset: Dataset, before: int, after: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(0, 15 // before))
    first = [stream(dataset, r, before, seed=3) for r in range(before)]
    for s in first:
        s.set_epoch(2)
    used = [tokens([next(i) for _ in range(steps)]) for i in (iter(s) for s in first)]
    for s in first:
        s.advance(steps * before)
    states = [s.state_dict() for s in first]
    assert all(s == states[0] for s in states)
    state = json.loads(json.dumps(states[0]))
    second = [stream(dataset, r, after, seed=3, uneven="pad") for r in range(after)]
    for s in second:
        s.load_state_dict(state)
        s.set_epoch(2)  # as a loop over epochs does; it must not throw the position away
    rest = [tokens(s) for s in second]
    dealt = [part[i] for i in range(steps) for part in used]
    dealt += [part[i] for i in range(len(rest[0])) for part in rest]
    if state["position"] == 15:  # the run before had dropped what its ranks could not share
        assert dealt == in_order(dataset, 2, seed=3)[: len(dealt)]
        assert 15 - len(dealt) < before
    else:
        assert dealt[:15] == in_order(dataset, 2, seed=3)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("how", ["samples", "batches"])
def test_workers_give_the_batches_of_one_process(dataset: Dataset, workers: int, how: str) -> None:
    made = stream(dataset, 1, 2, targets=TARGETS, batch_size=2)
    wanted = [b["token"] for b in made.batches()]
    assert len(wanted) == 4

    def load() -> Any:
        if how == "samples":
            return DataLoader(made, batch_size=2, num_workers=workers, collate_fn=made.collate, persistent_workers=True)
        return DataLoader(made.batches(), batch_size=None, num_workers=workers, persistent_workers=True)

    loader = load()
    assert [b["token"] for b in loader] == wanted
    with pytest.raises(RuntimeError, match=r"stream\.advance"):
        made.state_dict()
    made.set_epoch(1)  # workers that live on see it
    second = [b["token"] for b in loader]
    assert second == [b["token"] for b in made.batches()] != wanted
    made.seek(0, 0)
    for number, batch in enumerate(loader):
        assert batch["token"] == wanted[number]
        made.advance(2 * 2)
        if number == 1:
            break
    assert made.state_dict()["position"] == 8  # though the workers were further
    made.load_state_dict(made.state_dict())
    del loader
    assert [b["token"] for b in load()] == wanted[2:]


def test_positions_are_counted_in_process_too(dataset: Dataset) -> None:
    made = stream(dataset, 0, 2, batch_size=3)
    assert made.position == 0
    walk = iter(made)
    for k in range(1, 6):
        next(walk)
        assert made.position == 2 * k
    batches = iter(made.batches())
    next(batches)
    assert made.position == 6
    assert len(list(batches)) == 2
    assert made.position == 15  # the one that two ranks cannot share is dropped, so the epoch is over
    made.advance(0)
    assert made.position == 0  # the trainer's own count goes first
    assert made.batches(drop_last=True).__len__() == len(list(made.batches(drop_last=True))) == 2
    few = ShardStream(dataset, SMALL, StreamConfig(batch_size=9), rank=0, world_size=2)
    with pytest.raises(ConfigError, match=r"leaves no batch: each of 2 ranks has 7 samples an epoch, batch_size is 9"):
        few.batches(drop_last=True)
    assert [len(batch["token"]) for batch in few.batches()] == [7]


def test_epochs_and_seeds_differ(dataset: Dataset) -> None:
    orders = [in_order(dataset, e, seed=s) for s in (0, 1) for e in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert in_order(dataset, shuffle="none") == list(dataset.tokens("toy"))


def test_states_of_others_are_refused(dataset: Dataset, poisoned: str) -> None:
    state = stream(dataset, global_batch=8).state_dict()
    other = stream(Dataset(poisoned))
    with pytest.raises(MismatchError, match=f"digest is {state['digest']}, this stream has {other.digest}"):
        other.load_state_dict(state)
    subset = ShardStream(dataset, SMALL, tokens=dataset.tokens("toy")[:9])
    with pytest.raises(MismatchError, match="digest"):
        subset.load_state_dict(state)
    with pytest.raises(MismatchError, match=r"'seed': 0.*'seed': 1"):
        stream(dataset, seed=1).load_state_dict(state)
    with pytest.raises(MismatchError, match="global_batch is 8, this stream has 16"):
        stream(dataset, global_batch=16).load_state_dict(state)
    stream(dataset, global_batch=16).load_state_dict(state, any_batch=True)
    stream(dataset).load_state_dict(state)
    with pytest.raises(ConfigError, match="position 16"):
        stream(dataset).load_state_dict({**state, "position": 16})


def test_quarantined_samples_are_counted(poisoned: str) -> None:
    dataset = Dataset(poisoned)
    made = stream(dataset, targets=TARGETS)
    assert made.size == 14
    assert list(made.left_out) == [BAD]
    assert "toy: non_finite" in made.left_out[BAD]
    assert BAD not in tokens(made)
    assert BAD in tokens(stream(dataset, targets={"samples": ["json"]}))  # that column has it
    with pytest.raises(AbsentError, match="1 asked-for tokens are in no plan"):
        ShardStream(dataset, SMALL, tokens=["nobody", BAD])


def test_an_unfinished_dataset_is_no_shorter_epoch(out: str) -> None:
    copy = Path(out).parent / "unfinished"
    shutil.copytree(out, copy)
    (copy / layout.record("toy", 1)).unlink()
    dataset = Dataset(str(copy))
    missing = 15 - len(dataset.tokens("toy"))
    with pytest.raises(IncompleteError, match=f"{missing} of 15 planned"):
        ShardStream(dataset, SMALL)
    assert ShardStream(dataset, SMALL, allow_incomplete=True).size == 15 - missing
    shutil.rmtree(copy)


def test_impossible_wishes(dataset: Dataset) -> None:
    with pytest.raises(AbsentError, match="column toy has no 'gird'"):
        stream(dataset, targets={"toy": ["gird"]})
    with pytest.raises(ConfigError, match="15 samples for 16 ranks"):
        stream(dataset, 0, 16)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        stream(dataset, 2, 2)
    with pytest.raises(ConfigError, match="no sample is asked for: tokens is empty"):
        ShardStream(dataset, SMALL, tokens=[])


def test_ranks_come_from_the_environment(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = ShardStream(dataset, SMALL)
    assert (made.rank, made.world_size, len(made)) == (1, 3, 5)


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_sample_names_shard_and_token(
    out: str, tmp_path: Path, threads: int, batched: bool, checked: bool
) -> None:
    """One bit in the middle of an image, or half of it gone where nobody compares checksums: the decoder sees that."""
    copy = Path(shutil.copytree(out, tmp_path / "damaged"))
    token = Dataset(str(copy)).tokens("samples")[7]
    record = json.loads((copy / layout.record("samples", 1)).read_text())
    offset, size, _ = record["members"]["cam_f0.jpg"][record["tokens"].index(token)]
    with open(copy / layout.tar("samples", 1), "r+b") as file:
        file.seek(offset + size // 2)
        (middle,) = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([middle ^ 8]) if checked else bytes(size - size // 2))
    made = stream(
        Dataset(str(copy), check_members=checked), targets=TARGETS, threads=threads, shuffle="none", batch_size=2
    )
    got: list[str] = []
    said = f"samples/000001.tar: {token}.cam_f0.jpg: CRC-32C" if checked else f"samples/{token}.cam_f0.jpg"
    with pytest.raises(DigestError if checked else DatasetError, match=said) as caught:
        got.extend(t for item in (made.batches() if batched else made) for t in tokens([item]))
    assert f"shard 1, token {token}" in caught.value.__notes__[0]
    assert got == list(made.tokens[:6] if batched else made.tokens[:7])  # all before it, none after


def _fail(sample: dict[str, Any]) -> Any:
    raise ZeroDivisionError("mine")


def test_a_transforms_own_error_comes_through(dataset: Dataset) -> None:
    made = ShardStream(dataset, SMALL, transform=_fail)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        next(iter(made))
    assert "shard" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError, match=r"token 0000000\d"):  # DataLoader puts the notes into the message
        next(iter(DataLoader(made, batch_size=None, num_workers=1)))


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_running_or_open(dataset: Dataset) -> None:
    made = stream(dataset, targets=TARGETS, threads=3, batch_size=2)
    next(iter(made.batches()))
    gc.collect()
    threads, files = threading.active_count(), _open_files()
    for sample in made:
        assert sample["token"]
        break
    for _ in made.batches():
        break
    walk = iter(made)
    next(walk)
    assert threading.active_count() > threads
    walk.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        tokens(ShardStream(dataset, SMALL, StreamConfig(threads=3), transform=_fail))
    tokens(made)
    gc.collect()
    assert threading.active_count() == threads
    assert _open_files() <= files


def test_ragged_targets_are_padded_and_masked(dataset: Dataset) -> None:
    made = stream(dataset, targets=TARGETS, batch_size=5)
    for batch in made.batches():
        path, mask = batch["toy"]["path"], batch["toy"]["path_mask"]
        lengths = [int(t, 16) % 5 for t in batch["token"]]
        assert path.shape == mask.shape == (5, max(lengths))
        assert mask.sum(1).tolist() == lengths
        for row, real, n in zip(path, mask, lengths, strict=True):
            assert row[real].tolist() == list(range(n))
            assert not row[~real].any()
        assert batch["toy"]["grid"].shape == (5, 3, 8, 12, 16)
        assert [s["token"] for s in batch["samples"]["json"]] == batch["token"]
    samples = list(made)
    samples[0]["toy"]["grid"] = samples[0]["toy"]["grid"][:1]
    with pytest.raises(DatasetError, match=r"toy/grid: the samples of a batch have shapes"):
        made.collate(samples)


def test_transform_and_collate_of_ones_own(dataset: Dataset) -> None:
    made = ShardStream(
        dataset, TARGETS, StreamConfig(batch_size=4), transform=lambda s: {"x": s["toy"]["mean"], "n": 1.5}
    )
    batch = next(iter(made.batches()))
    assert batch["x"].shape == (4, 3)
    assert batch["n"].tolist() == [1.5] * 4
    kept = [s for samples in made.batches(collate=list) for s in samples]
    for sample in kept:
        sample["x"] += 1  # another's collate gets memory of its own
    assert len(kept) == 15


def test_batches_that_are_kept_are_not_overwritten(dataset: Dataset) -> None:
    made = stream(dataset, targets=TARGETS, batch_size=2)
    kept = list(made.batches())
    for batch in kept:
        for token, grid in zip(batch["token"], batch["toy"]["grid"], strict=True):
            assert np.array_equal(grid.numpy(), dataset.read(token, TARGETS)["toy"]["grid"])


def test_a_table_for_the_samplers_of_others(dataset: Dataset) -> None:
    table = SampleTable(dataset, TARGETS)
    assert table[0]["token"] == table.tokens[0]
    loader = DataLoader(table, batch_size=4, num_workers=2, collate_fn=table.collate)
    assert tokens(loader) == list(table.tokens)


def test_a_stream_can_be_pickled(dataset: Dataset) -> None:
    made = stream(dataset, seed=5)
    made.seek(1, 4)
    again = pickle.loads(pickle.dumps(made))
    assert tokens(again) == tokens(made)


class CountedStore(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory that notes what is fetched whole and what in ranges."""

    protocol = "counted"
    whole: ClassVar[list[str]] = []
    ranges: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counted://", "memory://")))

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self.whole.append(rpath)
        super().get_file(rpath, lpath, **kwargs)

    def cat_ranges(self, paths: list[str], *args: Any, **kwargs: Any) -> Any:
        self.ranges.extend(paths)
        return super().cat_ranges(paths, *args, **kwargs)


def test_a_store_that_is_not_a_disk(out: str) -> None:
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    CountedStore().put(out, "/stream-test", recursive=True)
    options: dict[str, Any] = {"shuffle": "window", "window": 1, "batch_size": 4}
    wanted = in_order(Dataset(out), **options)
    made = stream(Dataset("counted://stream-test"), **options)
    assert tokens(made.batches()) == wanted
    assert len(CountedStore.ranges) == 15  # one request a sample, of the bytes that are wanted
    CountedStore.whole.clear()
    made = stream(Dataset("simplecache::counted://stream-test"), threads=1, **options)
    assert tokens(made.batches()) == wanted
    tars = [path for path in CountedStore.whole if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 3  # each shard fetched once


# Mixtures


@pytest.fixture(scope="module")
def mixture(out: str, poisoned: str) -> tuple[ShardStream, ShardStream]:
    return stream(Dataset(out), seed=1), stream(Dataset(poisoned), seed=2)


def test_a_mixture_keeps_proportions_and_every_epoch_of_its_streams(mixture: tuple[ShardStream, ShardStream]) -> None:
    mixed = Mixture([(mixture[0], 3), (mixture[1], 1)], StreamConfig(batch_size=4), epoch_size=128)
    items = [s for e in range(3) for s in _epoch(mixed, e)]
    for n, own in ((288, 0), (96, 1)):
        sequence = [s["token"] for s in items if s["dataset"] == own]
        assert len(sequence) == n
        counts = [sequence.count(t) for t in mixture[own].tokens]  # no sample comes twice before each came once
        assert max(counts) - min(counts) == 1
    for n in (32, 100, 200):
        assert abs(sum(s["dataset"] == 0 for s in items[:n]) - 0.75 * n) < 8


def _epoch(mixed: Mixture, epoch: int) -> list[dict[str, Any]]:
    mixed.set_epoch(epoch)
    return list(mixed)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_mixture_is_resumed_on_other_ranks(mixture: tuple[ShardStream, ShardStream], world: int) -> None:
    parts = [(mixture[0], 2.0), (mixture[1], 1.0)]
    whole = [(s["dataset"], s["token"]) for s in Mixture(parts, rank=0, world_size=1)]
    assert len(whole) == 29
    one = Mixture(parts, rank=0, world_size=1)
    one.advance(7)
    ranks = [Mixture(parts, rank=r, world_size=world) for r in range(world)]
    for m in ranks:
        m.load_state_dict(one.state_dict())
    rest = [[(s["dataset"], s["token"]) for s in m] for m in ranks]
    dealt = [part[i] for i in range(len(rest[0])) for part in rest]
    assert dealt == whole[7 : 7 + len(dealt)]
    assert 22 - len(dealt) < world
    with pytest.raises(MismatchError, match="digest"):
        Mixture([(mixture[0], 1.0), (mixture[1], 1.0)]).load_state_dict(one.state_dict())


def test_mixtures_make_batches_with_workers(mixture: tuple[ShardStream, ShardStream]) -> None:
    made = Mixture([(mixture[0], 1), (mixture[1], 1)], StreamConfig(batch_size=4))
    wanted = [(b["token"], b["dataset"].tolist()) for b in made.batches()]
    loader = DataLoader(made.batches(), batch_size=None, num_workers=2)
    assert [(b["token"], b["dataset"].tolist()) for b in loader] == wanted
    with pytest.raises(ConfigError, match="pairs of a stream and its weight"):
        Mixture(list(mixture))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="positive weights"):
        Mixture([(mixture[0], 0)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_torchdatas_loader_resumes(dataset: Dataset, workers: int, batched: bool) -> None:
    def load(made: ShardStream) -> Any:
        if batched:
            return StatefulDataLoader(made.batches(), batch_size=None, num_workers=workers)
        return StatefulDataLoader(made, batch_size=2, num_workers=workers, collate_fn=made.collate)

    wanted = [b["token"] for b in stream(dataset, batch_size=2).batches()]
    loader = load(stream(dataset, batch_size=2))
    walk = iter(loader)
    assert [next(walk)["token"] for _ in range(3)] == wanted[:3]
    state = loader.state_dict()
    again = load(stream(dataset, batch_size=2))
    again.load_state_dict(state)
    assert [b["token"] for b in again] == wanted[3:]


class Own:
    """A batch of somebody's own class."""

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned

    def pin_memory(self) -> Own:
        return Own(pinned=True)


def test_a_batch_that_can_pin_itself_does() -> None:
    """As DataLoader has it; a trainer's batch would else go to the GPU from pageable memory, without a word."""
    pinned = pin({"a": [Own(), "text"], "b": 3})
    assert pinned["a"][0].pinned
    assert pinned["a"][1:] == ["text"]
    assert pinned["b"] == 3
    assert pin(Own()).pinned
