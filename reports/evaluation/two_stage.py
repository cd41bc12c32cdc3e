"""NAVSIM's two-stage score: each scene's plan, and what became of it where the plan leads.

A split such as navhard lists mappings: a first-stage scene and the frame 0.5 s before it, and the pairs of follow-ups
that begin 4 s later. The score of a frame's group is that of its first stage times the mean of its follow-ups, weighed
by how near each begins to the end of the plan; a mapping's score is the mean of its two groups, the split's that of its
mappings. Extended comfort is of the two frames of a pair, and counts for both.

There is no score of a part: a mapping with a scene that was not scored leaves the whole without one.

Told as a table for a terminal, and as the csv of NAVSIM's ``run_pdm_score`` (main), with its columns and its three
closing rows. Where traffic is replayed, the numbers are not the leaderboard's, which come with reactive traffic; the
table, and the name of the file (``<driver>.two_stage.log_replay.csv``, else ``.reactive.csv``), say so.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.sources.scene_filter import SceneFilter
from pipeline.stores.disk import write_text
from reports.evaluation.columns import SUBSCORES, short
from reports.evaluation.report import csv_cell
from reports.evaluation.results import DriverResult
from reports.tables import table
from scoring.aggregate import second_stage_weights, two_stage
from shards_schema.errors import ConfigError
from shards_schema.poses import to_global

NAMES = SUBSCORES["v2"]


@dataclass(frozen=True, slots=True)
class Group:
    """One frame of a mapping: its first-stage scene, and the follow-ups that begin 4 s later."""

    first: str
    second: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TwoStage:
    """A two-stage split.

    Attributes:
        groups: two a mapping: now, and 0.5 s before.
        before: token -> token of the frame before, of both stages.
        first, second: tokens of the stages, each once, in the order of the filter.
        file: where it stands, for messages.
    """

    groups: tuple[tuple[Group, Group], ...]
    before: Mapping[str, str]
    first: tuple[str, ...]
    second: tuple[str, ...]
    file: Path

    @classmethod
    def of(cls, wanted: SceneFilter, file: Path) -> TwoStage | None:
        """Of a filter that wants synthetic scenes; None of another.

        Raises:
            ConfigError: its mapping has another form than ``[now, before, [[now, before], ...]]`` each, or holds no
                follow-up.
        """
        if not wanted.second_stage:
            return None
        groups: list[tuple[Group, Group]] = []
        before: dict[str, str] = {}
        for entry in wanted.reactive_all_mapping or ():
            now, earlier, pairs = _entry(entry, file)
            groups.append((Group(now, tuple(a for a, _ in pairs)), Group(earlier, tuple(b for _, b in pairs))))
            before |= {now: earlier, **dict(pairs)}
        second = dict.fromkeys((*_mapped(groups), *sorted(wanted.second_stage)))
        first = dict.fromkeys((*(g.first for pair in groups for g in pair), *(wanted.tokens or ())))
        return cls(tuple(groups), before, tuple(first), tuple(second), file)

    def lacks(self, scored: Sequence[str], of: str) -> str | None:
        """Why scenes `scored` give no aggregate, in a sentence; None where they do.

        Args:
            scored: tokens.
            of: the dataset, for messages.
        """
        if not self.groups:
            return (
                f"no two-stage score: {self.file} has no reactive_all_mapping; give the train_test_split file of that "
                "name, which says what follows what"
            )
        there = frozenset(scored)
        mapped = [token for pair in self.groups for group in pair for token in (group.first, *group.second)]
        missing = [token for token in mapped if token not in there]
        if not missing:
            return None
        second = frozenset(self.second)
        if not second & there:
            return (
                f"no two-stage score: the second stage is missing: {of} has none of its {len(second)} synthetic "
                "scenes. Fetch the folder with synthetic_scene_pickles, put it below source.root under the name of the "
                "filter's file, and write the dataset again (docs/sources.md)"
            )
        return (
            f"no two-stage score: {len(missing)} of {len(mapped)} scenes of the mappings are not scored, e.g. "
            f"{missing[0]}"
        )


def _entry(entry: Any, file: Path) -> tuple[str, str, list[tuple[str, str]]]:
    match entry:
        case [str(now), str(earlier), [*pairs]] if pairs and all(
            isinstance(p, list | tuple) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs
        ):
            return now, earlier, [(a, b) for a, b in pairs]
    raise ConfigError(
        f"split {file}: reactive_all_mapping should list [token, token before, [[follow-up, the one before], ...]], "
        f"got {entry!r:.120}"
    )


def _mapped(groups: Sequence[tuple[Group, Group]]) -> Iterator[str]:
    for now, earlier in groups:
        for pair in zip(now.second, earlier.second, strict=True):
            yield from pair


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What a driver's two stages come to; NaN where a scene has no value.

    Attributes:
        score: of the split. first, second: mean over groups of each stage alone.
        subscores_first, subscores_second: NAVSIM's name -> the same of each sub-score.
        weights: follow-up -> its weight in its group.
    """

    score: float
    first: float
    second: float
    subscores_first: Mapping[str, float]
    subscores_second: Mapping[str, float]
    weights: Mapping[str, float]


