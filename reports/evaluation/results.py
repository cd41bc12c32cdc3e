"""Scores of drivers on scenes, gathered scene chunk by scene chunk, and the numbers made of them.

An answer that does not parse has score 0 and no sub-scores, as a car without a plan; it is counted, and it is in the
mean of the score. Extended comfort (v2) is added where the frame before was scored too, see `frames`.

Legend: S scenes of a chunk, C candidates, n all scenes, T = 8 poses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reports.evaluation.columns import COMFORT_BETWEEN_FRAMES, SUBSCORES
from reports.evaluation.drivers import Answers
from reports.evaluation.frames import Frames, comfort_between_frames
from scoring import ScoreResult, Version
from scoring.aggregate import epdms
from trainer.evaluate import displacement


@dataclass(frozen=True, slots=True, eq=False)
class DriverResult:
    """One driver on n scenes.

    Attributes:
        name: of the driver.
        poses: float32 [n, T, 3], the answer (of several, the best by score).
        parsed: bool [n].
        subscores: name -> float64 [n], NAVSIM's names and order; NaN: not parsed, or (EC) without a frame before.
        unfiltered: the same before the human filter (v2; empty for v1).
        score: float64 [n], PDMS or EPDMS with extended comfort where there is a frame before.
        pdm_score: float64 [n], the devkit's column of that name (v2; v1: `score`).
        displacement: ``ade_1`` .. ``fde_4`` -> float64 [n], metres; NaN where not parsed.
        states: float64 [n, 41, 11], simulated.
    """

    name: str
    poses: Tensor
    parsed: Tensor
    subscores: dict[str, Tensor]
    unfiltered: dict[str, Tensor]
    score: Tensor
    pdm_score: Tensor
    displacement: dict[str, Tensor]
    states: Tensor


@dataclass(slots=True, eq=False)
class Gathering:
    """Takes a driver's chunks in order; `finish` makes the result."""

    name: str
    version: Version
    _parts: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, answers: Answers, scored: ScoreResult, future: Tensor) -> None:
        """A chunk: answers of S scenes, their scores [S, C], and what was driven, float32 [S, T, 3]."""
        ranked = scored.score.cpu().masked_fill(~answers.parsed, -1.0)
        best = ranked.argmax(dim=1)
        rows = torch.arange(len(best))
        poses, parsed = answers.poses[rows, best], answers.parsed[rows, best]

        def chosen(values: Tensor) -> Tensor:
            return values.cpu()[rows, best].masked_fill(~parsed, math.nan)

        part = {"poses": poses, "parsed": parsed, "states": scored.states.cpu()[rows, best]}
        part |= {f"sub/{k}": chosen(v) for k, v in scored.subscores.items()}
        part |= {f"unfiltered/{k}": chosen(v) for k, v in scored.unfiltered.items()} if self.version == "v2" else {}
        part |= {"score": chosen(scored.score).nan_to_num(0.0), "pdm_score": chosen(scored.pdm_score).nan_to_num(0.0)}
        steps = min(poses.shape[1], future.shape[1])
        apart = displacement(poses[:, :steps].double(), future[:, :steps].double())
        part |= {f"displacement/{k}": v.masked_fill(~parsed, math.nan) for k, v in apart.items()}
        self._parts.append(part)

    def finish(
        self, tokens: Sequence[str], frames: Frames, mapped: Mapping[str, str], synthetic: Set[str]
    ) -> DriverResult:
        """The whole, with extended comfort; see `frames.comfort_between_frames`."""
        every = {k: torch.cat([p[k] for p in self._parts]) for k in self._parts[0]}

        def group(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}/"): v for k, v in every.items() if k.startswith(f"{name}/")}

        subscores, score = group("sub"), every["score"]
        if self.version == "v2":
            parsed = every["parsed"]
            some = [(t, self.name) for t, ok in zip(tokens, parsed.tolist(), strict=True) if ok]
            between = torch.full((len(tokens),), math.nan, dtype=torch.float64)
            between[parsed] = comfort_between_frames(
                some, every["states"][parsed], frames, mapped=mapped, synthetic=synthetic
            )
            subscores[COMFORT_BETWEEN_FRAMES] = between
            score = epdms(subscores, between).nan_to_num(0.0)
        return DriverResult(
            name=self.name,
            poses=every["poses"],
            parsed=every["parsed"],
            subscores={name: subscores[name] for name in SUBSCORES[self.version]},
            unfiltered=group("unfiltered"),
            score=score,
            pdm_score=every["pdm_score"],
            displacement=group("displacement"),
            states=every["states"],
        )


def interval(values: NDArray[np.float64], logs: Sequence[str]) -> tuple[float, float] | None:
    """95 % interval of a mean, by drawing whole logs again (scenes of a log are no independent samples).

    None for fewer than three logs, which say nothing of their spread.
    """
    names, place = np.unique(np.asarray(logs), return_inverse=True)
    if len(names) < 3:
        return None
    total, count = np.bincount(place, weights=values), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(names), (2000, len(names)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
