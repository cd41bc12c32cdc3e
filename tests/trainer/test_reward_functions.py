"""The reward as TRL, ms-swift and verl call it: TRL in a real step, the others by what their sources call."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from questions.controls import said
from shards_schema.errors import AbsentError, ConfigError, SampleError
from tests.questions_toys import prompt, write_units
from trainer.answers.text import TextAnswers, parse_waypoints
from trainer.question_rewards import QuestionReward, TRLQuestionReward
from trainer.reward import Reward
from trainer.reward_functions import DATA, VERSION, SwiftReward, TextReward, TRLReward, compute_score

STRAIGHT = " ".join(f"({2.5 * k:.2f},0.00,0.000)" for k in range(1, 9))
STOP = " ".join(["(0.00,0.00,0.000)"] * 8)


def poses(text: str) -> torch.Tensor:
    found = parse_waypoints(text, 8)
    assert found is not None
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(scope="module")
def reward(reward_shards: str) -> Reward:
    return Reward(reward_shards)


def test_text_is_what_text_answers_write(reward: Reward) -> None:
    answers = TextAnswers(8)
    future = torch.rand(3, 8, 3, generator=torch.Generator().manual_seed(0)) * 20
    for row, ids in zip(future, answers.encode(future, future), strict=True):
        text = answers._decode([i for i in ids.tolist() if i >= 0])
        torch.testing.assert_close(poses(text).float(), row, atol=0.006, rtol=0)


def test_texts_are_scored_and_those_that_do_not_parse_are_counted(reward: Reward) -> None:
    text = TextReward(reward)
    token = reward.tokens[0]
    texts = [STRAIGHT, STOP, "I would rather walk.", STRAIGHT[:-1], STRAIGHT.replace("2.50,", "9999.00,")]
    found = text(texts, [token] * 5)
    assert found[:2] == [reward(token, poses(t)).item() for t in texts[:2]]
    assert found[0] != found[1]
    assert found[2:] == [0, 0, 0]
    assert (text.answered, text.unparsed) == (5, 3)
    with pytest.raises(ConfigError, match="1 completions, but tokens are"):
        text([STRAIGHT], [token, token])
    with pytest.raises(ConfigError, match="one each is needed"):
        text([STRAIGHT], token)
    with pytest.raises(AbsentError, match="token nobody"):
        text([STRAIGHT], ["nobody"])


def test_nothing_that_parses_is_warned_of_once(reward: Reward) -> None:
    """A run whose answers are written in another way goes on for days with a reward of 0."""
    text, token = TextReward(reward), reward.tokens[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text(["The light is red."] * 7, [token] * 7)
    with pytest.warns(RuntimeWarning, match=r"none of 8 answers could be read.*'Stop!'.*\(x,y,heading\)"):
        text(["Stop!"], [token])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text(["Stop!"] * 9, [token] * 9)
        other = TextReward(reward)
        other(["Stop!"] * 7, [token] * 7)
        other([STRAIGHT], [token])
        other(["Stop!"] * 9, [token] * 9)


def test_ms_swift_makes_the_object_and_gives_columns_as_lists(
    reward: Reward, reward_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ms-swift 4.6.0: `orms[name](args=args)`, then `func(completions, trainer_state=..., **{column: [...]})`."""
    with pytest.raises(ConfigError, match=f"set {DATA}"):
        SwiftReward(args=None)
    monkeypatch.setenv(DATA, reward_shards)
    made = SwiftReward(args=object())
    tokens = list(reward.tokens[:2])
    columns: dict[str, Any] = {"token": tokens, "messages": [[], []], "trainer_state": object()}
    found = made([STRAIGHT, "no"], **columns)
    assert found == [reward(tokens[0], poses(STRAIGHT)).item(), 0.0]
    assert all(type(value) is float for value in found)
    with pytest.raises(ConfigError, match="no column 'token'"):
        made([STRAIGHT], messages=[[]])
    monkeypatch.setenv(VERSION, "v3")
    with pytest.raises(ConfigError, match="expected v1 or v2"):
        SwiftReward()


def test_verl_calls_it_by_keywords_answer_by_answer(reward: Reward, reward_shards: str) -> None:
    """verl 0.9.1: four keywords, `reward_kwargs` merged in, and two more where a reward model is routed."""
    wrapped = partial(compute_score, dataset=reward_shards, version="v2")
    token = reward.tokens[0]
    extra = {"token": token, "num_turns": 1, "rollout_reward_scores": {}}
    call = {"data_source": "navsim", "ground_truth": "", "extra_info": extra}
    found = wrapped(solution_str=STRAIGHT, **call, reward_router_address=None, reward_model_tokenizer=None)  # type: ignore[arg-type]
    expected = Reward(reward_shards, version="v2").score([token], poses(STRAIGHT)[None, None])
    assert found["score"] == expected.score.item()
    assert found["lane_keeping"] == expected.subscores["lane_keeping"].item()
    assert found["parsed"] == 1
    assert all(type(value) is float for value in found.values())
    nothing = wrapped(solution_str="?", **call)  # type: ignore[arg-type]
    assert nothing.keys() == found.keys()  # verl stacks them over the batch
    assert set(nothing.values()) == {0.0}
    for extra_info in (None, {}, {"token": 7}):
        with pytest.raises(ConfigError, match="navsim: extra_info has no 'token'"):
            wrapped(data_source="navsim", solution_str=STRAIGHT, ground_truth="", extra_info=extra_info)


