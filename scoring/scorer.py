"""The scorer: trajectories in, every sub-score and the score out, batched on a CPU or a CUDA device.

It agrees with the NAVSIM devkit on log-replayed (non-reactive) traffic: v1 with tag v1.1, v2 with main. One known
inconsistency of the devkit is kept unless `consistent` is set: its `pdm_score` column is computed before the human
filter and stays as it was, often 0, where the filter has set the sub-scores that made it so to 1.

Every candidate is scored against PDM-Closed alone, as if it were the only one: a score does not depend on the group,
on the CPU not by a bit (`rowwise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoring.aggregate import MULTIPLICATIVE, epdms, human_filter, pdms, product
from scoring.areas import areas
from scoring.context import ContextBatch, Version
from scoring.geometry import slices
from scoring.metrics.collision import no_at_fault_collisions
from scoring.metrics.comfort import comfort, history_comfort
from scoring.metrics.contacts import contacts
from scoring.metrics.drivable_area import drivable_area_compliance
from scoring.metrics.driving_direction import driving_direction_compliance
from scoring.metrics.lane_keeping import lane_keeping
from scoring.metrics.progress import ego_progress, raw_progress
from scoring.metrics.time_to_collision import time_to_collision_within_bound
from scoring.metrics.traffic_light import traffic_light_compliance
from scoring.reference import reference_poses
from scoring.simulator import simulate
from scoring.vehicle import STATE_SIZE, STEPS, Path
from shards_schema.errors import SampleError

DEFAULT_MAX_BYTES = 1 << 28

_ROW_BYTES = 64 * 1024
"""Dense intermediates of one row: states, outlines, areas, their temporaries; measured, rounded up."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """Scores of S scenes with C candidates each.

    Attributes:
        version: which score.
        subscores: name -> float64 [S, C], NAVSIM's column names; v2: after the human filter, where it is on.
        unfiltered: the same before the filter (v1: the same object).
        score: float64 [S, C], PDMS or EPDMS. v2: of the filtered sub-scores, with extended comfort where given.
        pdm_score: float64 [S, C], the devkit's column of that name, without extended comfort. v2: of the *unfiltered*
            sub-scores, or of the filtered ones if asked to be consistent.
        states: float64 [S, C, 41, 11], the simulated states (`vehicle`), in each scene's ego frame.
    """

    version: Version
    subscores: Mapping[str, Tensor]
    unfiltered: Mapping[str, Tensor]
    score: Tensor
    pdm_score: Tensor
    states: Tensor

    @classmethod
    def of(cls, parts: Sequence[ScoreResult], how: Callable[[list[Tensor]], Tensor]) -> ScoreResult:
        """Made tensor by tensor: `how` gets that of each part. ``torch.cat`` joins parts, scene after scene."""

        def rows(name: str) -> dict[str, Tensor]:
            return {k: how([getattr(part, name)[k] for part in parts]) for k in getattr(parts[0], name)}

        whole = (how([getattr(part, name) for part in parts]) for name in ("score", "pdm_score", "states"))
        return cls(parts[0].version, rows("subscores"), rows("unfiltered"), *whole)

    def __getitem__(self, place: Any) -> ScoreResult:
        """Some of the trajectories: ``result[:, 2:4]`` has two candidates of each scene."""
        return self.of([self], lambda part: part[0][place])

    def __repr__(self) -> str:
        scenes, candidates = self.score.shape
        return (
            f"ScoreResult({self.version}, {scenes} scenes x {candidates} candidates, mean score "
            f"{float(self.score.nanmean()):.4f}; subscores: {', '.join(self.subscores)})"
        )


def score(
    batch: ContextBatch,
    trajectories: Tensor,
    *,
    version: Version | None = None,
    interval_s: float = 0.5,
    use_human_filter: bool = True,
    extended_comfort: Tensor | None = None,
    consistent: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> ScoreResult:
    """Score candidates.

    Args:
        batch: S scenes, completed (`references.complete`).
        trajectories: float [S, C, T, 3], x, y, heading relative to the rear axle now, at interval_s, 2 interval_s, ...;
            NAVSIM has T = 8 at 0.5 s. Less than 4 s: the last pose is held. Computed in float64.
        version: what the caller means to compute, checked against the batch.
        interval_s: seconds between poses.
        use_human_filter: v2's filter by what the human did (the devkit's default in its evaluation scripts).
        extended_comfort: float64 [S, C] for v2, from `metrics.extended_comfort`; NaN where a scene has no earlier
            frame. It does not enter `pdm_score`.
        consistent: compute `pdm_score` from the filtered sub-scores, which the devkit does not.
        max_bytes: bound on the memory of the intermediates (not of the results).

    Raises:
        SampleError: code ``bad_trajectory`` (shape, or values not finite, or so large that their simulation is not),
            ``version_mismatch``, or ``incomplete_context``.
        ValueError: `interval_s` is not positive, or `extended_comfort` is given for v1 or of another shape.
    """
    check(batch, trajectories, version)
    if not interval_s > 0:
        raise ValueError(f"interval_s must be positive, got {interval_s}")
    if extended_comfort is not None and (batch.version, extended_comfort.shape) != ("v2", trajectories.shape[:2]):
        raise ValueError(
            f"extended_comfort is for v2 and [S, C] = {list(trajectories.shape[:2])}; "
            f"got {list(extended_comfort.shape)} for {batch.version}"
        )
    scenes, candidates = trajectories.shape[:2]
    flat = trajectories.to(device=batch.device, dtype=torch.float64).flatten(0, 1)
    scene = torch.arange(scenes, device=batch.device).repeat_interleave(candidates)
    references = reference_poses(flat, batch.timestamp_us[scene], interval_s)
    rows, states = rollout(batch, references, scene, max_bytes=max_bytes)
    bad = (~states.isfinite()).flatten(1).any(dim=1).nonzero()
    if len(bad):
        s, c = divmod(int(bad[0, 0]), candidates)
        raise SampleError(
            "bad_trajectory", f"scene {batch.tokens[s]}: candidate {c} cannot be driven: its simulated states overflow"
        )
    multiplier = product(rows, MULTIPLICATIVE[batch.version])
    raw = rows.pop("raw_progress")
    rows["ego_progress"] = ego_progress(raw, multiplier, batch.pdm_progress[scene], batch.version)
    unfiltered = {name: value.view(scenes, candidates) for name, value in rows.items()}
    states = states.view(scenes, candidates, STEPS, STATE_SIZE)
    if batch.version == "v1":
        total = pdms(unfiltered)
        return ScoreResult(batch.version, unfiltered, unfiltered, total, total, states)
    subscores = human_filter(unfiltered, batch.human_zero) if use_human_filter else unfiltered
    return ScoreResult(
        version=batch.version,
        subscores=subscores,
        unfiltered=unfiltered,
        score=epdms(subscores, extended_comfort),
        pdm_score=epdms(subscores if consistent else unfiltered),
        states=states,
    )


def rollout(
    batch: ContextBatch, references: Tensor, scene: Tensor, *, max_bytes: int = DEFAULT_MAX_BYTES
) -> tuple[dict[str, Tensor], Tensor]:
    """Drive along references and take every measure that needs no other row.

    Args:
        batch: scenes, which need not be completed.
        references: float64 [B, 41, 3].
        scene: int64 [B], the scene of each row.
        max_bytes: bound on the memory of the intermediates.

    Returns:
        (sub-scores [B] by name, with ``raw_progress`` in metres in the place of progress; states [B, 41, 11]).
    """
    row_bytes = _ROW_BYTES + 40 * max(batch.map_edges.box.shape[1], batch.agents_valid.shape[1])
    parts = [
        _measure(batch, references[part], scene[part], max_bytes // 2)
        for part in slices(len(scene), row_bytes, max_bytes // 2)
    ]
    rows = {name: torch.cat([p[0][name] for p in parts]) for name in parts[0][0]}
    return rows, torch.cat([p[1] for p in parts])


def _measure(
    batch: ContextBatch, references: Tensor, scene: Tensor, max_bytes: int
) -> tuple[dict[str, Tensor], Tensor]:
    states = simulate(references, batch.ego_state[scene])
    path = Path.of(states, scene)
    where = areas(batch, path, max_bytes)
    met = contacts(batch, path, max_bytes)
    rows = {
        "no_at_fault_collisions": no_at_fault_collisions(batch, path, where, met),
        "drivable_area_compliance": drivable_area_compliance(where),
        "driving_direction_compliance": driving_direction_compliance(path, where, batch.version),
        "raw_progress": raw_progress(batch, path, max_bytes),
        "time_to_collision_within_bound": time_to_collision_within_bound(batch, path, where, met),
    }
    if batch.version == "v1":
        rows["comfort"] = comfort(path)
    else:
        rows["traffic_light_compliance"] = traffic_light_compliance(batch, path, max_bytes)
        rows["lane_keeping"] = lane_keeping(batch, path, where, max_bytes)
        rows["history_comfort"] = history_comfort(batch, path)
    return rows, states


def check(batch: ContextBatch, trajectories: Tensor, version: Version | None) -> None:
    """Refuse what cannot be scored, naming the scene; never a silent 0."""
    if version is not None and version != batch.version:
        raise SampleError(
            "version_mismatch", f"asked for {version}, but the batch (scene {batch.tokens[0]} ...) is {batch.version}"
        )
    shape = list(trajectories.shape)
    if len(shape) != 4 or shape[0] != len(batch) or shape[3] != 3 or 0 in shape:
        raise SampleError("bad_trajectory", f"trajectories must be [{len(batch)}, C, T, 3], no size 0, got {shape}")
    bad = (~trajectories.isfinite()).flatten(2).any(dim=2).nonzero()
    if len(bad):
        s, c = bad[0].tolist()
        raise SampleError(
            "bad_trajectory", f"scene {batch.tokens[s]}: candidate {c} has poses that are not finite (1 of {len(bad)})"
        )
    missing = batch.pdm_progress.isnan().nonzero()
    if len(missing):
        token = batch.tokens[int(missing[0, 0])]
        raise SampleError(
            "incomplete_context", f"scene {token} has no progress of PDM-Closed: pass it through references.complete"
        )
