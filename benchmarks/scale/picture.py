"""The curves of docs/results/scale.svg: the driver's memory and time, and the cluster's efficiency and losses."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks import curves
from benchmarks.scale.cluster import Outcomes, cases
from benchmarks.scale.driver import Measured
from benchmarks.simulator import LOSSES, Fleet


def panels(
    measured: dict[str, dict[int, Measured]], outcomes: Outcomes, fleet: Fleet, sizes: Sequence[int], scenes: int
) -> list[curves.Lines | curves.Bars]:
    """Of what `driver` found by number of scenes, and what `cluster` did with `scenes` of them."""

    def line(what: str, key: str) -> list[tuple[float, float]]:
        return [(n, max(m[key], 1e-3)) for n, m in measured[what].items()]

    gpus = sizes[0]
    losses = {}
    for name in cases(fleet):
        total = sum(sum(o.seconds.values()) for o in outcomes[name, gpus])
        losses[name] = {
            what: 100 * sum(o.seconds[kind] for o in outcomes[name, gpus]) / total for kind, what in LOSSES.items()
        }
    return [
        curves.Lines(
            title="Driver memory",
            x="scenes",
            y="peak above idle, MB",
            log="xy",
            series={
                "plan from columns": line("plan", "plan_peak_mb"),
                "from objects (Scan)": line("objects", "peak_mb"),
                "tasks (Run.todo)": line("tasks", "tasks_mb"),
                "index in parts": line("index", "peak_mb"),
                "runs.close": line("close", "peak_mb"),
            },
        ),
        curves.Lines(
            title="Driver time",
            x="scenes",
            y="CPU seconds",
            log="xy",
            series={
                "plan": line("plan", "plan_s"),
                "read plan.parquet": line("plan", "read_s"),
                "list records": line("resume", "list_s"),
                "begin, resumed": line("resume", "begin_s"),
                "read records": line("index", "read_s"),
                "build index": line("index", "build_s"),
            },
        ),
        curves.Lines(
            title=f"Efficiency, {scenes / 1e6:g} million scenes",
            x="GPUs",
            y="useful GPU time / all, %",
            log="x",
            series={
                name: [(g, 100 * mean(o.efficiency for o in outcomes[name, g])) for g in sorted(sizes)]
                for name in cases(fleet)
            },
        ),
        curves.Bars(title=f"Where {gpus} GPUs lose time", x="% of all GPU time", rows=losses),
    ]
