"""Ten million scenes and a thousand GPUs: driver memory and time, measured; lost GPU time, simulated.

Real: the plan, the documents on a local disk, the commit records, the index, the dispatcher, Ray's own part of the
driver. Each is measured in a process of its own: peak memory is VmHWM less what the imports hold, seconds are of CPU
(all of this is one thread's work, and the machine is shared). Made up: the scenes, and the cluster
(`benchmarks/simulator.py`). With `scale.svg=docs/scale.svg` the curves are drawn there.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks import curves
from benchmarks.measure import ROOT, temporary
from benchmarks.simulator import LOSSES, Fleet, Outcome, Simulation
from jobs.cluster import ClusterConfig, session
from jobs.dispatch import Dispatcher
from jobs.driver import drive
from jobs.report import table
from pipeline import index
from pipeline import run as runs
from pipeline.plan import Plan, PlanConfig, make_plan, refs_table
from pipeline.records import committed, read_records
from pipeline.sources.base import Scan, SceneRef
from pipeline.stores.volume import Volume
from pipeline.worker import ShardReceipt, ShardTask
from shards_schema import layout
from shards_schema.commit import CommitRecord, FileDigest, Member, Quarantined
from shards_schema.manifests import ColumnManifest
from shards_schema.records import Scene
from shards_schema.specs import TargetSpec

MEAN_LOG, LOG_SPREAD = 540, 0.7
"""Scenes of a log: nuPlan's are some minutes long, every frame at 2 Hz is a scene; the spread is assumed."""
MEMBERS = {
    "samples": ("cam_f0.jpg", "json"),
    "vggt": ("l23_grid.npy", "mean.npy", "pose.npy"),
    "cosmos": ("latent.npy", "mask.npy"),
}


