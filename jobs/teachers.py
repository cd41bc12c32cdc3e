"""`python -m jobs.teachers CONFIG [key=value ...]`: logs in, committed shards of teacher features out.

Plans, writes down what will be made, gives the shards to Ray workers, and finalises the dataset. Run the command again
after any interruption: it does what has no commit record. Exit code: 0 when planned = written + quarantined and no
more than `max_quarantined` was quarantined; 1 when not; 2 when the config cannot be; 143 after SIGTERM.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from cluster import preemption, preflight
from cluster.driver import StoppedError, drive
from cluster.hopeless import Hopeless
from cluster.preemption import Preemption
from cluster.session import joining, refuse_silent, session, worker_count
from cluster.timings import Timings
from jobs import config as job_config
from jobs import forecast
from jobs.progress import bar, lines
from jobs.recipe import TeachersConfig
from pipeline.sources import registry as sources
from pipeline.sources.base import Source
from pipeline.stores.lease import Lease, hold
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes, ground
from pipeline.writing import run as runs
from pipeline.writing.device import refuse_absent
from pipeline.writing.samples import SamplesColumn
from pipeline.writing.task import ShardReceipt
from reports.tables import bytes_text, table
from reports.throughput import Throughput
from shards_schema import layout
from shards_schema.errors import IncompleteError
from shards_schema.manifests import ColumnManifest
from teachers.base import Teacher, column_manifest
from teachers.registry import build_teacher


class Progress:
    """The bar while the job runs, and the sums for the closing table."""

    def __init__(self, shards: int, done: int, workers: int) -> None:
        self.workers = workers
        self._bar = bar(total=shards, done=done, unit="shard", needed=shards != done)
        self._first = 0.0
        self.scenes = 0
        self.decodes = 0
        self.images = 0
        self.throughput = Throughput()
        self.quarantined: Counter[str] = Counter()

    def started(self, pid: int) -> None:
        """A worker is ready."""
        self._first = self._first or time.perf_counter()

    def receipt(self, receipt: ShardReceipt) -> None:
        """A shard is committed."""
        self.scenes += max(c.planned for c in receipt.columns)
        self.decodes += receipt.decodes
        self.images += receipt.images
        self.throughput.add(receipt)
        for column in receipt.columns:
            self.quarantined.update(column.quarantined)
        self._bar.set_postfix_str(
            f"{self.scenes / self.seconds:.1f} scenes/s"
            + self.throughput.device_busy(self.seconds, self.workers)
            + (f", quarantined {self.quarantined.total()}" if self.quarantined else "")
        )
        self._bar.update()

    @property
    def seconds(self) -> float:
        """Since the first worker was ready."""
        return max(time.perf_counter() - self._first, 1e-9) if self._first else 0.0

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def main(arguments: list[str]) -> None:
    """Run the job.

    Raises:
        ConfigError: a value is impossible: here, for a teacher or for the source, before anything is written; or on a
            worker's machine, when the dataset is begun.
        ShardsError: anything else that the run or the dataset is at fault for.
    """
    began = time.perf_counter()
    config = job_config.load(TeachersConfig, arguments)
    if not joining():  # the driver of a cluster need not have what its workers have; they look for themselves
        refuse_absent(config.worker.device)
    else:
        refuse_silent(os.environ["RAY_ADDRESS"])
    config = config.model_copy(update={"teachers": batch_sizes.resolve(config.teachers, Volume(config.out))})
    columns = [build_teacher(name, fields) for name, fields in config.teachers.items()]
    # after the teachers: a synthetic source is generated here, which takes minutes
    source = sources.build(config.source, progress=lines(lambda line: print(f"data: {line}", flush=True)))
    samples = SamplesColumn(config.samples, num_history=source.num_history, num_future=source.num_future)
    versions = runs.environment()
    manifests = [
        samples.manifest(versions),
        *(column_manifest(t, (told := config.teachers[t.name]).given, versions, storage=told.storage) for t in columns),
    ]
    ground.refuse_unaccounted(Volume(config.out))
    with preemption.watch() as sigterm, hold(Volume(config.out)) as lease:
        _run(config, source, samples, columns, manifests, lease, sigterm, began)


def _run(
    config: TeachersConfig,
    source: Source,
    samples: SamplesColumn,
    columns: list[Teacher],
    manifests: list[ColumnManifest],
    lease: Lease,
    sigterm: Preemption,
    began: float,
) -> None:
    scan = forecast.prepare(config, source, Volume(config.out), samples, columns).scan
    run = runs.begin(
        source,
        config.out,
        manifests,
        plan_config=config.plan,
        with_zarr=config.zarr,
        scan=scan,
        retry=config.retry,
    )
    todo = run.todo()
    _print_plan(run, config, len(todo))
    progress = None
    if todo:
        make = functools.partial(
            preflight.worker,
            preflight.take(source, run.volume, todo[0].scenes[0]),
            source=source,
            volume=run.volume,
            teachers=[t for t in columns if t.name in run.unfinished],  # what is finished is not loaded again
            samples=samples,
            manifests=run.columns,
            dataset=run.dataset,
            shard_size=config.plan.shard_size,
            zarr=run.manifest.zarr,
            config=config.worker,
        )
        with session(config.cluster):
            workers = min(worker_count(config.cluster), len(todo))
            progress = Progress(run.plan.shards, run.plan.shards - len(todo), workers)
            hopeless = Hopeless(run.plan.samples, config.max_quarantined)
            try:
                with Timings(run.volume) as timings, sigterm.heed():
                    drive(
                        todo,
                        make,
                        config=config.cluster,
                        in_flight=config.worker.shards_in_flight,
                        on_start=progress.started,
                        on_receipt=functools.partial(_received, timings, progress, lease, hopeless),
                        stop=functools.partial(_asked, lease, sigterm),
                        tell=functools.partial(tqdm.write, file=sys.stderr),
                    )
            except StoppedError as stopped:
                progress.close()
                print(f"\n{stopped}; what was committed stays; run the same command again to go on", file=sys.stderr)
                raise SystemExit(preemption.EXIT) from None
            finally:
                progress.close()
    lease.check()
    totals = runs.close(run)
    _print_closing(config, run, columns, totals, progress, time.perf_counter() - began)
    _check_quarantine(config, run, totals)


def _asked(lease: Lease, sigterm: Preemption) -> bool:
    """Whether to stop; asked every second, and so is whether the dataset is there and still this run's."""
    lease.check()
    return sigterm.asked


