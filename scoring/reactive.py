"""NAVSIM's two-stage score of a trajectory: in traffic that reacts to it, PDM-Closed and the human included.

What a candidate is measured by depends on it here: PDM-Closed is scored in the traffic that answers to the candidate,
the human in that which answers to the human. So nothing is shared between the candidates of a scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoring.context import FILTERED, RewardContext, collate
from scoring.idm import react
from scoring.reference import reference_poses
from scoring.references import HUMAN_INTERVAL_S, complete
from scoring.scorer import DEFAULT_MAX_BYTES, ScoreResult, rollout, score
from scoring.simulator import simulate


def score_reactive(
    contexts: Sequence[RewardContext],
    trajectories: Tensor,
    *,
    use_human_filter: bool = True,
    consistent: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> ScoreResult:
    """Score candidates, on the CPU.

    Args:
        contexts: S scenes, v2, with `traffic`.
        trajectories: float [S, C, 8, 3], see `scorer.score`.
        use_human_filter, consistent, max_bytes: likewise.

    Returns:
        as `scorer.score`.

    Raises:
        SampleError: code ``no_traffic``: a column that was made without it; those of `scorer.score`.
    """
    scenes, candidates = trajectories.shape[:2]
    each = [context for context in contexts for _ in range(candidates)]
    flat = trajectories.to(torch.float64).flatten(0, 1)
    driven = _driven(each, flat)
    seen = complete([react(c, s) for c, s in zip(each, driven, strict=True)], max_bytes=max_bytes)
    zero = _human_zero(contexts, max_bytes)
    seen = [replace(c, human_zero=zero[k // candidates]) for k, c in enumerate(seen)]
    found = score(
        collate(seen),
        flat.unsqueeze(1),
        version="v2",
        use_human_filter=use_human_filter,
        consistent=consistent,
        max_bytes=max_bytes,
    )
    return ScoreResult.of([found], lambda part: part[0].view(scenes, candidates, *part[0].shape[2:]))


def _driven(contexts: Sequence[RewardContext], poses: Tensor) -> list[NDArray[np.float64]]:
    """The simulated states float64 [41, 11] of a path [8, 3] in each scene."""
    batch = collate(contexts)
    references = reference_poses(poses, batch.timestamp_us, HUMAN_INTERVAL_S)
    return [*simulate(references, batch.ego_state).numpy()]


def _human_zero(contexts: Sequence[RewardContext], max_bytes: int) -> list[NDArray[np.bool_]]:
    """Which sub-scores the human has 0 in, in the traffic that answers to the human; none where no human drove."""
    out: list[NDArray[np.bool_]] = [np.zeros(len(FILTERED), dtype=np.bool_) for _ in contexts]
    places = [k for k, context in enumerate(contexts) if len(context.human_poses)]
    if places:
        humans = [contexts[k] for k in places]
        poses = torch.from_numpy(np.stack([context.human_poses for context in humans]))
        batch = collate([react(c, s) for c, s in zip(humans, _driven(humans, poses), strict=True)])
        references = reference_poses(poses, batch.timestamp_us, HUMAN_INTERVAL_S)
        rows, _ = rollout(batch, references, torch.arange(len(humans)), max_bytes=max_bytes)
        for row, k in enumerate(places):
            out[k] = np.array([bool(rows[name][row] == 0) for name in FILTERED])
    return out
