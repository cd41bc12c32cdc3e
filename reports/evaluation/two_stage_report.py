"""The two-stage score of each driver: a table for a terminal, and the csv of NAVSIM's ``run_pdm_score`` (main).

Our csv has its columns and its three closing rows. Where traffic is replayed, the numbers are not the leaderboard's,
which come with reactive traffic; the table, and the name of the file (``<driver>.two_stage.log_replay.csv``, else
``.reactive.csv``), say so.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.stores.disk import write_text
from reports.evaluation.columns import SUBSCORES, short
from reports.evaluation.report import csv_cell
from reports.evaluation.results import DriverResult
from reports.evaluation.two_stage import Aggregate, TwoStage
from reports.tables import table

NAMES = SUBSCORES["v2"]


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
