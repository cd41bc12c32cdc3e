"""What an evaluation leaves: scores.parquet, one csv a driver as NAVSIM's own scripts write it, a table for a terminal.

The csv has the columns and the closing average row of ``run_pdm_score`` (v1) and ``run_pdm_score_one_stage`` (v2), so
that scripts made for those read it. As there, a mean leaves out what a scene does not have (extended comfort without a
frame before); `valid` is False for an answer that did not parse, whose score is 0 and, unlike there, in the mean.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.stores.disk import replace_file, write_text
from reports.evaluation.columns import AVERAGE, SCORE_NAME, SUBSCORES, mean_text, short
from reports.evaluation.results import DriverResult, interval
from reports.tables import table
from scoring import Version


def write_parquet(path: Path, results: Sequence[DriverResult], tokens: Sequence[str], logs: Sequence[str]) -> None:
    """One row a (driver, scene): every sub-score, before the human filter too, scores, displacement, the trajectory."""
    parts = []
    for r in results:
        columns: dict[str, pa.Array] = {
            "token": pa.array(tokens, pa.string()),
            "log": pa.array(logs, pa.string()),
            "policy": pa.array([r.name] * len(tokens), pa.string()),
            "parsed": pa.array(r.parsed.tolist(), pa.bool_()),
            "score": _doubles(r.score.numpy()),
            **{k: _doubles(v.numpy()) for k, v in r.subscores.items()},
            **{f"unfiltered_{k}": _doubles(v.numpy()) for k, v in r.unfiltered.items()},
            "pdm_score": _doubles(r.pdm_score.numpy()),
            **{k: _doubles(v.numpy()) for k, v in r.displacement.items()},
            "trajectory": pa.array(r.poses.tolist(), pa.list_(pa.list_(pa.float32()))),
        }
        parts.append(pa.table(columns))
    replace_file(path, lambda draft: pq.write_table(pa.concat_tables(parts), draft))


def _doubles(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)  # NaN becomes null


def write_csv(path: Path, result: DriverResult, tokens: Sequence[str], version: Version) -> None:
    """One driver as NAVSIM's evaluation script of that version has it."""
    names = [*SUBSCORES[version], "score"]
    values = {**result.subscores, "score": result.score}
    sink = io.StringIO()
    out = csv.writer(sink, lineterminator="\n")
    out.writerow(["", "token", "valid", *names])
    valid = result.parsed.tolist()
    for i, token in enumerate(tokens):
        out.writerow([i, token, valid[i], *(csv_cell(float(values[n][i])) for n in names)])
    means = [csv_cell(float(values[n].nanmean())) for n in names]
    out.writerow([len(tokens), AVERAGE[version], all(valid), *means])
    write_text(path, sink.getvalue())


def csv_cell(value: float) -> str:
    """A number to its last bit; nothing where there is none."""
    return "" if math.isnan(value) else repr(value)


def rows(results: Sequence[DriverResult], logs: Sequence[str], version: Version) -> tuple[list[str], list[list[str]]]:
    """A head, a row a driver: score with interval, every sub-score, ADE and FDE at 4 s, answers that did not parse."""
    names = SUBSCORES[version]
    head = ["policy", SCORE_NAME[version], "95 % (logs)", *map(short, names), "ADE 4 s", "FDE 4 s", "no parse"]
    body = []
    for r in results:
        spread = interval(r.score.numpy(), logs)
        body.append(
            [
                r.name,
                f"{float(r.score.mean()):.4f}",
                f"{spread[0]:.3f}..{spread[1]:.3f}" if spread else "-",
                *(mean_text(r.subscores[n], 3) for n in names),
                *(mean_text(r.displacement[k], 2) if k in r.displacement else "-" for k in ("ade_4", "fde_4")),
                str(int((~r.parsed).sum())),
            ]
        )
    return head, body


def summary(results: Sequence[DriverResult], logs: Sequence[str], version: Version) -> str:
    """`rows` for a terminal."""
    return table(*rows(results, logs, version))


AGENT_YAML = """\
# For NAVSIM's devkit, as agent={name}: copy this file to navsim/planning/script/config/common/agent/{name}.yaml.
# See docs/evaluation.md of last-shards.
_target_: navsim_agent.agent.LastShardsAgent
_convert_: 'all'
checkpoint: {checkpoint}
# Images are made as the shards had them when the policy learnt: this size, a JPEG of this quality; null: as they are.
stored_size: {size}
stored_quality: {quality}
# null: cuda where there is one
device: null
"""


def agent_yaml(name: str, checkpoint: Path, size: Sequence[int] | None, quality: int | None) -> str:
    """The hydra config of `navsim_agent` for a checkpoint, with the image settings of the shards it learnt from."""
    return AGENT_YAML.format(
        name=name,
        checkpoint=checkpoint.resolve(),
        size=list(size) if size else "null",
        quality=quality if quality is not None else "null",
    )