def aggregate(split: TwoStage, result: DriverResult, tokens: Sequence[str], poses: Tensor) -> Aggregate:
    """The two-stage score of a driver.

    Args:
        split: every token of whose groups is among `tokens`.
        result: of n scenes, version v2, extended comfort by `TwoStage.before`.
        tokens: n.
        poses: float64 [n, 3], global poses of the rear axle now.
    """
    place = {token: k for k, token in enumerate(tokens)}
    columns = torch.stack([result.score, *(result.subscores[name] for name in NAMES)], dim=1)  # [n, 1 + NAMES]
    firsts, seconds, groups = [], [], []
    weights: dict[str, float] = {}
    for pair in split.groups:
        both = []
        for group in pair:
            k, follow = place[group.first], [place[token] for token in group.second]
            end = to_global(result.poses[k, -1].double().numpy(), poses[k].numpy())
            weight = second_stage_weights(torch.from_numpy(end[:2]), poses[follow, :2])
            weights |= zip(group.second, weight.tolist(), strict=True)
            firsts.append(columns[k])
            seconds.append((weight[:, None] * columns[follow]).sum(dim=0))
            both.append(two_stage(result.score[k], result.score[follow], weight))
        groups.append(torch.stack(both).mean())
    first, second = torch.stack(firsts).nanmean(dim=0).tolist(), torch.stack(seconds).nanmean(dim=0).tolist()
    return Aggregate(
        score=float(torch.stack(groups).nanmean()) if groups else math.nan,
        first=first[0],
        second=second[0],
        subscores_first=dict(zip(NAMES, first[1:], strict=True)),
        subscores_second=dict(zip(NAMES, second[1:], strict=True)),
        weights=weights,
    )


def traffic(reactive: bool) -> str:
    """What a reader of the numbers must know of the traffic."""
    if reactive:
        return "traffic: reactive (IDM), as in NAVSIM's two-stage run"
    return (
        "traffic: LOG REPLAY. NAVSIM's two-stage run has reactive traffic (IDM), which changes NC, TTC, EP, what the "
        "human filter forgives and so the score, in both stages: these are not the leaderboard's numbers. A column "
        "that the teacher pdm wrote with `reactive: true` is scored with it"
    )


def summary(found: Mapping[str, Aggregate]) -> str:
    """Three lines a driver: each stage's mean score and sub-scores, and the score of both."""
    rows = []
    for name, a in found.items():
        rows.append([name, "stage 1", _number(a.first), *(_number(a.subscores_first[n]) for n in NAMES)])
        rows.append(["", "stage 2", _number(a.second), *(_number(a.subscores_second[n]) for n in NAMES)])
        rows.append(["", "two stages", _number(a.score), *("" for _ in NAMES)])
    return table(["policy", "", "EPDMS", *map(short, NAMES)], rows)


def write_csv(path: Path, split: TwoStage, result: DriverResult, found: Aggregate, tokens: Sequence[str]) -> None:
    """One driver as NAVSIM's two-stage script writes it."""
    sink = io.StringIO()
    out = csv.writer(sink, lineterminator="\n")
    out.writerow(
        ["", "token", "valid", *(f"{n}_stage_one" for n in NAMES), *(f"{n}_stage_two" for n in NAMES), "score"]
    )
    second, none = frozenset(split.second), [""] * len(NAMES)
    for i, token in enumerate(tokens):
        own = [csv_cell(float(result.subscores[n][i])) for n in NAMES]
        stages = [*none, *own] if token in second else [*own, *none]
        out.writerow([i, token, bool(result.parsed[i]), *stages, csv_cell(float(result.score[i]))])
    ones = [csv_cell(found.subscores_first[n]) for n in NAMES]
    twos = [csv_cell(found.subscores_second[n]) for n in NAMES]
    valid, count = bool(result.parsed.all()), len(tokens)
    out.writerow([count, "extended_pdm_score_stage_one", valid, *ones, *none, csv_cell(found.first)])
    out.writerow([count + 1, "extended_pdm_score_stage_two", valid, *none, *twos, csv_cell(found.second)])
    out.writerow([count + 2, "extended_pdm_score_combined", valid, *ones, *twos, csv_cell(found.score)])
    write_text(path, sink.getvalue())


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
