"""Whole logs are held out; what goes on from a policy keeps them, whatever the dataset has become."""

from __future__ import annotations

import pytest

from pipeline.reading.reader import Dataset
from reports.evaluation import accounting
from shards_schema.errors import ConfigError, DatasetError
from tests.trainer.shard_toys import write_dataset
from trainer.data import DataConfig
from trainer.splits import logs_of, refuse_too_few, split, split_by_log, split_like, spread


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The four logs of `shards`, and a second generation of four more."""
    root = tmp_path_factory.mktemp("grown")
    write_dataset(root)
    dataset = Dataset(write_dataset(root, logs=8))
    assert dataset.tokens("toy")[:20] == Dataset(write_dataset(root / "small")).tokens("toy")
    return dataset


def displaced(small: Dataset, large: Dataset) -> DataConfig:
    """A seed by which a log that the small dataset holds out is trained on in the large one."""
    for seed in range(100):
        config = DataConfig(split_seed=seed, held_out=0.25, steps=3)
        held = set(split(small, small.tokens("toy"), config)[1])
        if held & set(split(large, large.tokens("toy"), config)[0]):
            return config
    raise AssertionError("no seed of a hundred")


def test_a_log_is_in_one_part_only_and_order_is_the_plans(shards: str) -> None:
    dataset = Dataset(shards)
    tokens, log_of = dataset.tokens("toy"), logs_of(dataset)
    train, held = split(dataset, tokens, DataConfig(held_out=0.5, steps=3))
    assert {log_of[t] for t in train}.isdisjoint(log_of[t] for t in held)
    assert len({log_of[t] for t in held}) == 2
    assert sorted((*train, *held), key=tokens.index) == list(tokens)
    assert [t for t in tokens if t in {*train}] == list(train)
    few = [t for t in tokens if log_of[t] == log_of[tokens[0]]]
    with pytest.raises(DatasetError, match="at least two"):
        split(dataset, few, DataConfig())


def test_the_split_for_loops_of_ones_own_is_the_trainers(shards: str) -> None:
    dataset = Dataset(shards, columns=["samples", "toy"])
    tokens = dataset.tokens("samples", "toy")
    for share, seed in ((0.25, 0), (0.5, 3)):
        config = DataConfig(held_out=share, split_seed=seed, steps=3)
        assert split_by_log(dataset, share, seed) == split(dataset, tokens, config)
    assert split_by_log(dataset) == split(dataset, tokens, DataConfig(steps=3))
    train, held = split_by_log(dataset, 0.99)  # a run needs a log to learn from
    assert len({logs_of(dataset)[t] for t in held}) == 3
    assert train


def test_what_was_held_out_stays_so_in_a_dataset_that_grew(shards: str, grown: Dataset) -> None:
    small = Dataset(shards)
    config = displaced(small, grown)
    held = frozenset(split(small, small.tokens("toy"), config)[1])
    train, again = split_like(grown, grown.tokens("toy"), held, config)
    assert set(again) == held
    assert not held & set(train)
    assert len(train) == len(grown.tokens("toy")) - len(held)
    assert split_like(grown, grown.tokens("toy"), {"of another dataset"}, config) == split(
        grown, grown.tokens("toy"), config
    )


def test_an_evaluation_is_of_the_logs_that_the_policy_was_not_trained_on(shards: str, grown: Dataset) -> None:
    small = Dataset(shards)
    config = displaced(small, grown)
    train, held = split(small, small.tokens("toy"), config)
    found = accounting.select(grown, "toy", "held_out", config, ["toy"], None, held_before=frozenset(held))
    assert set(found.scored) == set(held)
    assert not set(found.scored) & set(train)
    assert not set(found.training) & set(held)


def test_a_limit_is_spread_over_all() -> None:
    tokens = tuple("abcdefghij")
    assert spread(tokens, 5) == tuple("acegi")
    assert spread(tokens, None) == spread(tokens, 10) == spread(tokens, 11) == tokens


def test_an_epoch_needs_a_whole_step() -> None:
    refuse_too_few("here", "abcd", 4)
    with pytest.raises(ConfigError, match=r"4 training samples, and a step takes 5 \(.* x 1 ranks\)"):
        refuse_too_few("here", "abcd", 5)