def test_trl_gives_columns_and_conversations(reward: Reward) -> None:
    made = TRLReward(reward)
    assert made.__name__ == "pdms"
    tokens = list(reward.tokens[:2])
    logged: dict[str, float] = {}
    chats = [[{"role": "assistant", "content": text}] for text in (STRAIGHT, "no")]
    found = made(chats, token=tokens, prompts=["a", "b"], log_metric=logged.__setitem__)
    assert found == made([STRAIGHT, "no"], token=tokens) == [reward(tokens[0], poses(STRAIGHT)).item(), 0.0]
    assert logged["pdms/unparsed"] == 0.5
    assert {"pdms/score", "pdms/ego_progress"} <= logged.keys()
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": STRAIGHT}]}]]
    assert made(parts, token=tokens[:1]) == found[:1]
    with pytest.raises(ConfigError, match="no column 'token'"):
        made([STRAIGHT], prompts=["a"])


def test_a_step_of_trls_trainer(reward: Reward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model of random weights says nothing that parses; the prefix that it is given by force does."""
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from tests.trainer.trl_toys import grpo_trainer

    rows = [{"prompt": "drive", "token": token} for token in reward.tokens[:4]]
    made = TRLReward(reward)
    calls: list[dict[str, Any]] = []

    def watched(completions: Any, **columns: Any) -> list[float]:
        said = list(completions)
        said[0] = STRAIGHT  # as a trained model would
        scores = made(said, **columns)
        calls.append({"token": columns["token"], "scores": scores})
        return scores

    trainer = grpo_trainer(rows, watched, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert len(calls) == 1
    assert set(calls[0]["token"]) <= {row["token"] for row in rows}
    assert calls[0]["token"][0] == calls[0]["token"][1]  # a group is of one scene
    expected = reward(calls[0]["token"][0], poses(STRAIGHT)).item()
    assert calls[0]["scores"] == [expected, 0, 0, 0]
    assert made.text.unparsed == 3
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert history[0]["reward"] == pytest.approx(expected / 4)
    assert history[0]["pdms/unparsed"] == pytest.approx(0.75)


def test_a_step_of_trls_trainer_on_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as `jobs.questions export` writes them; what a random model says earns nothing, the right answer does."""
    pytest.importorskip("trl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from tests.trainer.trl_toys import grpo_trainer

    pair = [
        prompt("fb", ("Yes", "No"), answer, unit="fb", side=side, split="train")
        for side, answer in ((1, "Yes"), (2, "No"))
    ]
    units = write_units(
        tmp_path / "train.jsonl", [*pair, prompt("xy2d", answer="[718, 524]", unit="xy", split="train")]
    )
    reward, seen = TRLQuestionReward(QuestionReward(units)), list[tuple[Any, Any]]()
    rows = [{"prompt": "Yes?", "unit": p.unit, "side": p.side, "solution": p.answer} for p in reward.reward.asked]

    def watched(completions: Any, **columns: Any) -> list[float]:
        said_too = ["<think>so</think>" + said(columns["solution"][0]), *completions[1:]]  # as a trained model would
        scores = reward(said_too, **columns)
        seen.append(([*zip(columns["unit"], columns["side"], strict=True)], scores))
        return scores

    trainer = grpo_trainer(rows, watched, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    ((keys, scores),) = seen
    assert keys[0] == keys[1]  # a group is of one prompt
    assert scores == [1.5, 0, 0, 0]
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert history[0]["reward"] == pytest.approx(1.5 / 4)
    assert history[0]["questions/accuracy"] == pytest.approx(1 / 4)


def test_what_is_wrong_in_the_data_reaches_the_user(reward: Reward, tmp_path: Path) -> None:
    """An unknown token stops TRL's step; it is not a reward of 0."""
    pytest.importorskip("trl")
    from tests.trainer.trl_toys import grpo_trainer

    trainer = grpo_trainer([{"prompt": "drive", "token": "nobody"}] * 2, TRLReward(reward), tmp_path)
    with pytest.raises((AbsentError, SampleError), match="token nobody is in no plan"):
        trainer.train()