def _received(timings: Timings, progress: Progress, lease: Lease, hopeless: Hopeless, receipt: ShardReceipt) -> None:
    """Count a receipt, and keep its timings beside the dataset: the only files that differ between equal runs."""
    lease.check()
    progress.receipt(receipt)
    timings.put(receipt)
    hopeless.add(receipt)


def _print_plan(run: runs.Run, config: TeachersConfig, todo: int) -> None:
    plan = run.plan
    print(
        f"planned {plan.samples} scenes in {plan.shards} shards of at most {plan.config.shard_size} "
        f"(plan {plan.digest[:12]}); columns {', '.join(run.columns)}; "
        + (_states(run) if run.done or run.again.pairs else "none is committed yet")
    )
    _print_more(run, config)
    for notice in run.notices:
        print(f"NOTE: {notice}")


def _states(run: runs.Run) -> str:
    """How far each column is: some may be finished that others wait for."""
    committed = Counter(column for _, column in run.done)

    def told(column: str) -> str:
        done, todo = committed[column], run.plan.shards - committed[column]
        parts = [f"{done} shard{'s' * (done != 1)} committed"] * bool(done) + [f"{todo} to do"]
        return f"{column}: {', '.join(parts)}"

    return "; ".join(map(told, run.columns))


def _print_more(run: runs.Run, config: TeachersConfig) -> None:
    """What this run does beyond the plan that was there."""
    if run.grown:
        print(f"the dataset grows: {run.grown} scenes were not in its plan, and get shards of their own")
    if run.again.pairs:
        codes = ", ".join(f"{n} x {code}" for code, n in sorted(run.again.samples.items()))
        print(f"made again: {len(run.again.pairs)} shards of a column, which left out {codes}")
    if unknown := sorted({*(config.retry or ())} - {*run.again.known}):
        known = ", ".join(f"{code} ({n})" for code, n in sorted(run.again.known.items()))
        print(f"retry: nothing that is committed was left out as {', '.join(unknown)}; there is {known or 'nothing'}")