class Config(BaseModel):
    """Knobs.

    Attributes:
        plan: numbers of scenes to plan from columns; `objects`: from `SceneRef` objects; `tasks`: for `Run.todo`.
        records: numbers of scenes to write the commit records of, list, and index; `close`: for `runs.close`.
        gpus: sizes of the simulated clusters; the first of them is the one of the table.
        seeds: runs of each simulated case.
        fleet: the cluster.
        svg: where the picture goes; None draws none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    objects: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    tasks: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    records: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    close: tuple[int, ...] = (10_000, 100_000)
    gpus: tuple[int, ...] = (1000, 300, 3000)
    seeds: int = 1
    fleet: Fleet = Fleet()
    svg: str | None = None


def run(config: Config) -> None:
    with temporary() as root:
        counts = root / "counts.json"
        measured = {
            "plan": {n: _child("plan", scenes=n, counts=str(counts)) for n in sorted(config.plan)},
            "objects": {n: _child("objects", scenes=n) for n in config.objects},
            "tasks": {n: _child("tasks", scenes=n, root=str(root / f"tasks{n}")) for n in config.tasks},
            "resume": {},
            "index": {},
            "close": {},
        }
        for n in config.records:
            out = str(root / f"dataset{n}")
            _child("write", scenes=n, root=out)
            measured["resume"][n] = _child("resume", scenes=n, root=out)
            measured["index"][n] = _child("index", scenes=n, root=out)
            if n in config.close:
                measured["close"][n] = _child("close", scenes=n, root=out)
        _print_driver(measured)
        _print_rates(_child("rates", scenes=config.fleet.gpus))
        scenes = sorted(json.loads(counts.read_text()), reverse=True)
    outcomes = _simulate(config, scenes)
    if config.svg:
        Path(config.svg).write_text(curves.svg(_panels(measured, outcomes, config)))


# scenes that look like nuPlan's


def scene_refs(scenes: int, seed: int = 0) -> Iterator[SceneRef]:
    """`scenes` scenes of logs with lognormal lengths, one scene a frame at 2 Hz."""
    rng = np.random.default_rng(seed)
    made = 0
    log = 0
    while made < scenes:
        length = min(max(1, int(rng.lognormal(np.log(MEAN_LOG) - LOG_SPREAD**2 / 2, LOG_SPREAD))), scenes - made)
        name = f"2021.05.12.22.00.38_veh-{log % 40:02d}_{log:05d}_{log + length:05d}"
        tokens = rng.bytes(8 * length).hex()
        for i in range(length):
            yield SceneRef(name, 1_620_000_000_000_000 + 500_000 * i, tokens[16 * i : 16 * i + 16], i)
        made += length
        log += 1


@dataclass(frozen=True)
class ListSource:
    """A source that has scenes and nothing in them."""

    count: int
    synthetic: bool = True
    num_history: int = 4
    num_future: int = 8

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {"kind": "list", "scenes": self.count}

    def scan(self, *, processes: int = 1) -> Scan:
        """See `Source`."""
        return Scan(tuple(scene_refs(self.count)))

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | Any]:
        """See `Source`; never asked."""
        raise NotImplementedError


def _manifests() -> list[ColumnManifest]:
    return [
        ColumnManifest(
            column=column,
            targets=tuple(
                TargetSpec(name=m[:-4], dims=("c",), shape=(8,), dtype="float32", unit="1", meaning="nothing")
                for m in members
                if m.endswith(".npy")
            ),
            provenance={},
            random_weights=True,
            config={},
            environment={},
        )
        for column, members in MEMBERS.items()
    ]


# what is measured, each in a process of its own


def measure_plan(scenes: int, counts: str) -> dict[str, float]:
    """The plan from columns, `plan.parquet` written and read."""
    refs = refs_table(scene_refs(scenes))
    result = {"refs_mb": refs.nbytes / 1e6}
    plan, result["plan_s"] = _timed(lambda: make_plan(refs, PlanConfig()))
    result["plan_peak_mb"] = _peak()
    data, result["write_s"] = _timed(plan.to_parquet)
    result |= {"parquet_mb": len(data) / 1e6, "shards": plan.shards, "used": scenes / (plan.shards * 256)}
    Path(counts).write_text(json.dumps(plan.counts()))
    digest = plan.digest
    del plan
    again, result["read_s"] = _timed(lambda: Plan.from_parquet(data, PlanConfig(), "plan.parquet"))
    assert again.digest == digest
    return result


def measure_objects(scenes: int) -> dict[str, float]:
    """The plan from `SceneRef` objects, as `Scan` holds them."""
    refs = tuple(scene_refs(scenes))
    result = {"refs_mb": _status("VmRSS") - _IDLE}
    result["plan_s"] = _timed(lambda: make_plan(refs, PlanConfig()))[1]
    return result


def measure_tasks(scenes: int, root: str) -> dict[str, float]:
    """`begin` of a new dataset, and all tasks at once as `Run.todo` makes them."""
    run, seconds = _timed(lambda: runs.begin(ListSource(scenes), root, _manifests(), plan_config=PlanConfig()))
    before = _status("VmRSS")
    tasks, todo = _timed(run.todo)
    assert len(tasks) == run.plan.shards
    return {"begin_s": seconds, "todo_s": todo, "tasks_mb": _status("VmRSS") - before}


def measure_write(scenes: int, root: str) -> dict[str, float]:
    """Not a measurement: a dataset of commit records, and empty files in the place of the tars."""
    run = runs.begin(ListSource(scenes), root, _manifests(), plan_config=PlanConfig())
    size = 0
    for shard in range(run.plan.shards):
        planned = run.plan.shard(shard).scenes
        for column, members in MEMBERS.items():
            bad = 1 if shard % 50 == 7 else 0
            good = planned[bad:]
            record = CommitRecord(
                column=column,
                shard=shard,
                dataset=run.dataset,
                fingerprint=run.columns[column].fingerprint,
                planned=len(planned),
                quarantined=tuple(Quarantined(p.ref.token, p.row, "image_truncated", "cut") for p in planned[:bad]),
                files={layout.tar(column, shard): FileDigest(0, "0" * 64)},
                tokens=tuple(p.ref.token for p in good),
                rows=tuple(p.row for p in good),
                members={m: _places(m, [p.row for p in good]) for m in members},
            ).to_bytes()
            size += len(record)
            Path(root, layout.record(column, shard)).write_bytes(record)  # without fsync: its time is not asked
            Path(root, layout.tar(column, shard)).touch()
    return {"records_mb": size / 1e6}


def _places(member: str, rows: Sequence[int]) -> tuple[Member, ...]:
    """Members of one size; the checksums, of their names, are as little alike as real ones."""
    checksums = (zlib.crc32(f"{row}.{member}".encode()) for row in rows)
    return tuple(Member(803_000 * i + 512, 802_944, checksum) for i, checksum in enumerate(checksums))


def measure_resume(scenes: int, root: str) -> dict[str, float]:
    """`begin` where everything is committed, and the listing in it alone."""
    volume = Volume(root)
    _, listing = _timed(lambda: [len(committed(volume, column)) for column in MEMBERS])
    source = ListSource(scenes)
    _, scan = _timed(source.scan)
    run, begin = _timed(lambda: runs.begin(source, root, _manifests(), plan_config=PlanConfig()))
    assert len(run.done) == run.plan.shards * len(MEMBERS)
    return {"list_s": listing, "begin_s": begin - scan, "files": 2 * len(run.done)}


def measure_index(scenes: int, root: str) -> dict[str, float]:
    """Every record read, checked and indexed, one by one."""
    volume = Volume(root)
    plan = Plan.from_parquet(volume.read(layout.PLAN), PlanConfig(), "plan.parquet")

    def records() -> Iterator[CommitRecord]:
        for column in sorted(MEMBERS):
            yield from read_records(volume, column, range(plan.shards))

    def read() -> int:
        return sum(1 for _ in records())

    count, reading = _timed(read)
    _, both = _timed(lambda: index.write(volume, records(), plan))
    size = volume.size(layout.INDEX)
    return {"records": count, "read_s": reading, "build_s": both - reading, "index_mb": size / 1e6}


def measure_close(scenes: int, root: str) -> dict[str, float]:
    """`runs.close` as it stands."""
    run = runs.begin(ListSource(scenes), root, _manifests(), plan_config=PlanConfig())
    return {"close_s": _timed(lambda: runs.close(run))[1]}


@dataclass
class NoWorker:
    """Takes tasks, does nothing."""

    seconds: float = 0.0
    made: int = field(default=0)

    def load(self) -> None:
        """See `ShardWorker`."""

    def process(self, task: ShardTask) -> ShardReceipt:
        """See `ShardWorker`."""
        time.sleep(self.seconds)
        return ShardReceipt(
            shard=task.shard, columns=(), decodes=0, images=0, seconds=self.seconds, host="here", device="none"
        )


def measure_rates(scenes: int) -> dict[str, float]:
    """Decisions: the dispatcher alone with `scenes` seats, and the driver on a real Ray without work."""
    tasks, seats = 50_000, scenes
    rng = random.Random(0)

    def alone() -> None:
        dispatch = Dispatcher(tasks, seats, in_flight=2, max_attempts=3)
        running: list[tuple[int, int]] = []
        for seat in range(seats):
            dispatch.loaded(seat)
        while not dispatch.finished:
            running += dispatch.assign(0.0)
            place = rng.randrange(len(running))
            running[place], running[-1] = running[-1], running[place]
            dispatch.completed(*running.pop(), 1.0)

    result = {"dispatcher alone, ms each": _timed(alone)[1] / tasks * 1e3}
    plan = make_plan(scene_refs(50_000), PlanConfig())
    todo = [ShardTask(s, plan.shard(s).scenes, tuple(MEMBERS)) for s in range(plan.shards)]
    with session(ClusterConfig(cpus=2)):
        for name, in_flight, count in (("4", 2, 2000), ("2000", 1000, 6000)):
            first: list[tuple[float, float]] = []

            def start(pid: int, first: list[tuple[float, float]] = first) -> None:
                first.append((time.perf_counter(), time.process_time()))

            drive(
                [todo[i % len(todo)] for i in range(count)],
                NoWorker,  # type: ignore[arg-type]
                config=ClusterConfig(workers=2, cpus=2),
                in_flight=in_flight,
                on_start=start,
                on_receipt=lambda receipt: None,
            )
            wall, cpu = first[-1]
            result[f"{name} pending, a second"] = count / (time.perf_counter() - wall)
            result[f"{name} pending, CPU ms each"] = (time.process_time() - cpu) / count * 1e3
    return result


# children


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU seconds of this process."""
    began = time.process_time()
    result = action()
    return result, time.process_time() - began


