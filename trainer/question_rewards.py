"""Rewards for questions, for other trainers: TRL, ms-swift and verl, each as it calls a reward function.

A row names its unit and side, as `jobs.questions export` writes them; the unit file says what is right. The reward is
``form * weight + accuracy * weight + location * weight`` (`questions.rewards`). Units of an evaluation split are
refused: nothing may learn from them. docs/questions.md shows each in use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

from questions.answers import Fixed
from questions.outputs import Key
from questions.rewards import Weights, weighed
from questions.units import Prompt, read_units, refuse_training
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import validated
from trainer.reward_functions import completion_text

UNITS = "LAST_SHARDS_UNITS"
"""Environment of `SwiftQuestionReward`: the unit file."""


class QuestionReward:
    """Texts, units and sides in, rewards out.

    Args:
        units: the unit file.
        weights: of the parts, as `Weights` or as a mapping; None is `Weights()`.
        pairs: both answers of a pair must be right, as the metric has it; both have to be in one call.
        coordinates: of points and boxes.

    Attributes:
        asked: the prompts, in the order of the rows that `jobs.questions export` writes.

    Raises:
        ConfigError: units of an evaluation split; weights or coordinates that cannot be.
        MissingFileError, StoreError, DatasetError: see `read_units`.
    """

    def __init__(
        self,
        units: str | Path,
        *,
        weights: Weights | Mapping[str, float] | None = None,
        pairs: bool = False,
        coordinates: Fixed = "pixels",
    ) -> None:
        if coordinates not in get_args(Fixed):
            raise ConfigError(f"reward: coordinates is {coordinates!r}, expected one of {', '.join(get_args(Fixed))}")
        every = read_units(Path(units))
        refuse_training(every, str(units))
        self.asked = [p for p in every if p.left_out is None]
        self._prompts: dict[Key, Prompt] = {(p.unit, p.side): p for p in self.asked}
        self._units, self._weights = units, validated(Weights, weights or {}, "reward: weights: ")
        self._pairs, self._coordinates = pairs, coordinates

    def rows(self, texts: Sequence[str], units: Sequence[str], sides: Sequence[int]) -> dict[str, list[float]]:
        """``score``, ``form``, ``accuracy`` and, where it has a weight, ``location`` of each text.

        Raises:
            ConfigError: not one unit and side a text, or one that is not in the file; see `rewards.paired`.
        """
        if not len(texts) == len(units) == len(sides):
            raise ConfigError(f"reward: {len(texts)} completions, {len(units)} units and {len(sides)} sides")
        keys = [(unit, int(side) if str(side) in ("1", "2") else side) for unit, side in zip(units, sides, strict=True)]
        if unknown := [key for key in keys if key not in self._prompts]:
            raise ConfigError(f"reward: {self._units} has no side {unknown[0][1]} of unit {unknown[0][0]}")
        prompts = [self._prompts[key] for key in keys]
        return weighed(prompts, texts, self._weights, pairs=self._pairs, coordinates=self._coordinates)


class TRLQuestionReward:
    """For `trl.GRPOTrainer(reward_funcs=...)`; the training set has columns ``unit`` and ``side``."""

    def __init__(self, reward: QuestionReward, name: str = "questions") -> None:
        self.reward = reward
        self.__name__ = name  # what TRL logs it under

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Completions are texts, or conversations whose last message is the answer."""
        units, sides = _named(columns)
        rows = self.reward.rows([completion_text(c) for c in completions], units, sides)
        log = columns.get("log_metric")
        if log is not None:
            for name, values in rows.items():
                log(f"{self.__name__}/{name}", sum(values) / max(len(values), 1))
        return rows["score"]


class SwiftQuestionReward:
    """For ms-swift: ``orms["questions"] = SwiftQuestionReward``; the unit file comes from the environment (`UNITS`)."""

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        if not os.environ.get(UNITS):
            raise ConfigError(f"reward: set {UNITS} to the unit file that the rows were made of")
        self.reward = QuestionReward(os.environ[UNITS])

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """ms-swift gives each column of the data as a list."""
        return self.reward.rows(completions, *_named(columns))["score"]


def compute_question_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, *, units: str
) -> dict[str, float]:
    """For verl's ``custom_reward_function``: one answer; `units` is the file, of which ``extra_info`` has the place.

    Raises:
        ConfigError: ``extra_info`` has no ``index``, or the unit there is of another ``token``.
    """
    reward, info = _reward(units), extra_info or {}
    index = info.get("index")
    prompt = reward.asked[index] if isinstance(index, int | np.integer) and 0 <= index < len(reward.asked) else None
    if prompt is None or prompt.token != info.get("token"):
        raise ConfigError(f"reward: {data_source}: extra_info {info!r:.200} is no row of {units}")
    rows = reward.rows([solution_str], [prompt.unit], [prompt.side])
    return {name: values[0] for name, values in rows.items()}


def _named(columns: Mapping[str, Any]) -> tuple[Any, Any]:
    if "unit" not in columns or "side" not in columns:
        raise ConfigError(f"reward: the data has no columns 'unit' and 'side' (it has {sorted(columns)})")
    return columns["unit"], columns["side"]


@lru_cache(maxsize=4)
def _reward(units: str) -> QuestionReward:
    return QuestionReward(units)
