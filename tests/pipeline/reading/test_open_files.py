"""Descriptors that reading holds: at most `max_open` a dataset, whatever a batch touches and whoever keeps views."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.reading.reader import Dataset, opened
from pipeline.reading.values import Unread
from pipeline.stream import Collate, LatentCollator, Mixture, ShardStream, StreamConfig
from shards_schema.errors import StoreError
from tests.committed import commit
from tests.toys import ToySource, ToyTeacher, write_images

SHARDS, KEPT, THREADS = 24, 3, 2
NAMES = ["grid", "mean"]
TARGETS: dict[str, list[str]] = {"samples": ["json"], "toy": NAMES, "toy2": NAMES}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sample a shard, three columns."""
    root = tmp_path_factory.mktemp("open")
    write_images(root / "data", SHARDS, 5)
    source = ToySource(str(root / "data"), logs=SHARDS, frames=5)
    commit(source, root / "out", [ToyTeacher(), ToyTeacher(name="toy2")], shard_size=1, zarr=False)
    return str(root / "out")


def dataset(made: str) -> Dataset:
    own = Dataset(made, max_open=KEPT)
    assert len(own.tokens("samples", "toy", "toy2")) == SHARDS
    return own


def tars() -> int:
    """Descriptors of tars that this process has."""
    names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.readlink(name).endswith(".tar") for name in names if os.path.lexists(name))


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Just so many more descriptors from here on: what is over is EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1 + count
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


@pytest.mark.parametrize("arrays", ["unread", "views"])
def test_what_waits_to_be_read_and_what_is_kept_holds_no_descriptor(made: str, arrays: Any) -> None:
    before, own = tars(), dataset(made)
    below = opened(own)
    found = {token: below.find(token, TARGETS) for token in own.tokens("toy")}
    for one in found.values():
        below.files.expect(one.members)
    taken = {token: below.take(one, arrays) for token, one in found.items()}
    assert tars() - before <= KEPT
    whole = Dataset(made)
    for token, sample in taken.items():
        for column in ("toy", "toy2"):
            for name in NAMES:
                value, right = sample[column][name], whole.read(token, TARGETS, owned=True)[column][name]
                assert same(value.owned() if isinstance(value, Unread) else value, right)
    assert len(below.files._open) <= KEPT


def by_stream(own: Dataset, threads: int) -> Any:
    config = StreamConfig(shuffle="global", batch_size=SHARDS, threads=threads)
    return ShardStream(own, TARGETS, config, rank=0, world_size=1).batches()


def by_transform(own: Dataset, threads: int) -> Any:
    config = StreamConfig(shuffle="global", batch_size=SHARDS, threads=threads)
    return ShardStream(own, TARGETS, config, transform=lambda sample: sample, rank=0, world_size=1).batches()


def by_mixture(own: Dataset, threads: int) -> Any:
    config = StreamConfig(batch_size=SHARDS, threads=threads)
    streams = [(ShardStream(own, TARGETS, rank=0, world_size=1), 1.0)]
    return Mixture(streams, config, rank=0, world_size=1).batches()


def by_token(own: Dataset, threads: int) -> Any:
    collate = LatentCollator(own, TARGETS, lambda features: {"n": len(features)})
    made = collate([{"token": token} for token in own.tokens("toy")])["latents"]
    return [{"token": list(own.tokens("toy")), **made}]


@pytest.mark.parametrize("threads", [0, THREADS])
@pytest.mark.parametrize("way", [by_stream, by_transform, by_mixture, by_token])
def test_a_batch_touches_more_files_than_a_process_may_open(
    made: str, way: Callable[[Dataset, int], Any], threads: int
) -> None:
    own = dataset(made)
    whole = Dataset(made)
    with at_most(KEPT + 1 + THREADS):
        (batch,) = list(way(own, threads))
        assert len(opened(own).files._open) <= KEPT
    for row, token in enumerate(batch["token"]):
        right = whole.read(token, TARGETS)
        assert all(same(batch[c][n][row], right[c][n]) for c in ("toy", "toy2") for n in NAMES)


def test_where_the_process_may_open_no_more_a_dataset_lets_go_of_its_own(made: str) -> None:
    own, other = Dataset(made), Dataset(made)
    tokens = own.tokens("toy")
    with at_most(4):
        read = [own.read(token, {"toy": ["mean"]}, owned=True)["toy"]["mean"] for token in tokens]
        assert len(opened(own).files._open) == 4
        with pytest.raises(StoreError, match=r"could not be read: Too many open files .`ulimit -n` raises the limit"):
            other.read(tokens[0], {"toy": ["mean"]})  # it has none to let go of
    assert all(same(a, other.read(t, {"toy": ["mean"]})["toy"]["mean"]) for a, t in zip(read, tokens, strict=True))


def test_a_map_goes_with_its_last_view(made: str) -> None:
    def maps() -> int:
        return sum(line.rstrip().endswith(".tar") for line in Path("/proc/self/maps").read_text().splitlines())

    before = maps()
    own = dataset(made)
    views = [own.read(token, {"toy": ["grid"]})["toy"]["grid"] for token in own.tokens("toy")]
    assert maps() - before == SHARDS
    with pytest.raises(ValueError, match="read-only"):
        views[0][...] = 0
    kept = views[0][0]
    del own, views
    assert maps() - before == 1
    assert np.isfinite(kept).all()
    del kept
    assert maps() == before


def test_a_collate_of_another_may_keep_what_it_gets(made: str) -> None:
    before = tars()
    kept: list[Any] = []
    own = dataset(made)
    config = StreamConfig(batch_size=4, threads=THREADS)
    stream = ShardStream(own, TARGETS, config, rank=0, world_size=1)
    for batch in stream.batches(collate=lambda samples: kept.append(samples) or Collate({})(samples)):
        assert len(batch["token"]) == 4
    assert tars() - before <= KEPT
    assert sum(map(len, kept)) == SHARDS
