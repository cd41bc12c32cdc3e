"""NAVSIM's score as a reward: `reward(token, trajectories) -> scores`, from the reward column of a dataset.

    reward = Reward("out/demo", version="v1")
    reward("0123abcd", trajectories_C83)              # one scene: [C]
    reward(tokens, trajectories_SC83)                 # S scenes: [S, C]
    reward.score(tokens, trajectories_SC83)           # every sub-score, [S, C] each

A scene that was quarantined, an unknown token, a trajectory that is not finite or not 8 poses long, a column that is
not there: an error with token and dataset, never a 0. What an answer that does not parse is worth is for the caller to
say, who knows that it did not. Contexts are read from the mapped tar and a bounded number of them is kept (160 kB or so
each); every candidate is scored against PDM-Closed alone, so a reward does not depend on its group.

Legend: S scenes, C candidates, T = 8 poses of 0.5 s.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.reading.reader import Dataset
from scoring import RewardContext, ScoreResult, Version, collate, context_from_targets, context_names, score
from scoring.scorer import DEFAULT_MAX_BYTES
from shards_schema.errors import AbsentError, MissingFileError, SampleError

POSES = 8
"""4 s at 0.5 s: what NAVSIM scores."""
SCENES_AT_ONCE = 64
"""Scenes that are padded to a common size and scored together."""

Trajectories = Tensor | NDArray[Any] | Sequence[Any]


class Reward:
    """See the module. Safe to share between threads; picklable with a dataset given by its URL or not.

    Args:
        dataset: where the column is; opened with it alone if a path or URL is given.
        version: ``v1``: PDMS, ``v2``: EPDMS (without extended comfort, which needs the frame before).
        column: of the teacher `pdm`.
        reactive: v2: traffic answers to the trajectory, as in NAVSIM's two-stage run; of a column with those arrays.
        use_human_filter: v2: a sub-score that the human failed too counts as 1 (NAVSIM's own score). Off, the reward
            is denser.
        consistent: see `scoring.score`; of `pdm_score` only.
        device: where scores are computed.
        max_bytes: bound on the scorer's intermediates.
        keep: contexts kept, those used last.

    Raises:
        AbsentError: no such column, or it was made without this version; the dataset is named.
        MissingFileError: there is no dataset.
    """

    def __init__(
        self,
        dataset: Dataset | str | os.PathLike[str],
        *,
        version: Version = "v1",
        column: str = "pdm",
        reactive: bool = False,
        use_human_filter: bool = True,
        consistent: bool = False,
        device: torch.device | str = "cpu",
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep: int = 2048,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, Dataset) else _opened(dataset, column)
        self.version: Version = version
        self.column, self.device = column, torch.device(device)
        self.reactive = reactive
        self._names = context_names(version, reactive=reactive)
        self._options: dict[str, Any] = {
            "use_human_filter": use_human_filter,
            "consistent": consistent,
            "max_bytes": max_bytes,
        }
        self._keep = keep
        self._kept: OrderedDict[str, RewardContext] = OrderedDict()
        self._lock = threading.Lock()
        missing = sorted({*self._names} - {*self.dataset.specs(column)})
        if missing and all(name.startswith("v2_traffic_") for name in missing):
            raise AbsentError(
                f"{self.dataset.url}: column {column} has no lanes for reactive traffic; write it with `reactive: "
                "true` in the config of the teacher pdm"
            )
        if missing:
            raise AbsentError(
                f"{self.dataset.url}: column {column} cannot be scored as {version}: it has no {', '.join(missing[:3])}"
                f"{' ...' if len(missing) > 3 else ''}; was it made by the teacher pdm, with {version} in `versions`?"
            )

    def __repr__(self) -> str:
        return f"Reward({self.dataset.url!r}, {self.version}: column {self.column}, {len(self.tokens)} scenes)"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _kept=OrderedDict())

    @property
    def tokens(self) -> tuple[str, ...]:
        """The scenes that have a context, in plan order."""
        return self.dataset.tokens(self.column)

    def contexts(self, tokens: Sequence[str]) -> list[RewardContext]:
        """What each scene is scored by.

        Raises:
            QuarantinedError: the scene has no context, with the reason. AbsentError: no such scene.
            SampleError: code ``bad_context``, what is stored is not what the column promises.
        """
        return [self._context(token) for token in tokens]

    def score(self, tokens: Sequence[str], trajectories: Trajectories) -> ScoreResult:
        """Every sub-score, float64 [S, C] each, of trajectories [S, C, 8, 3] (x, y, heading; rear axle at t0; m, rad).

        Raises:
            SampleError: code ``bad_trajectory``: shape, or values that are not finite; token and dataset are named.
            QuarantinedError, AbsentError: see `contexts`.
        """
        poses = torch.as_tensor(np.asarray(trajectories) if not isinstance(trajectories, Tensor) else trajectories)
        self._check(tokens, poses)
        parts = []
        for i in range(0, len(tokens), SCENES_AT_ONCE):
            contexts, some = self.contexts(tokens[i : i + SCENES_AT_ONCE]), poses[i : i + SCENES_AT_ONCE]
            if self.reactive:
                from scoring.reactive import score_reactive  # wants shapely, which rewards of the log's traffic do not

                parts.append(score_reactive(contexts, some, **self._options))
            else:
                parts.append(score(collate(contexts, self.device), some, version=self.version, **self._options))
        return parts[0] if len(parts) == 1 else ScoreResult.of(parts, torch.cat)

    def __call__(self, tokens: str | Sequence[str], trajectories: Trajectories) -> Tensor:
        """Scores, float64 on `device`.

        One token with [8, 3] gives [], and with [C, 8, 3] it gives [C]. S tokens with [S, 8, 3] give [S], and with
        [S, C, 8, 3] they give [S, C]. Raises what `score` raises.
        """
        poses = torch.as_tensor(np.asarray(trajectories) if not isinstance(trajectories, Tensor) else trajectories)
        one_scene = isinstance(tokens, str)
        scenes = poses.unsqueeze(0) if one_scene else poses
        one_each = scenes.ndim == 3
        found = self.score([tokens] if isinstance(tokens, str) else tokens, scenes.unsqueeze(1) if one_each else scenes)
        scores = found.score.squeeze(1) if one_each else found.score
        return scores.squeeze(0) if one_scene else scores

    def _context(self, token: str) -> RewardContext:
        with self._lock:
            if token in self._kept:
                self._kept.move_to_end(token)
                return self._kept[token]
        # owned: a view would keep the whole shard mapped, and its file open, for as long as the context is kept
        arrays = self.dataset.read(token, {self.column: self._names}, owned=True)[self.column]
        try:
            context = context_from_targets(arrays, self.version, token)
        except SampleError as error:
            raise SampleError(error.code, f"{self.dataset.url}: column {self.column}: {error.reason}") from error
        with self._lock:
            self._kept[token] = context
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        return context

    def _check(self, tokens: Sequence[str], poses: Tensor) -> None:
        shape = list(poses.shape)
        if not tokens or len(shape) != 4 or shape[0] != len(tokens) or shape[1] == 0 or shape[2:] != [POSES, 3]:
            named = f"{tokens[0]}{' ...' if len(tokens) > 1 else ''}" if tokens else "no token"
            raise SampleError(
                "bad_trajectory",
                f"{self.dataset.url}: token {named}: expected trajectories [{len(tokens)} scenes, candidates, {POSES} "
                f"poses of 0.5 s, 3 (x, y, heading)], got {shape}",
            )
        bad = (~poses.isfinite()).flatten(2).any(2).nonzero()
        if len(bad):
            s, c = bad[0].tolist()
            raise SampleError(
                "bad_trajectory",
                f"{self.dataset.url}: token {tokens[s]}: candidate {c} has poses that are not finite: "
                f"{poses[s, c].tolist()}",
            )


def _opened(url: str | os.PathLike[str], column: str) -> Dataset:
    try:
        return Dataset(url, columns=[column])
    except MissingFileError as error:
        raise AbsentError(
            f"{url}: no column {column!r} ({error}); `python -m jobs.teachers` writes it, with the teacher pdm in its "
            f"config (docs/reward.md)"
        ) from error
