"""The reward for other trainers, which have text: TRL, ms-swift and verl, each as it calls a reward function.

A completion is parsed as `TextAnswers` writes it, ``(x,y,heading)`` 8 times (`parse_waypoints`); one that does not
parse, or leaves 1 km, scores 0 and is counted (`TextReward.unparsed`), and where none has parsed yet a warning says so.
A row without its token, and all that `reward.Reward` refuses, is an error: nothing else is ever 0 but by the score.
docs/grpo.md shows each in use and names the versions that it was run with.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from scoring import Version
from shards_schema.errors import ConfigError
from trainer.answers.text import parse_waypoints
from trainer.reward import POSES, Reward
from trainer.scored import scored

DATA, VERSION, COLUMN = "LAST_SHARDS_DATA", "LAST_SHARDS_REWARD", "LAST_SHARDS_REWARD_COLUMN"
"""Environment of `SwiftReward`: the dataset (needed), v1 or v2, the column."""
WARN_AFTER = 8
"""Texts of which none has parsed."""


class TextReward:
    """Texts and tokens in, scores out.

    Attributes:
        answered, unparsed: texts so far, and those that did not parse.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.answered = self.unparsed = 0
        self._warned = False

    def rows(self, texts: Sequence[str], tokens: Sequence[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """``score`` and every sub-score, float64 [n], of one text a token; and which texts parsed, bool [n].

        Raises:
            ConfigError: not one token a text.
            SampleError, AbsentError: see `Reward`.
        """
        if isinstance(tokens, str) or len(tokens) != len(texts):
            raise ConfigError(f"reward: {len(texts)} completions, but tokens are {tokens!r:.200}; one each is needed")
        found = [parse_waypoints(text, POSES) for text in texts]
        nothing = [[0.0, 0.0, 0.0]] * POSES
        poses = torch.tensor([poses or nothing for poses in found], dtype=torch.float64).unsqueeze(1)
        rows, parsed = scored(self.reward, tokens, poses, torch.tensor([[p is not None] for p in found]))
        self.answered += len(texts)
        self.unparsed += int((~parsed).sum())
        if not self._warned and self.unparsed == self.answered >= WARN_AFTER:
            self._warned = True
            warnings.warn(
                f"reward: none of {self.answered} answers could be read, so all score 0. The last: {texts[-1]!r:.300}. "
                f"What is read: {POSES} poses, (x,y,heading) (x,y,heading) ..., after </think> if there are thoughts",
                RuntimeWarning,
                stacklevel=2,
            )
        return {name: value[:, 0] for name, value in rows.items()}, parsed[:, 0]

    def __call__(self, texts: Sequence[str], tokens: Sequence[str]) -> list[float]:
        """The scores alone."""
        scores: list[float] = self.rows(texts, tokens)[0]["score"].tolist()
        return scores


class TRLReward:
    """For `trl.GRPOTrainer(reward_funcs=TRLReward(Reward(...)), ...)`; the training set has a column ``token``.

    Sub-scores and the share that does not parse are logged through `log_metric`, where TRL gives it.
    """

    def __init__(self, reward: Reward, name: str = "pdms") -> None:
        self.text = TextReward(reward)
        self.__name__ = name  # what TRL logs it under

    def __call__(
        self, completions: Sequence[Any], *, token: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """Completions are texts, or conversations whose last message is the answer."""
        if token is None:
            raise ConfigError(f"reward {self.__name__}: the data has no column 'token' (it has {sorted(columns)})")
        rows, parsed = self.text.rows([completion_text(c) for c in completions], token)
        log = columns.get("log_metric")
        if log is not None:
            for name, value in rows.items():
                log(f"{self.__name__}/{name}", value.mean().item())
            log(f"{self.__name__}/unparsed", 1 - parsed.double().mean().item())
        scores: list[float] = rows["score"].tolist()
        return scores


class SwiftReward:
    """For ms-swift: in a file for ``--external_plugins``, ``orms["pdms"] = SwiftReward``; then ``--reward_funcs pdms``.

    ms-swift makes the object itself, so dataset and version come from the environment; rows have a column ``token``.
    """

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        if not os.environ.get(DATA):
            raise ConfigError(f"reward: set {DATA} to the dataset that has the reward column")
        self.text = _text_reward(os.environ[DATA], *_from_environment())

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        """ms-swift gives each column of the data as a list."""
        if "token" not in columns:
            raise ConfigError(f"reward: the data has no column 'token' (it has {sorted(columns)})")
        return self.text(completions, columns["token"])


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    dataset: str,
    version: Version = "v1",
    column: str = "pdm",
    **others: Any,
) -> dict[str, float]:
    """For verl's ``custom_reward_function``: one answer; ``extra_info["token"]`` names the scene.

    `dataset`, `version` and `column` are its ``reward_kwargs``. verl takes ``score``, and logs the rest.
    """
    token = (extra_info or {}).get("token")
    if not isinstance(token, str):
        raise ConfigError(f"reward: {data_source}: extra_info has no 'token': {extra_info!r:.200}")
    rows, parsed = _text_reward(dataset, version, column).rows([solution_str], [token])
    return {**{name: value.item() for name, value in rows.items()}, "parsed": float(parsed)}


@lru_cache(maxsize=4)
def _text_reward(dataset: str, version: Version, column: str) -> TextReward:
    return TextReward(Reward(dataset, version=version, column=column))


def _from_environment() -> tuple[Version, str]:
    version = os.environ.get(VERSION, "v1")
    if version not in ("v1", "v2"):
        raise ConfigError(f"{VERSION} is {version!r}, expected v1 or v2")
    return ("v2" if version == "v2" else "v1"), os.environ.get(COLUMN, "pdm")


def completion_text(completion: Any) -> str:
    """The text of a completion: TRL gives messages where the prompt was a conversation; "" where nothing was said."""
    if isinstance(completion, str):
        return completion
    content = (completion[-1].get("content") if completion else None) or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
