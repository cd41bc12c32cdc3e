"""The cluster, simulated (`benchmarks/simulator.py`): the cases, and what of all GPU time each of them loses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

from benchmarks.simulator import LOSSES, Fleet, Outcome, Simulation
from reports.tables import table


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
