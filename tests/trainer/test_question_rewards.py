"""Rewards for questions as TRL, ms-swift and verl call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from questions.controls import said
from shards_schema.errors import ConfigError
from tests.questions_toys import BOX, prompt, write_units
from trainer import question_rewards
from trainer.question_rewards import (
    QuestionReward,
    SwiftQuestionReward,
    TRLQuestionReward,
    Weights,
    compute_question_score,
)

THOUGHT = "<think>so</think>"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A pair, a point, and a unit that nobody is asked."""
    return write_units(
        tmp_path / "train.jsonl",
        [
            prompt("xy2d", answer="[718, 524]", unit="x", split="train", left_out="ambiguous"),
            *(
                prompt("fb", ("Yes", "No"), answer, unit="fb", side=side, split="train")
                for side, answer in ((1, "Yes"), (2, "No"))
            ),
            prompt("xy2d", answer="[718, 524]", unit="xy", split="train", token="other"),
        ],
    )


def test_trl_ms_swift_and_verl_give_the_same(units: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [THOUGHT + said("Yes"), said("Yes"), THOUGHT + said("[718, 524.5]")]
    columns = {"unit": ["fb", "fb", "xy"], "side": [1, 2, 1]}
    expected = [1.5, 0.0, 1.5]
    logged: dict[str, float] = {}
    trl = TRLQuestionReward(QuestionReward(units))
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert trl(completions=chats, **columns, log_metric=logged.__setitem__) == expected
    assert trl(completions=texts, **columns) == expected
    share = pytest.approx(2 / 3)
    assert logged == {"questions/score": 1.0, "questions/form": share, "questions/accuracy": share}
    silent = [None, [], [{"role": "assistant", "content": None}]]  # a call of a tool, or nothing
    assert trl(completions=silent, unit=["fb", "fb", "xy"], side=["1", "2", "1"]) == [0.0, 0.0, 0.0]
    monkeypatch.setenv(question_rewards.UNITS, str(units))
    assert SwiftQuestionReward()(texts, **columns) == expected
    rows = [("nuscenes_0007_CAM_FRONT", 0), ("nuscenes_0007_CAM_FRONT", 1), ("other", 2)]
    for text, (token, index), score in zip(texts, rows, expected, strict=True):
        info = {"token": token, "index": index}
        assert compute_question_score("last-shards", text, "?", info, units=str(units))["score"] == score


def test_pairs_and_locations_where_they_are_wanted(units: Path) -> None:
    texts = [THOUGHT + said("Yes"), THOUGHT + said("Yes")]
    assert QuestionReward(units, pairs=True).rows(texts, ["fb", "fb"], [1, 2])["accuracy"] == [0, 0]
    reward = QuestionReward(units, weights=Weights(form=1, accuracy=0, location=2))
    there = f"<location>white car: {[*BOX]}</location>{THOUGHT}{said('Yes')}"
    rows = reward.rows([there, texts[0]], ["fb", "fb"], [1, 1])
    assert rows == {"score": [3, 0], "form": [1, 0], "accuracy": [1, 1], "location": [1, 0]}


def test_what_is_no_row_of_the_units_is_an_error_and_no_zero(units: Path, tmp_path: Path) -> None:
    reward = QuestionReward(units)
    with pytest.raises(ConfigError, match="has no side 1 of unit x"):
        reward.rows([""], ["x"], [1])
    with pytest.raises(ConfigError, match="2 completions, 1 units and 2 sides"):
        reward.rows(["", ""], ["fb"], [1, 2])
    with pytest.raises(ConfigError, match=r"no columns 'unit' and 'side' \(it has \['token'\]\)"):
        TRLQuestionReward(reward)([""], token=["a"])
    with pytest.raises(ConfigError, match="is no row of"):
        compute_question_score("last-shards", "", "", {"token": "other", "index": 0}, units=str(units))
    with pytest.raises(ConfigError, match="set LAST_SHARDS_UNITS"):
        SwiftQuestionReward()
    held = write_units(tmp_path / "evaluation.jsonl", [prompt("xy2d", answer="[718, 524]")])
    with pytest.raises(ConfigError, match="nothing may be trained on these"):
        QuestionReward(held)
    with pytest.raises(ConfigError, match="reward: weights: frm: unknown key; did you mean form"):
        QuestionReward(units, weights={"frm": 1.0})
    with pytest.raises(ConfigError, match="coordinates is 'model_input', expected one of pixels, unit, thousand"):
        QuestionReward(units, coordinates="model_input")  # type: ignore[arg-type]
