"""What a scene's scores are relative to: PDM-Closed's progress and the human's failures. Computed once, then stored.

Both are paths through the scorer itself: the reference of PDM-Closed is simulated and scored like a candidate
and so is what the human drove, whose history comfort is 1 by definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from scoring.aggregate import MULTIPLICATIVE, product
from scoring.context import FILTERED, RewardContext, collate
from scoring.reference import reference_poses
from scoring.scorer import DEFAULT_MAX_BYTES, rollout

HUMAN_INTERVAL_S = 0.5


def complete(
    contexts: Sequence[RewardContext], device: torch.device | str = "cpu", max_bytes: int = DEFAULT_MAX_BYTES
) -> list[RewardContext]:
    """The same scenes with `pdm_progress` and `human_zero`, from their `pdm_poses` and `human_poses`."""
    if not contexts:
        return []
    batch = collate(contexts, device)
    scene = torch.arange(len(batch), device=batch.device)
    rows, _ = rollout(batch, batch.pdm_poses, scene, max_bytes=max_bytes)
    progress = (rows["raw_progress"] * product(rows, MULTIPLICATIVE[batch.version])).tolist()
    zero = np.zeros((len(contexts), len(FILTERED)), dtype=np.bool_)
    driven = [i for i, c in enumerate(contexts) if len(c.human_poses)]
    if batch.version == "v2" and driven:
        scene = torch.tensor(driven, device=batch.device)
        longest = max(len(contexts[i].human_poses) for i in driven)
        # A shorter one is held at its end by the interpolation, so repeating its last pose changes nothing.
        poses = np.stack(
            [np.pad(p := contexts[i].human_poses, ((0, longest - len(p)), (0, 0)), mode="edge") for i in driven]
        )
        references = reference_poses(
            torch.from_numpy(poses).to(batch.device), batch.timestamp_us[scene], HUMAN_INTERVAL_S
        )
        rows, _ = rollout(batch, references, scene, max_bytes=max_bytes)
        zero[driven] = torch.stack([rows[name] == 0 for name in FILTERED], dim=1).cpu().numpy()
    return [replace(c, pdm_progress=p, human_zero=z) for c, p, z in zip(contexts, progress, zero, strict=True)]