def _status(key: str) -> float:
    """A line of /proc/self/status, in MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def _peak() -> float:
    return _status("VmHWM") - _IDLE


_IDLE = 0.0
"""MB after the imports."""


def _child(what: str, **asked: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", what, json.dumps(asked)]
    answer = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{what} {asked} failed:\n{answer.stderr}")
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    print(f"  {what} {asked['scenes']:,}: {', '.join(f'{k} {v:.4g}' for k, v in result.items())}", flush=True)
    return result


# the tables


def _print_driver(measured: dict[str, dict[int, dict[str, float]]]) -> None:
    def rows(what: str, keys: Sequence[str]) -> list[list[str]]:
        return [[f"{n:,}", *(f"{m[k]:.3g}" for k in keys), f"{m['peak_mb']:.0f}"] for n, m in measured[what].items()]

    for what, keys in (
        ("plan", ("shards", "plan_s", "write_s", "read_s", "parquet_mb", "refs_mb")),
        ("objects", ("refs_mb", "plan_s")),
        ("tasks", ("begin_s", "todo_s", "tasks_mb")),
        ("resume", ("files", "list_s", "begin_s")),
        ("index", ("records", "read_s", "build_s", "index_mb")),
        ("close", ("close_s",)),
    ):
        print(f"\n{what}: {(globals()[f'measure_{what}'].__doc__ or '').splitlines()[0]}\n")
        print(table(["scenes", *keys, "peak_mb"], rows(what, keys)))


def _print_rates(rates: dict[str, float]) -> None:
    print("\nthe driver: " + "; ".join(f"{k} {v:.3g}" for k, v in rates.items() if k != "peak_mb"))


def _cases(fleet: Fleet) -> dict[str, Fleet]:
    """Name -> cluster."""
    return {
        "calm": fleet.calm(),
        "faults": fleet,
        "faults, copies": fleet.model_copy(update={"speculate": 1.5}),
        "ten times": fleet.model_copy(update={"gpu_mtbf": fleet.gpu_mtbf / 10, "node_mtbf": fleet.node_mtbf / 10}),
        "spot": fleet.model_copy(update={"preempt_mtbf": 4.0}),
        "spot, copies": fleet.model_copy(update={"preempt_mtbf": 4.0, "speculate": 1.5}),
    }


def _simulate(config: Config, scenes: Sequence[int]) -> dict[tuple[str, int], list[Outcome]]:
    outcomes: dict[tuple[str, int], list[Outcome]] = {}
    for name, fleet in _cases(config.fleet).items():
        for gpus in config.gpus:
            one = [fleet.model_copy(update={"gpus": gpus, "seed": seed}) for seed in range(config.seeds)]
            outcomes[name, gpus] = [Simulation(scenes, f).run() for f in one]
    gpus = config.gpus[0]
    print(f"\n{sum(scenes):,} scenes in {len(scenes):,} shards; {gpus} GPUs; mean of {config.seeds} seeds\n")
    head = ["case", "efficiency", "hours", "tail s", *LOSSES, "wrongly failed", "driver busy"]
    print(table(head, [_row(name, outcomes[name, gpus]) for name in _cases(config.fleet)]))
    print("\n" + "; ".join(f"{key}: {what}" for key, what in LOSSES.items()) + "; in % of all GPU time")
    print("\nefficiency by GPUs\n")
    sizes = sorted(config.gpus)
    rows = [
        [name, *(f"{mean(o.efficiency for o in outcomes[name, g]):.4f}" for g in sizes)]
        for name in _cases(config.fleet)
    ]
    print(table(["case", *map(str, sizes)], rows))
    plain = {"longest first": list(scenes), "as planned": random.Random(0).sample(list(scenes), len(scenes))}
    for name, order in plain.items():
        got = [
            Simulation(order, config.fleet.model_copy(update={"gpus": gpus, "seed": s})).run()
            for s in range(config.seeds)
        ]
        print(f"{name}: efficiency {mean(o.efficiency for o in got):.4f}, tail {mean(o.tail for o in got):.0f} s")
    return outcomes


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


def _panels(
    measured: dict[str, dict[int, dict[str, float]]], outcomes: dict[tuple[str, int], list[Outcome]], config: Config
) -> list[curves.Lines | curves.Bars]:
    def line(what: str, key: str) -> list[tuple[float, float]]:
        return [(n, max(m[key], 1e-3)) for n, m in measured[what].items()]

    gpus = config.gpus[0]
    losses = {}
    for name in _cases(config.fleet):
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
            title=f"Efficiency, {max(config.plan) / 1e6:g} million scenes",
            x="GPUs",
            y="useful GPU time / all, %",
            log="x",
            series={
                name: [(g, 100 * mean(o.efficiency for o in outcomes[name, g])) for g in sorted(config.gpus)]
                for name in _cases(config.fleet)
            },
        ),
        curves.Bars(title=f"Where {gpus} GPUs lose time", x="% of all GPU time", rows=losses),
    ]


if __name__ == "__main__":
    _IDLE = _status("VmRSS")
    answer = globals()[f"measure_{sys.argv[1]}"](**json.loads(sys.argv[2]))
    answer["peak_mb"] = _peak()
    print(json.dumps(answer))