def _print_closing(
    config: TeachersConfig,
    run: runs.Run,
    columns: list[Teacher],
    totals: list[runs.ColumnTotal],
    progress: Progress | None,
    seconds: float,
) -> None:
    rows = [
        [t.column, str(t.shards), str(t.planned), str(t.written), str(sum(t.quarantined.values())), bytes_text(t.size)]
        for t in totals
    ]
    print()
    print(table(["column", "shards", "planned", "written", "quarantined", "size"], rows))
    for total in totals:
        for code, count in sorted(total.quarantined.items()):
            print(f"  {total.column}: {count} x {code}")
    if codes := sorted({code for total in totals for code in total.quarantined}):
        print(f"  {_retry(codes)}")
    if progress is not None and progress.images:
        print(
            f"\n{progress.scenes} scenes in {progress.seconds:.1f} s of work ({seconds:.1f} s in all): "
            f"{progress.scenes / progress.seconds:.2f} scenes/s"
            f"{progress.throughput.device_busy(progress.seconds, progress.workers)}, "
            f"{progress.decodes / progress.images:.2f} JPEG decodes per distinct image"
        )
        print(progress.throughput.text(columns, progress.seconds, progress.workers))
    for notice in run.notices:
        print(f"NOTE: {notice}")
    print(f"\nplanned = written + quarantined for every column. The dataset is {run.volume.path('').rstrip('/')}")
    out = shlex.quote(config.out)
    print(f"  make verify OUT={out}    re-read and check every byte")
    print(f"  make inspect OUT={out}   what is in it, and a page of pictures")


def _retry(codes: Sequence[str]) -> str:
    """How what was left out is had, for a person."""
    return (
        "an image that arrives, or a log that can be read again, is looked at by the same command; what else you have "
        f'mended is made again by retry=[{",".join(codes)}] (make teachers SET="retry=[...]")'
    )


def _check_quarantine(config: TeachersConfig, run: runs.Run, totals: list[runs.ColumnTotal]) -> None:
    """Raises IncompleteError where more was left out than the config allows."""
    for total in totals:
        share = sum(total.quarantined.values()) / total.planned
        if share > config.max_quarantined:
            raise IncompleteError(
                f"column {total.column}: {share:.2%} of {total.planned} samples are quarantined, max_quarantined is "
                f"{config.max_quarantined:.2%}; the reasons stand in {run.volume.path(layout.QUARANTINE)}; "
                f"{_retry(sorted(total.quarantined))}"
            )
    logs = len({*run.plan.table["log"].unique().to_pylist(), *run.scan.unreadable})
    if len(run.scan.unreadable) > config.max_quarantined * logs:
        raise IncompleteError(
            f"{len(run.scan.unreadable)} of {logs} logs are unreadable, max_quarantined is "
            f"{config.max_quarantined:.2%}; the reasons stand in dataset.json"
        )
    bad = run.scan.skipped.get("bad_frame", 0)
    if bad > config.max_quarantined * (run.plan.samples + bad):
        raise IncompleteError(
            f"{bad} windows have no current frame that can be used, max_quarantined is {config.max_quarantined:.2%}; "
            f"the first: {run.scan.examples['bad_frame']}"
        )
    if len(run.scan.not_found) > config.max_quarantined * run.plan.samples:
        raise IncompleteError(
            f"{len(run.scan.not_found)} tokens of the filter are in no log; they stand in dataset.json (plan.not_found)"
        )


if __name__ == "__main__":
    job_config.run(main, interrupted="interrupted: what was committed stays; run the same command again to go on")
