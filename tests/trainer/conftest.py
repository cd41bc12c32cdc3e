"""One thread (the machine is shared), and one small dataset for all tests of the trainer."""

from __future__ import annotations

import pytest

from tests.trainer.reward_toys import sft_policy, write_reward_dataset
from tests.trainer.shard_toys import write_dataset


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def reward_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_reward_dataset(tmp_path_factory.mktemp("reward_shards"))


@pytest.fixture(scope="session")
def policy(reward_shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a short supervised run left."""
    return sft_policy(reward_shards, tmp_path_factory.mktemp("sft"))
