"""`python -m jobs.score --metric-cache DIR | --data DATASET --trajectories FILE.json --version v1|v2 [--out FILE.json]`

NAVSIM scores of trajectories outside any training, without the devkit. What they are scored against comes from the
devkit's metric caches or from the reward column of a dataset. The input is ``{token: {name: poses}}``, poses being
``[[x, y, heading] x 8]`` at 0.5 s relative to the rear axle now, or ``{token: {"rows": {name: {"poses": ...}}}}``.
Prints means by name; ``--out`` gets ``{token: {name: row}}``. A row of v1 is its sub-scores and `score`; one of v2 is
``{"nofilter": ..., "filtered": ...}``, the human filter off and on, each with its sub-scores, their product, and:

- `pdm_score`: without extended comfort, and under ``filtered`` still that of the unfiltered sub-scores, as the devkit
  exports it (``--consistent`` recomputes it);
- `score`: EPDMS from the row's own sub-scores. With ``--extended-comfort`` it includes extended comfort wherever the
  frame at most 0.55 s before, of the same log, has a trajectory of the same name. A follow-up of a two-stage split is
  no frame of its log: ``--mapping`` gives the devkit's train_test_split file, which says what is before it; without it
  a follow-up has no extended comfort.

Anything that cannot be scored stops the job with the token and the file, before a number is printed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from jobs import config as job_config
from pipeline.stores.places import outside
from reports.evaluation.accounting import read_tokens
from reports.evaluation.columns import COMFORT_BETWEEN_FRAMES, mean_text, short
from reports.evaluation.frames import comfort_between_frames
from reports.evaluation.sources import Caches, Column, ContextSource
from reports.outputs import write_text
from reports.tables import table
from scoring import Version, collate, score
from scoring.aggregate import MULTIPLICATIVE_V2, epdms, product
from shards_schema.errors import ConfigError, MissingFileError, SampleError, StoreError
from shards_schema.inputs import documents
from shards_schema.inputs.places import local_place

POSES = 8
SCENES_AT_ONCE = 64

Poses = list[list[float]]
Trajectories = dict[str, dict[str, Poses]]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """K scored trajectories, flat.

    Attributes:
        keys: (token, name) of each.
        subscores, unfiltered: name -> float64 [K].
        score, pdm_score: float64 [K].
        states: float64 [K, 41, 11].
        frames: token -> (log, microseconds).
        synthetic: tokens where no human drove, which are follow-ups (v2).
    """

    keys: list[tuple[str, str]]
    subscores: dict[str, Tensor]
    unfiltered: dict[str, Tensor]
    score: Tensor
    pdm_score: Tensor
    states: Tensor
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


def score_all(source: ContextSource, wanted: Trajectories, options: argparse.Namespace) -> Scored:
    """Score every trajectory, `SCENES_AT_ONCE` scenes at a time."""
    version, device = cast(Version, options.version), torch.device(options.device)
    keys: list[tuple[str, str]] = []
    parts: list[tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor, Tensor]] = []
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
        result = score(
            collate(contexts, device),
            torch.tensor(rows, dtype=torch.float64),
            version=version,
            consistent=options.consistent,
        )
        keys += [(t, name) for t in some for name in wanted[t]]
        parts.append(
            (
                {k: v.cpu()[keep] for k, v in result.subscores.items()},
                {k: v.cpu()[keep] for k, v in result.unfiltered.items()},
                result.score.cpu()[keep],
                result.pdm_score.cpu()[keep],
                result.states.cpu()[keep],
            )
        )
    return Scored(
        keys,
        {k: torch.cat([p[0][k] for p in parts]) for k in parts[0][0]},
        {k: torch.cat([p[1][k] for p in parts]) for k in parts[0][1]},
        torch.cat([p[2] for p in parts]),
        torch.cat([p[3] for p in parts]),
        torch.cat([p[4] for p in parts]),
        frames,
        frozenset(synthetic),
    )


def columns(scored: Scored, version: str, comfort: Tensor | None) -> dict[str, dict[str, Tensor]]:
    """The values of a row: group -> column -> [K]; v1 has one group, "", v2 has "nofilter" and "filtered"."""
    if version == "v1":
        return {"": {**scored.subscores, "score": scored.score}}
    shared = {} if comfort is None else {COMFORT_BETWEEN_FRAMES: comfort}
    unfiltered_score = epdms(scored.unfiltered)
    return {
        "nofilter": {
            **scored.unfiltered,
            **shared,
            "multiplicative_metrics_prod": product(scored.unfiltered, MULTIPLICATIVE_V2),
            "pdm_score": unfiltered_score,
            "score": epdms(scored.unfiltered, comfort),
        },
        "filtered": {
            **scored.subscores,
            **shared,
            "multiplicative_metrics_prod": product(scored.subscores, MULTIPLICATIVE_V2),
            "pdm_score": scored.pdm_score,
            "score": epdms(scored.subscores, comfort),
        },
    }


def print_means(keys: list[tuple[str, str]], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """A table for each group: a line a trajectory name, the mean of each column over its scenes."""
    names = sorted({name for _, name in keys}, key=[name for _, name in keys].index)
    of = {name: torch.tensor([n == name for _, n in keys]) for name in names}
    for group, values in groups.items():
        head = ["name", "scenes", *map(short, values)]
        lines = [[n, str(int(of[n].sum())), *(mean_text(v[of[n]], 4) for v in values.values())] for n in names]
        lines.append(["all", str(len(keys)), *(mean_text(v, 4) for v in values.values())])
        print(f"\n{group}\n{table(head, lines)}" if group else table(head, lines))


def write_rows(path: Path, keys: list[tuple[str, str]], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """JSON ``{token: {name: row}}``, whole or not at all; a column without a value for a row is null."""
    out: dict[str, dict[str, Any]] = {}
    for k, (token, name) in enumerate(keys):
        row = {group: dict(_numbers(values, k)) for group, values in groups.items()}
        out.setdefault(token, {})[name] = row.get("", row)
    write_text(path, json.dumps(out, indent=1, allow_nan=False))


def _numbers(values: Mapping[str, Tensor], k: int) -> Iterator[tuple[str, float | None]]:
    for column, tensor in values.items():
        number = float(tensor[k])
        yield column, None if math.isnan(number) else number


def _path(text: str) -> Path:
    try:
        return Path(local_place(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _out(text: str) -> Path:
    try:
        return Path(outside(_path(text)))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.score",
        description="Score trajectories as NAVSIM does (PDMS v1, EPDMS v2), without its devkit.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--metric-cache", type=_path, help="directory of the devkit's metric caches")
    source.add_argument("--data", help="dataset with a reward column (a path or URL)")
    parser.add_argument("--column", default="pdm", help="name of that column")
    parser.add_argument("--trajectories", type=_path, required=True, help="JSON: {token: {name: 8 x [x, y, heading]}}")
    parser.add_argument("--version", choices=("v1", "v2"), required=True, help="v1: PDMS; v2: EPDMS")
    parser.add_argument("--out", type=_out, help="JSON of every row")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--extended-comfort", action="store_true", help="v2: with the frame before, where it is scored too"
    )
    parser.add_argument("--mapping", type=Path, help="with it: a two-stage train_test_split file, for follow-ups")
    parser.add_argument("--consistent", action="store_true", help="v2: recompute pdm_score after the human filter")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Score a file of trajectories; returns the exit code."""
    options = parse(arguments)
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no directory {options.out.parent}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {options.device}: torch sees no CUDA device here; use cpu")
    wanted = read_trajectories(options.trajectories)
    mapped: Mapping[str, str] = {}
    if options.mapping is not None:
        stages = read_tokens(options.mapping)[1]
        if stages is None or not stages.groups:
            raise ConfigError(
                f"--mapping {options.mapping}: a two-stage train_test_split file has reactive_all_mapping"
            )
        mapped = stages.before
    version = cast(Version, options.version)
    source: ContextSource = (
        Column(options.data, version, options.column) if options.data else Caches(options.metric_cache, version)
    )
    without = {t: why for t in wanted if (why := source.missing(t)) is not None}
    if without:
        token, why = next(iter(without.items()))
        raise SampleError(
            "unknown_token",
            f"{options.trajectories}: token {token} {why} ({len(without)} of {len(wanted)} tokens have none)",
        )
    scored = score_all(source, wanted, options)
    between = options.extended_comfort and version == "v2"
    comfort = (
        comfort_between_frames(scored.keys, scored.states, scored.frames, mapped=mapped, synthetic=scored.synthetic)
        if between
        else None
    )
    if scored.synthetic:
        print(
            f"NOTE: {len(scored.synthetic)} scenes are follow-ups. Traffic is replayed from the log here; NAVSIM's "
            "two-stage run has reactive traffic, and so has jobs.evaluate (traffic=reactive)"
        )
    if comfort is not None and (lone := scored.synthetic - {*mapped, *mapped.values()}):
        print(f"NOTE: {len(lone)} follow-ups have no extended comfort: --mapping FILE says which frame is before which")
    groups = columns(scored, version, comfort)
    if options.out is not None:
        write_rows(options.out, scored.keys, groups)
    print_means(scored.keys, groups)
    return 0


if __name__ == "__main__":
    job_config.run(main)
