"""Ten million scenes and a thousand GPUs: driver memory and time, measured; lost GPU time, simulated.

Real: the plan, the documents on a local disk, the commit records, the index, the dispatcher, Ray's own part of the
driver. Each is measured in a process of its own: peak memory is VmHWM less what the imports hold, seconds are of CPU
(all of this is one thread's work, and the machine is shared). Made up: the scenes, and the cluster
(`benchmarks/simulator.py`).

    scenes    made up: scenes and columns
    driver    the driver's work, measured
    cluster   the cluster, simulated
"""

from __future__ import annotations

import json

from benchmarks.measure import temporary
from benchmarks.scale.cluster import simulate
from benchmarks.scale.driver import Measured, apart, measure_rates, print_tables
from benchmarks.simulator import Fleet
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
