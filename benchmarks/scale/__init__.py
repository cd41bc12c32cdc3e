"""Ten million scenes and a thousand GPUs: driver memory and time, measured; lost GPU time, simulated.

Real: the plan, the documents on a local disk, the commit records, the index, the dispatcher, Ray's own part of the
driver. Each is measured in a process of its own: peak memory is VmHWM less what the imports hold, seconds are of CPU
(all of this is one thread's work, and the machine is shared). Made up: the scenes, and the cluster
(`benchmarks/simulator.py`).

    scenes    made up: scenes and columns
    driver    the driver's work, measured
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from statistics import mean

from benchmarks.measure import temporary
from benchmarks.scale.driver import Measured, apart, measure_rates, print_tables
from benchmarks.simulator import LOSSES, Fleet, Outcome, Simulation
from reports.tables import table
from shards_schema.inputs.models import StrictModel


class Config(StrictModel):
    """Knobs."""

    plan: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    """Numbers of scenes to plan from columns."""
    objects: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    """Numbers of scenes to plan from `SceneRef` objects."""
    records: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of scenes to write the commit records of, list, and index."""
    close: tuple[int, ...] = (10_000, 100_000)
    """Numbers of scenes for `runs.close`."""
    gpus: tuple[int, ...] = (1000, 300, 3000)
    """Sizes of the simulated clusters; the first of them is the one of the table."""
    seeds: int = 1
    """Runs of each simulated case."""
    fleet: Fleet = Fleet()
    """The cluster."""


def run(config: Config) -> None:
    """Measure, simulate, print the tables."""
    with temporary() as root:
        counts = root / "counts.json"
        measured: dict[str, dict[int, Measured]] = {
            "plan": {n: apart("plan", scenes=n, counts=str(counts)) for n in sorted(config.plan)},
            "objects": {n: apart("objects", scenes=n) for n in config.objects},
            "resume": {},
            "index": {},
            "close": {},
        }
        for n in config.records:
            out = str(root / f"dataset{n}")
            apart("write", scenes=n, root=out)
            measured["resume"][n] = apart("resume", scenes=n, root=out)
            measured["index"][n] = apart("index", scenes=n, root=out)
            if n in config.close:
                measured["close"][n] = apart("close", scenes=n, root=out)
        print_tables(measured)
        rates = measure_rates(config.fleet.gpus)
        print("\nthe driver: " + "; ".join(f"{k} {v:.3g}" for k, v in rates.items()))
        scenes = sorted(json.loads(counts.read_text()), reverse=True)
    simulate(config.fleet, config.gpus, config.seeds, scenes)


def cases(fleet: Fleet) -> dict[str, Fleet]:
    """Name -> cluster."""
    return {
        "calm": fleet.calm(),
        "faults": fleet,
        "ten times": fleet.model_copy(update={"gpu_mtbf": fleet.gpu_mtbf / 10, "node_mtbf": fleet.node_mtbf / 10}),
        "spot": fleet.model_copy(update={"preempt_mtbf": 4.0}),
    }


def simulate(fleet: Fleet, sizes: Sequence[int], seeds: int, scenes: Sequence[int]) -> None:
    """All cases with clusters of `sizes` GPUs, the first of which is the one of the table; printed."""
    outcomes: dict[tuple[str, int], list[Outcome]] = {}
    for name, case in cases(fleet).items():
        for gpus in sizes:
            one = [case.model_copy(update={"gpus": gpus, "seed": seed}) for seed in range(seeds)]
            outcomes[name, gpus] = [Simulation(scenes, f).run() for f in one]
    gpus = sizes[0]
    print(f"\n{sum(scenes):,} scenes in {len(scenes):,} shards; {gpus} GPUs; mean of {seeds} seeds\n")
    head = ["case", "efficiency", "hours", "tail s", *LOSSES, "wrongly failed", "driver busy"]
    print(table(head, [_row(name, outcomes[name, gpus]) for name in cases(fleet)]))
    print("\n" + "; ".join(f"{key}: {what}" for key, what in LOSSES.items()) + "; in % of all GPU time")
    print("\nefficiency by GPUs\n")
    by_size = sorted(sizes)
    rows = [[name, *(f"{mean(o.efficiency for o in outcomes[name, g]):.4f}" for g in by_size)] for name in cases(fleet)]
    print(table(["case", *map(str, by_size)], rows))
    plain = {"longest first": list(scenes), "as planned": random.Random(0).sample(list(scenes), len(scenes))}
    for name, order in plain.items():
        got = [Simulation(order, fleet.model_copy(update={"gpus": gpus, "seed": s})).run() for s in range(seeds)]
        print(f"{name}: efficiency {mean(o.efficiency for o in got):.4f}, tail {mean(o.tail for o in got):.0f} s")


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    total = sum(sum(o.seconds.values()) for o in outcomes)
    return [
        name,
        f"{mean(o.efficiency for o in outcomes):.4f}",
        f"{mean(o.makespan for o in outcomes) / 3600:.2f}",
        f"{mean(o.tail for o in outcomes):.0f}",
        *(f"{100 * sum(o.seconds[kind] for o in outcomes) / total:.2f}" for kind in LOSSES),
        f"{sum(o.wrongly_failed for o in outcomes)}",
        f"{100 * mean(o.driver_busy for o in outcomes):.1f} %",
    ]
