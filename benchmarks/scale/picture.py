"""The curves of docs/results/scale.svg: the driver's memory and time, and the cluster's efficiency and losses."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.scale.cluster import Outcomes, cases
from benchmarks.scale.driver import Measured
from benchmarks.simulator import LOSSES, Fleet


def picture(
    measured: dict[str, dict[int, Measured]], outcomes: Outcomes, fleet: Fleet, sizes: Sequence[int], scenes: int
) -> str:
    """An SVG of what `driver` found by number of scenes, and of what `cluster` did with `scenes` of them."""

    def line(what: str, key: str) -> list[tuple[float, float]]:
        return [(n, max(m[key], 1e-3)) for n, m in measured[what].items()]

    figure = Figure(figsize=(11, 9), layout="constrained")
    memory, seconds, efficiency, losses = figure.subplots(2, 2).flat
    series = {
        "plan from columns": line("plan", "plan_peak_mb"),
        "from objects (Scan)": line("objects", "peak_mb"),
        "tasks (Run.todo)": line("tasks", "tasks_mb"),
        "index in parts": line("index", "peak_mb"),
        "runs.close": line("close", "peak_mb"),
    }
    _lines(memory, "Driver memory", "scenes", "peak above idle, MB", series)
    series = {
        "plan": line("plan", "plan_s"),
        "read plan.parquet": line("plan", "read_s"),
        "list records": line("resume", "list_s"),
        "begin, resumed": line("resume", "begin_s"),
        "read records": line("index", "read_s"),
        "build index": line("index", "build_s"),
    }
    _lines(seconds, "Driver time", "scenes", "CPU seconds", series)
    by_size = {
        name: [(float(g), 100 * mean(o.efficiency for o in outcomes[name, g])) for g in sorted(sizes)]
        for name in cases(fleet)
    }
    title = f"Efficiency, {scenes / 1e6:g} million scenes"
    _lines(efficiency, title, "GPUs", "useful GPU time / all, %", by_size, log_y=False)
    efficiency.set_xticks(sorted(sizes), [f"{g:,}" for g in sorted(sizes)], minor=False)
    efficiency.minorticks_off()
    names, left = list(cases(fleet)), np.zeros(len(cases(fleet)))
    for colour, (kind, what) in enumerate(LOSSES.items()):
        runs = [outcomes[name, sizes[0]] for name in names]
        share = [100 * sum(o.seconds[kind] for o in run) / sum(sum(o.seconds.values()) for o in run) for run in runs]
        losses.barh(names, share, left=left, label=what, color=f"C{colour}")
        left += share
    losses.invert_yaxis()
    losses.set(title=f"Where {sizes[0]:,} GPUs lose time", xlabel="% of all GPU time")
    losses.legend(fontsize="small")
    return _svg(figure)


def _lines(
    axes: Any, title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]], *, log_y: bool = True
) -> None:
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log" if log_y else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _svg(figure: Figure) -> str:
    """Letters are text, and the same figure gives the same bytes."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
