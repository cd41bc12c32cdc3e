"""The driver's own work, each piece measured in a process of its own: CPU seconds, and memory above the imports'."""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import apart as forked
from benchmarks.measure import status
from benchmarks.scale.scenes import MEMBERS, ListSource, manifests, scene_refs
from cluster.dispatch import Dispatcher
from cluster.driver import drive
from cluster.session import ClusterConfig, session
from pipeline.stores import index
from pipeline.stores.records import committed, read_records
from pipeline.stores.volume import Volume
from pipeline.writing import run as runs
from pipeline.writing.plan import make_plan, refs_table
from pipeline.writing.task import ShardReceipt, ShardTask
from reports.tables import table
from shards_schema import layout
from shards_schema.commit import CommitRecord, FileDigest, Member, Quarantined
from shards_schema.plan import Plan, PlanConfig

Measured = dict[str, float]
"""Name -> value."""


def apart(what: str, **asked: Any) -> Measured:
    """One of `MEASURES` in a process of its own, told on a line."""
    result = forked(partial(measured, what, asked))
    print(f"  {what} {asked['scenes']:,}: {', '.join(f'{k} {v:.4g}' for k, v in result.items())}", flush=True)
    return result


def measured(what: str, asked: dict[str, Any]) -> Measured:
    """One of `MEASURES` in this process, which has the imports behind it and nothing else; with its peak."""
    global _idle
    _idle = status("VmRSS")
    result = MEASURES[what](**asked)
    return result | {"peak_mb": _peak()}


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU seconds of this process."""
    began = time.process_time()
    result = action()
    return result, time.process_time() - began


def _peak() -> float:
    return status("VmHWM") - _idle


_idle = 0.0
"""MB after the imports."""


def measure_plan(scenes: int, counts: str) -> Measured:
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


def measure_objects(scenes: int) -> Measured:
    """The plan from `SceneRef` objects, as `Scan` holds them."""
    refs = tuple(scene_refs(scenes))
    result = {"refs_mb": status("VmRSS") - _idle}
    result["plan_s"] = _timed(lambda: make_plan(refs, PlanConfig()))[1]
    return result


def measure_write(scenes: int, root: str) -> Measured:
    """Not a measurement: a dataset of commit records, and empty files in the place of the tars."""
    run = runs.begin(ListSource(scenes), root, manifests(), plan_config=PlanConfig())
    size = 0
    for shard in range(run.plan.shards):
        planned = run.plan.shard(shard).scenes
        for column, members in MEMBERS.items():
            bad = 1 if shard % 50 == 7 else 0
            good = planned[bad:]
            places = _places(members, [p.row for p in good])
            record = CommitRecord(
                column=column,
                shard=shard,
                dataset=run.dataset,
                fingerprint=run.columns[column].fingerprint,
                planned=len(planned),
                quarantined=tuple(Quarantined(p.ref.token, p.row, "image_truncated", "cut") for p in planned[:bad]),
                files={layout.tar(column, shard): FileDigest(_end(places), "0" * 64)},
                tokens=tuple(p.ref.token for p in good),
                rows=tuple(p.row for p in good),
                members=places,
            ).to_bytes()
            size += len(record)
            Path(root, layout.record(column, shard)).write_bytes(record)  # without fsync: its time is not asked
            Path(root, layout.tar(column, shard)).touch()
    return {"records_mb": size / 1e6}


def _places(members: Sequence[str], rows: Sequence[int]) -> dict[str, tuple[Member, ...]]:
    """Members of one size, sample after sample as a tar has them; the checksums, of their names, are as little alike
    as real ones."""
    size, block = 802_944, 512
    stride = block + -(-size // block) * block  # its header, and its data to the next block
    return {
        m: tuple(
            Member(stride * (i * len(members) + j) + block, size, zlib.crc32(f"{row}.{m}".encode()))
            for i, row in enumerate(rows)
        )
        for j, m in enumerate(members)
    }


def _end(places: dict[str, tuple[Member, ...]]) -> int:
    """Bytes of the tar, but for the two blocks at its end."""
    return max((each[-1].offset + each[-1].size for each in places.values() if each), default=0)


def measure_resume(scenes: int, root: str) -> Measured:
    """`begin` where everything is committed, and the listing in it alone."""
    volume = Volume(root)
    _, listing = _timed(lambda: [len(committed(volume, column)) for column in MEMBERS])
    source = ListSource(scenes)
    _, scan = _timed(source.scan)
    run, begin = _timed(lambda: runs.begin(source, root, manifests(), plan_config=PlanConfig()))
    assert len(run.done) == run.plan.shards * len(MEMBERS)
    return {"list_s": listing, "begin_s": begin - scan, "files": 2 * len(run.done)}


def measure_index(scenes: int, root: str) -> Measured:
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


def measure_close(scenes: int, root: str) -> Measured:
    """`runs.close` as it stands."""
    run = runs.begin(ListSource(scenes), root, manifests(), plan_config=PlanConfig())
    return {"close_s": _timed(lambda: runs.close(run))[1]}


class NoWorker:
    """Takes tasks, does nothing; what `cluster.actor` knows of a `ShardWorker`."""

    device = "cpu"

    def load(self) -> None:
        """See `ShardWorker`."""

    def process(self, task: ShardTask) -> ShardReceipt:
        """See `ShardWorker`."""
        return ShardReceipt(shard=task.shard, columns=(), decodes=0, images=0, seconds=0.0, host="here", device="none")


def measure_rates(scenes: int) -> Measured:
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


MEASURES: dict[str, Callable[..., Measured]] = {
    "plan": measure_plan,
    "objects": measure_objects,
    "write": measure_write,
    "resume": measure_resume,
    "index": measure_index,
    "close": measure_close,
}


def print_tables(found: dict[str, dict[int, Measured]]) -> None:
    """One table a measure: what was found by number of scenes."""

    def rows(what: str, keys: Sequence[str]) -> list[list[str]]:
        return [[f"{n:,}", *(f"{m[k]:.3g}" for k in keys), f"{m['peak_mb']:.0f}"] for n, m in found[what].items()]

    for what, keys in (
        ("plan", ("shards", "plan_s", "write_s", "read_s", "parquet_mb", "refs_mb")),
        ("objects", ("refs_mb", "plan_s")),
        ("resume", ("files", "list_s", "begin_s")),
        ("index", ("records", "read_s", "build_s", "index_mb")),
        ("close", ("close_s",)),
    ):
        print(f"\n{what}: {(MEASURES[what].__doc__ or '').splitlines()[0]}\n")
        print(table(["scenes", *keys, "peak_mb"], rows(what, keys)))
