"""Small datasets on disk, planned and written by the real worker in about a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.sources.base import Source
from pipeline.writing import run as runs
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema.manifests import ZarrMode
from shards_schema.plan import PlanConfig
from teachers.base import Teacher, column_manifest


def begin(
    source: Source,
    out: Path,
    teachers: Sequence[Teacher],
    *,
    shard_size: int = 6,
    size: tuple[int, int] | None = None,
    zarr: ZarrMode = True,
    storage: Mapping[str, Mapping[str, str]] | None = None,
    compute_processes: int = 0,
    history: int = 0,
) -> tuple[runs.Run, ShardWorker]:
    """A run at `out` that is begun, and a loaded worker for it.

    `size` is that of the stored images, `history` how many of frames before now; `storage` by column.
    """
    config = SamplesConfig(size=size, history=history)
    samples = SamplesColumn(config, num_history=source.num_history, num_future=source.num_future)
    manifests = [samples.manifest({}), *(column_manifest(t, storage=(storage or {}).get(t.name, {})) for t in teachers)]
    run = runs.begin(source, str(out), manifests, plan_config=PlanConfig(shard_size=shard_size), with_zarr=zarr)
    worker = ShardWorker(
        source=source,
        volume=run.volume,
        teachers=teachers,
        samples=samples,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=shard_size,
        zarr=zarr,
        config=WorkerConfig(device="cpu", decode_threads=2, torch_threads=1, compute_processes=compute_processes),
    )
    worker.load()
    return run, worker


def commit(
    source: Source,
    out: Path,
    teachers: Sequence[Teacher],
    *,
    shard_size: int = 6,
    size: tuple[int, int] | None = None,
    zarr: ZarrMode = True,
    storage: Mapping[str, Mapping[str, str]] | None = None,
    shards: int | None = None,
    history: int = 0,
) -> runs.Run:
    """Commit `source` with `teachers` at `out`; where `shards` is given, only so many, and the run is not closed."""
    run, worker = begin(
        source, out, teachers, shard_size=shard_size, size=size, zarr=zarr, storage=storage, history=history
    )
    for task in run.todo()[:shards]:
        worker.process(task)
    worker.close()
    if shards is None:
        runs.close(run)
    return run


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Another value for one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
