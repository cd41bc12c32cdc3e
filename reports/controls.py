"""The controls of a recipe beside it, over seeds: a table, and what the paired differences allow to be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from reports.intervals import over
from reports.tables import table

METRICS = {
    "ade_1": "ADE 1 s",
    "ade_4": "ADE 4 s",
    "fde_4": "FDE 4 s",
    "answer": "CE",
    "cosine_wm": "cos wm",
    "cosine_geo": "cos geo",
}
DECIDES, METRIC_IF_SHORT = "ade_4", "ade_1"
"""What the verdicts are about; the second where answers are shorter than 4 s."""

Rows = Mapping[int, Mapping[str, float]]
"""Seed -> metric -> value."""


def text(results: Mapping[str, Rows], recipe: str) -> str:
    """Mean and standard deviation of each row, and a verdict on each but `recipe`, which they are held against."""
    shown = [k for k in METRICS if any(k in row for row in results[recipe].values())]
    body = [
        [name, *(spread([row[k] for row in rows.values() if k in row]) for k in shown)]
        for name, rows in results.items()
    ]
    decides = DECIDES if DECIDES in shown else METRIC_IF_SHORT
    said = [f"- {verdict(name, results[recipe], rows, decides)}" for name, rows in results.items() if name != recipe]
    head = table(["held out", *(METRICS[k] for k in shown)], body)
    return "\n".join([head, f"\nmean +- standard deviation over seeds {list(results[recipe])}; metres\n", *said])


def spread(values: Sequence[float]) -> str:
    """``0.123 +- 0.004``, or ``-``."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    return f"{mean(values):.3f} +- {stdev(values):.3f}"


def verdict(name: str, recipe: Rows, control: Rows, metric: str) -> str:
    """What the paired differences (control - recipe, by seed) allow to be said."""
    differences = [
        control[s][metric] - recipe[s][metric]
        for s in control
        if metric in control[s] and metric in recipe.get(s, {})  # absent where no answer parsed
    ]
    change = over(differences)
    if change is None or len(differences) < 2:
        return f"{name}: {len(differences)} pairs, nothing can be said"
    told = f"{name}: {METRICS.get(metric, metric)} {change.text(1.0, 3)} m, 95 % of {len(differences)} seeds"
    if not change.excludes_zero:
        return f"{told}: no difference can be told"
    return f"{told}: {'worse' if change.middle > 0 else 'BETTER'} than the recipe"
