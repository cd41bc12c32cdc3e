"""Where the contexts of `jobs.score` come from: the devkit's metric caches, or the reward column of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from scoring import RewardContext, Version, complete
from shards_schema.errors import AbsentError, QuarantinedError
from teachers.pdm import context_from_cache, find_caches
from trainer.reward import Reward
from trainer.splits import logs_of


class ContextSource(Protocol):
    """Scenes that can be scored."""

    def missing(self, token: str) -> str | None:
        """Why a token has no context, or None where it has one."""
        ...

    def contexts(self, tokens: Sequence[str]) -> list[RewardContext]:
        """Complete contexts."""
        ...

    def log(self, token: str) -> str:
        """The log that a scene is of."""
        ...


class Caches:
    """The devkit's metric caches below a folder."""

    def __init__(self, root: Path, version: Version) -> None:
        self._root, self._version, self._files = root, version, find_caches(root)

    def missing(self, token: str) -> str | None:
        """None, or that there is no cache."""
        return None if token in self._files else f"has no metric cache below {self._root}"

    def contexts(self, tokens: Sequence[str]) -> list[RewardContext]:
        """Read and completed."""
        return complete([context_from_cache(self._files[t], self._version) for t in tokens])

    def log(self, token: str) -> str:
        """The folder that the devkit names by it."""
        return self._files[token].parents[2].name


class Column:
    """The reward column of a dataset."""

    def __init__(self, url: str, version: Version, column: str = "pdm") -> None:
        self._reward = Reward(url, version=version, column=column)
        self._known = frozenset(self._reward.tokens)
        self._logs = logs_of(self._reward.dataset)

    def missing(self, token: str) -> str | None:
        """None, or the reader's own words: quarantined with a reason, not committed yet, in no plan."""
        if token in self._known:
            return None
        try:
            self._reward.contexts([token])
        except QuarantinedError as error:
            return f"has no context: quarantined in {self._reward.dataset.url} as {error.code}: {error.reason}"
        except AbsentError as error:
            return f"has no context: {error}"
        return None

    def contexts(self, tokens: Sequence[str]) -> list[RewardContext]:
        """As the column has them."""
        return self._reward.contexts(tokens)

    def log(self, token: str) -> str:
        """Of the plan."""
        return self._logs[token]
