"""NAVSIM's PDM score as batched tensor operations: arrays in, sub-scores out. Knows no dataset and no policy.

`context.RewardContext` is one scene (`columns` reads it from a dataset's arrays), `references.complete` adds what its
scores are relative to, `context.collate` makes a batch, `scorer.score` scores. docs/reward.md names the
sub-scores, and each file of `metrics` has its formula.
"""

from scoring.columns import context_from_targets, context_names
from scoring.context import ContextBatch, Layer, Polygons, RewardContext, Version, collate
from scoring.metrics.extended_comfort import extended_comfort
from scoring.references import complete
from scoring.scorer import ScoreResult, score

__all__ = [
    "ContextBatch",
    "Layer",
    "Polygons",
    "RewardContext",
    "ScoreResult",
    "Version",
    "collate",
    "complete",
    "context_from_targets",
    "context_names",
    "extended_comfort",
    "score",
]
