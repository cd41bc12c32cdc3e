"""Trajectories of a file, by token and name: read with every fault named, scored, written as rows of sub-scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.stores.disk import write_text
from reports.evaluation.columns import COMFORT_BETWEEN_FRAMES, mean_text, short
from reports.evaluation.sources import ContextSource
from reports.tables import table
from scoring import ScoreResult, Version, collate, score
from scoring.aggregate import MULTIPLICATIVE_V2, epdms, product
from shards_schema.errors import MissingFileError, SampleError, StoreError
from shards_schema.inputs import documents
from trainer.reward import POSES, SCENES_AT_ONCE

Poses = list[list[float]]
Trajectories = dict[str, dict[str, Poses]]
Keys = Sequence[tuple[str, str]]
"""(token, name) of each of K trajectories."""
Groups = Mapping[str, Mapping[str, Tensor]]
"""Group -> column -> float64 [K]."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """K scored trajectories.

    Attributes:
        keys: (token, name) of each.
        result: with [K] in the place of scenes and candidates.
        frames: token -> (log, microseconds).
        synthetic: tokens where no human drove, which are follow-ups (v2).
    """

    keys: Keys
    result: ScoreResult
    frames: dict[str, tuple[str, int]]
    synthetic: frozenset[str]


def read_trajectories(path: Path) -> Trajectories:
    """The trajectories of a file, by token and name.

    Raises:
        MissingFileError: there is no such file.
        SampleError: code ``bad_trajectory``; the message names the file, the token and the trajectory.
    """
    try:
        raw = documents.parse_json(documents.read(path, documents.JSON_BYTES))
    except FileNotFoundError:
        raise MissingFileError(f"no trajectories at {path}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except documents.UnreadableError as error:
        raise SampleError("bad_trajectory", f"{path}: {error}") from error
    if not isinstance(raw, dict) or not raw:
        raise SampleError("bad_trajectory", f"{path}: expected {{token: {{name: poses}}}}, found {_kind(raw)}")
    out: Trajectories = {}
    for token, scene in raw.items():
        rows = scene.get("rows", scene) if isinstance(scene, dict) else None
        if not isinstance(rows, dict) or not rows:
            raise SampleError(
                "bad_trajectory", f"{path}: token {token}: expected {{name: poses}}, found {_kind(scene)}"
            )
        out[token] = {}
        for name, row in rows.items():
            poses = row.get("poses") if isinstance(row, dict) else row
            out[token][name] = _poses(poses, f"{path}: token {token}: trajectory {name!r}")
    return out


def _poses(value: Any, where: str) -> Poses:
    if not isinstance(value, list) or len(value) != POSES:
        raise SampleError("bad_trajectory", f"{where}: expected {POSES} poses, found {_kind(value)}")
    for k, pose in enumerate(value):
        numbers = isinstance(pose, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in pose)
        if not numbers or len(pose) != 3:
            raise SampleError("bad_trajectory", f"{where}: pose {k} is {pose!r}, expected [x, y, heading]")
        if not all(math.isfinite(v) for v in pose):
            raise SampleError("bad_trajectory", f"{where}: pose {k} is not finite: {pose!r}")
    return value


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else repr(value)[:80]


def score_all(
    source: ContextSource, wanted: Trajectories, version: Version, *, consistent: bool, device: torch.device
) -> Scored:
    """Score every trajectory, `SCENES_AT_ONCE` scenes at a time."""
    parts: list[ScoreResult] = []
    frames: dict[str, tuple[str, int]] = {}
    synthetic: set[str] = set()
    tokens = list(wanted)
    for start in range(0, len(tokens), SCENES_AT_ONCE):
        some = tokens[start : start + SCENES_AT_ONCE]
        contexts = source.contexts(some)
        frames |= {t: (source.log(t), c.timestamp_us) for t, c in zip(some, contexts, strict=True)}
        synthetic |= {t for t, c in zip(some, contexts, strict=True) if version == "v2" and not len(c.human_poses)}
        most = max(len(wanted[t]) for t in some)
        # Scenes may have fewer trajectories than others: their first one fills up, and is dropped again.
        rows = [[*wanted[t].values()] + [next(iter(wanted[t].values()))] * (most - len(wanted[t])) for t in some]
        keep = torch.tensor([[i < len(wanted[t]) for i in range(most)] for t in some])
        poses = torch.tensor(rows, dtype=torch.float64)
        parts.append(score(collate(contexts, device), poses, version=version, consistent=consistent)[keep])
    keys = [(token, name) for token in tokens for name in wanted[token]]
    result = ScoreResult.of(parts, lambda part: torch.cat(part).cpu())
    return Scored(keys, result, frames, frozenset(synthetic))


def columns(result: ScoreResult, comfort: Tensor | None) -> Groups:
    """The values of a row; v1 has one group, "", v2 has "nofilter" and "filtered"."""
    if result.version == "v1":
        return {"": {**result.subscores, "score": result.score}}

    def group(subscores: Mapping[str, Tensor], pdm_score: Tensor) -> dict[str, Tensor]:
        return {
            **subscores,
            **({} if comfort is None else {COMFORT_BETWEEN_FRAMES: comfort}),
            "multiplicative_metrics_prod": product(subscores, MULTIPLICATIVE_V2),
            "pdm_score": pdm_score,
            "score": epdms(subscores, comfort),
        }

    return {
        "nofilter": group(result.unfiltered, epdms(result.unfiltered)),
        "filtered": group(result.subscores, result.pdm_score),
    }


def means(keys: Keys, groups: Groups) -> str:
    """A table for each group: a line a trajectory name, the mean of each column over its scenes."""
    of = {name: torch.tensor([n == name for _, n in keys]) for name in dict.fromkeys(name for _, name in keys)}
    of["all"] = torch.ones(len(keys), dtype=torch.bool)
    tables = []
    for group, values in groups.items():
        head = ["name", "scenes", *map(short, values)]
        lines = [[n, str(int(k.sum())), *(mean_text(v[k], 4) for v in values.values())] for n, k in of.items()]
        tables.append(f"\n{group}\n{table(head, lines)}" if group else table(head, lines))
    return "\n".join(tables)


def write_rows(path: Path, keys: Keys, groups: Groups) -> None:
    """JSON ``{token: {name: row}}``, whole or not at all; a column without a value for a row is null."""
    out: dict[str, dict[str, Any]] = {}
    for k, (token, name) in enumerate(keys):
        row = {
            group: {column: None if math.isnan(v[k]) else float(v[k]) for column, v in values.items()}
            for group, values in groups.items()
        }
        out.setdefault(token, {})[name] = row.get("", row)
    write_text(path, json.dumps(out, indent=1, allow_nan=False))
