"""`python -m jobs.teachers CONFIG [key=value ...]`: logs in, committed shards of teacher features out.

Plans, writes down what will be made, gives the shards to Ray workers, and finalises the dataset. Run the command again
after any interruption: it does what has no commit record. Exit code: 0 when planned = written + quarantined and no
more than `max_quarantined` was quarantined; 1 when not; 2 when the config cannot be; 143 after SIGTERM.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from contextlib import closing

from tqdm import tqdm

from cluster import metrics, preemption, preflight
from cluster.driver import StoppedError, drive
from cluster.hopeless import Hopeless
from cluster.preemption import Preemption
from cluster.session import joining, refuse_silent, session, worker_count
from cluster.timings import Timings
from jobs import config as job_config
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
from reports import forecast
from reports import run as told
from reports.log import Lines, logged
from reports.progress import lines
from shards_schema.manifests import ColumnManifest
from teachers.base import Teacher, column_manifest
from teachers.registry import build_teacher, pinned


def main(arguments: list[str]) -> None:
    """Run the job.

    Raises:
        ConfigError: a value is impossible: here, for a teacher or for the source, before anything is written; or on a
            worker's machine, when the dataset is begun.
        ShardsError: anything else that the run or the dataset is at fault for.
    """
    began = time.perf_counter()
    config = job_config.load(TeachersConfig, arguments)
    with logged(config.log, config.out) as log:
        _prepare(config, log, began)


def _prepare(config: TeachersConfig, log: Lines, began: float) -> None:
    if not joining():  # the driver of a cluster need not have what its workers have; they look for themselves
        refuse_absent(config.worker.device)
    else:
        refuse_silent(os.environ["RAY_ADDRESS"])
    sized = batch_sizes.resolve(config.teachers, Volume(config.out))
    config = config.model_copy(update={"teachers": pinned(sized, functools.partial(print, flush=True))})
    columns = [build_teacher(name, fields) for name, fields in config.teachers.items()]
    # after the teachers: a synthetic source is generated here, which takes minutes
    source = sources.build(config.source, progress=lines(lambda line: print(f"data: {line}", flush=True)))
    samples = SamplesColumn(config.samples, num_history=source.num_history, num_future=source.num_future)
    versions = runs.environment()
    manifests = [samples.manifest(versions)]
    for teacher in columns:
        column = config.teachers[teacher.name]
        manifests.append(column_manifest(teacher, column.given, versions, storage=column.storage))
    ground.refuse_unaccounted(Volume(config.out))
    with preemption.watch() as sigterm, hold(Volume(config.out)) as lease:
        _run(config, source, samples, columns, manifests, lease, sigterm, log, began)


def _run(
    config: TeachersConfig,
    source: Source,
    samples: SamplesColumn,
    columns: list[Teacher],
    manifests: list[ColumnManifest],
    lease: Lease,
    sigterm: Preemption,
    log: Lines,
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
    told.print_plan(run, config, len(todo))
    work, log.figures = None, lambda: {"shards_left": len(todo)}
    if todo:
        unfinished = [t for t in columns if t.name in run.unfinished]  # what is finished is not loaded again
        make = preflight.maker(run, config, source, todo[0].scenes[0], teachers=unfinished, samples=samples)
        with session(config.cluster):
            workers, done = min(worker_count(config.cluster), len(todo)), run.plan.shards - len(todo)
            show = metrics.Metrics(config.out).show
            work = told.Work(run.plan.shards, done, workers, with_bar=config.log == "text", show=show)
            log.figures = work.figures
            hopeless = Hopeless(run.plan.samples, config.max_quarantined)
            try:
                with closing(work), Timings(run.volume) as timings, sigterm.heed():
                    drive(
                        todo,
                        make,
                        config=config.cluster,
                        in_flight=config.worker.shards_in_flight,
                        on_start=work.started,
                        on_receipt=functools.partial(_received, timings, work, lease, hopeless),
                        on_look=work.look,
                        stop=functools.partial(_asked, lease, sigterm),
                        tell=functools.partial(tqdm.write, file=sys.stderr),
                    )
            except StoppedError as stopped:
                print(f"\n{stopped}; what was committed stays; run the same command again to go on", file=sys.stderr)
                raise SystemExit(preemption.EXIT) from None
    lease.check()
    totals = runs.close(run)
    told.print_closing(config, run, columns, totals, work, time.perf_counter() - began)
    told.refuse_left_out(config, run, totals)


def _asked(lease: Lease, sigterm: Preemption) -> bool:
    """Whether to stop; asked every second, and so is whether the dataset is there and still this run's."""
    lease.check()
    return sigterm.asked


def _received(timings: Timings, work: told.Work, lease: Lease, hopeless: Hopeless, receipt: ShardReceipt) -> None:
    """Count a receipt, and keep its timings beside the dataset: the only files that differ between equal runs."""
    lease.check()
    work.add(receipt)
    timings.put(receipt)
    hopeless.add(receipt)


if __name__ == "__main__":
    job_config.run(main, interrupted="interrupted: what was committed stays; run the same command again to go on")
