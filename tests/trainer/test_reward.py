"""The reward of a dataset's column: equal to the scorer's own numbers, and loud about all that cannot be scored."""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.reading.reader import Dataset
from scoring import collate, score
from shards_schema.errors import AbsentError, QuarantinedError, SampleError
from teachers.pdm import context_from_targets
from tests.trainer.reward_toys import write_reward_dataset
from trainer.reward import Reward


def trajectories(count: int, speed: float = 5.0) -> torch.Tensor:
    """[count, 8, 3]: straight on, each a little faster than the one before."""
    out = torch.zeros(count, 8, 3, dtype=torch.float64)
    out[..., 0] = torch.arange(1, 9) * 0.5 * (speed + torch.arange(count).unsqueeze(1))
    return out


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_it_gives_the_scorers_own_numbers(reward_shards: str, version: str) -> None:
    reward = Reward(reward_shards, version=version)  # type: ignore[arg-type]
    tokens = reward.tokens[:3]
    poses = trajectories(6).view(3, 2, 8, 3)
    dataset = Dataset(reward_shards, columns=["pdm"])
    contexts = [context_from_targets(dataset.read(t)["pdm"], version, t) for t in tokens]  # type: ignore[arg-type]
    expected = score(collate(contexts), poses)
    found = reward.score(tokens, poses)
    assert torch.equal(found.score, expected.score)
    assert found.subscores.keys() == expected.subscores.keys()
    assert 0 < expected.score.max() <= 1
    assert len(expected.score.unique()) > 2  # or equality would say little
    assert torch.equal(reward(tokens, poses), expected.score)
    assert torch.equal(reward(tokens, poses[:, 1]), expected.score[:, 1])
    assert torch.equal(reward(tokens[1], poses[1]), expected.score[1])
    assert torch.equal(reward(tokens[1], poses[1, 0]), expected.score[1, 0])
    assert torch.equal(reward(tokens[1], poses[1, 0].tolist()), expected.score[1, 0])
    assert torch.equal(reward(tokens[1], np.asarray(poses[1, 0])), expected.score[1, 0])


def test_more_scenes_than_are_scored_at_once(reward_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Reward(reward_shards)
    poses = trajectories(7).unsqueeze(1)
    tokens = reward.tokens[:7]
    whole = reward.score(tokens, poses)
    monkeypatch.setattr("trainer.reward.SCENES_AT_ONCE", 3)
    parts = reward.score(tokens, poses)
    assert parts.score.equal(whole.score)
    assert parts.states.equal(whole.states)
    assert all(parts.subscores[name].equal(value) for name, value in whole.subscores.items())


def test_contexts_are_kept_up_to_a_bound(reward_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Reward(reward_shards, keep=2)
    read: list[str] = []
    own = reward.dataset.read
    monkeypatch.setattr(reward.dataset, "read", lambda token, *a, **kw: read.append(token) or own(token, *a, **kw))
    a, b, c = reward.tokens[:3]
    for token in (a, b, a, c, a, b):
        reward.contexts([token])
    assert read == [a, b, c, b]  # b was used longest ago when c came


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is read from Linux's /proc")
def test_what_is_kept_keeps_no_file(reward_shards: str, tmp_path: Path) -> None:
    """A view would hold its shard's tar mapped, and open: a run of a thousand shards would have no descriptors left."""
    copied = shutil.copytree(reward_shards, tmp_path / "copied")
    reward = Reward(str(copied))
    kept = reward.contexts(reward.tokens[:3])
    assert str(copied) not in Path("/proc/self/maps").read_text()
    view = Dataset(str(copied), columns=["pdm"]).read(reward.tokens[0])
    assert str(copied) in Path("/proc/self/maps").read_text()
    del kept, view


def test_threads_and_copies_score_alike(reward_shards: str) -> None:
    reward = Reward(reward_shards, keep=1)
    tokens, poses = reward.tokens[:4], trajectories(1)[0]
    expected = [reward(t, poses).item() for t in tokens]
    found: dict[str, float] = {}

    def ask(token: str) -> None:
        found[token] = reward(token, poses).item()

    threads = [threading.Thread(target=ask, args=(t,)) for t in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[t] for t in tokens] == expected
    copied = pickle.loads(pickle.dumps(reward))
    assert [copied(t, poses).item() for t in tokens] == expected


def test_a_trajectory_that_is_none_is_named(reward_shards: str) -> None:
    reward = Reward(reward_shards)
    tokens, poses = reward.tokens[:2], trajectories(4).view(2, 2, 8, 3)
    broken = poses.clone()
    broken[1, 0, 3, 1] = torch.nan
    with pytest.raises(SampleError, match=rf"{reward_shards}: token {tokens[1]}: candidate 0 .*not finite") as error:
        reward(tokens, broken)
    assert error.value.code == "bad_trajectory"
    for wrong in (poses[..., :7, :], poses[..., :2], poses[:1], poses[:, :0]):
        with pytest.raises(SampleError, match=rf"{reward_shards}: token {tokens[0]}.*8 poses"):
            reward(tokens, wrong)
    with pytest.raises(SampleError, match="no token"):
        reward([], poses[:0])
    broken[1, 0, 3, 1] = torch.inf
    with pytest.raises(SampleError, match="not finite"):
        reward(tokens[1], broken[1])


def test_a_token_without_a_context_is_named(reward_shards: str) -> None:
    reward = Reward(reward_shards)
    with pytest.raises(AbsentError, match=rf"{reward_shards}: column pdm, token nobody is in no plan"):
        reward("nobody", trajectories(1)[0])


def test_a_quarantined_scene_says_why(tmp_path: Path) -> None:
    """A route that is not on the map: the teacher quarantines it."""
    data = write_reward_dataset(tmp_path, every=8, off_map=1)
    reward = Reward(data)
    lost = Dataset(data, columns=["pdm"]).quarantined("pdm")
    assert len(lost) == 1
    token = next(iter(lost))
    assert token not in reward.tokens
    with pytest.raises(QuarantinedError, match=rf"token {token} was quarantined as route_not_on_map"):
        reward([reward.tokens[0], token], trajectories(2))


def test_a_column_that_is_not_there_is_named(reward_shards: str, shards: str, tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=rf"{shards}: no column 'pdm'.*jobs\.teachers"):
        Reward(shards)
    with pytest.raises(AbsentError, match="no column 'pdm' is open"):
        Reward(Dataset(reward_shards, columns=["toy"]))
    with pytest.raises(AbsentError, match=r"column toy cannot be scored as v1: it has no .*\.\.\."):
        Reward(reward_shards, column="toy")
    only_v1 = write_reward_dataset(tmp_path, every=8, versions=("v1",))
    assert len(Reward(only_v1).tokens) > 0
    with pytest.raises(
        AbsentError, match=rf"{only_v1}: column pdm cannot be scored as v2: it has no v2_agents_is_agent"
    ):
        Reward(only_v1, version="v2")


def test_the_human_filter_is_a_switch(reward_shards: str) -> None:
    filtered, bare = (Reward(reward_shards, version="v2", use_human_filter=on) for on in (True, False))
    poses = trajectories(8, speed=0.0)
    tokens = filtered.tokens
    both = [r.score(tokens, poses.expand(len(tokens), -1, -1, -1)) for r in (filtered, bare)]
    assert torch.equal(both[0].unfiltered["no_at_fault_collisions"], both[1].subscores["no_at_fault_collisions"])
    assert (both[0].score >= both[1].score).all()
