"""A run, before and after the work: what is planned, what is left to do, and whether the accounting closes.

    begin()   scan -> plan -> dataset.json, plan.parquet, column.json, zarr.json   (written once, else compared; what
                              follows from others and is gone is made anew, see `ground`; what the source has
                              more since then: plan.1.json, plan.1.parquet, see `pipeline.stores.generations`)
              todo = plan minus commit records, and what is made again (`pipeline.writing.again`)
    close()   read every commit record -> planned = written + quarantined -> index.parquet, quarantine.parquet,
              and each column's statistics.parquet

Resuming is `begin` again: there is no state but the files of the dataset.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, overload

import pyarrow as pa

from pipeline.sources.base import Scan, Source
from pipeline.stores import generations, index, statistics, view, zarr
from pipeline.stores.column import zarr_specs
from pipeline.stores.records import columns_of, committed, read_manifest, read_records
from pipeline.stores.volume import Volume
from pipeline.stores.withdrawn import settle
from pipeline.writing import ground, growth, witness
from pipeline.writing.again import Again, choose
from pipeline.writing.plan import make_plan, refs_table
from pipeline.writing.task import ShardTask
from shards_schema import layout
from shards_schema.codecs import seal_of
from shards_schema.commit import CommitRecord
from shards_schema.errors import DatasetError, IncompleteError, MismatchError
from shards_schema.manifests import ColumnManifest, DatasetManifest, ZarrMode
from shards_schema.plan import Plan, PlanConfig
from shards_schema.specs import refuse_reserved
from shards_schema.statistics import measured

SYNTHETIC_NOTICE = "The frames are generated (synthetic): this is not driving data."
RANDOM_NOTICE = "Made with RANDOM WEIGHTS: {}. These targets carry no knowledge; do not train on them."
TOWN_NOTICE = "Made with small networks trained on the generated town: {}. They know this town and nothing else."


def _of_town(manifest: ColumnManifest) -> bool:
    weights = manifest.provenance.get("weights")
    return isinstance(weights, Mapping) and "town" in weights


_OF_WEIGHTS: Mapping[str, Callable[[ColumnManifest], bool]] = {
    RANDOM_NOTICE: lambda manifest: manifest.random_weights,
    TOWN_NOTICE: _of_town,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that has begun.

    Attributes:
        volume: the dataset.
        plan: every shard.
        scan: what the source had under its filter.
        manifest: `dataset.json` as it stands on disk.
        dataset: its seal.
        columns: column name -> manifest, in the order of work.
        done: (shard, column) pairs that were committed before and stay.
        again: those that were committed and are made again, and why (`pipeline.writing.again`).
        grown: scenes that the plan had not before, in a dataset that was begun before.
    """

    volume: Volume
    plan: Plan
    scan: Scan
    manifest: DatasetManifest
    dataset: str
    columns: Mapping[str, ColumnManifest]
    done: frozenset[tuple[int, str]]
    again: Again = field(default_factory=Again)
    grown: int = 0

    @property
    def unfinished(self) -> frozenset[str]:
        """Columns that some shard still lacks."""
        done = Counter(column for _, column in self.done)
        return frozenset(column for column in self.columns if done[column] < self.plan.shards)

    @property
    def notices(self) -> tuple[str, ...]:
        """What every report says: those of `dataset.json`, and of columns that were begun after it was written."""
        said = list(self.manifest.notices)
        for manifest in self.columns.values():
            for notice, holds in _OF_WEIGHTS.items():
                head = notice.partition(":")[0]
                if holds(manifest) and not any(n.startswith(head) and manifest.column in n for n in said):
                    said.append(notice.format(manifest.column))
        return tuple(said)

    def todo(self) -> Sequence[ShardTask]:
        """What has no commit record, the shards with most scenes first (so that none is left for the end).

        Each task is made when it is asked for: all of them at once are 370 bytes a scene.
        """
        counts = self.plan.counts()
        order = sorted(range(self.plan.shards), key=lambda shard: (-counts[shard], shard))
        return _Todo(self, [s for s in order if any((s, c) not in self.done for c in self.columns)])


class _Todo(Sequence[ShardTask]):
    """The tasks of some shards."""

    def __init__(self, run: Run, shards: Sequence[int]) -> None:
        self._run, self._shards = run, shards

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, at: int) -> ShardTask: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ShardTask]: ...
    def __getitem__(self, at: int | slice) -> ShardTask | Sequence[ShardTask]:
        if isinstance(at, slice):
            return _Todo(self._run, self._shards[at])
        run, shard = self._run, self._shards[at]
        missing = tuple(c for c in run.columns if (shard, c) not in run.done)
        again = tuple(c for c in missing if (shard, c) in run.again.pairs)
        scenes = run.plan.shard(shard).scenes
        lost = [(run.scan.missing.get(column, {}), planned.ref.token) for column in missing for planned in scenes]
        absent = {(token, *image) for images, token in lost for image in images.get(token, ())}
        return ShardTask(shard, scenes, missing, again, tuple(sorted(absent)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnTotal:
    """One column of a whole dataset: planned = written + quarantined, or the run has failed."""

    column: str
    shards: int
    planned: int
    written: int
    quarantined: Mapping[str, int]
    size: int


def begin(
    source: Source,
    url: str,
    columns: Sequence[ColumnManifest],
    *,
    plan_config: PlanConfig,
    with_zarr: ZarrMode = True,
    processes: int = 1,
    scan: Scan | None = None,
    retry: Sequence[str] | None = None,
) -> Run:
    """Plan, and write or compare the documents of the dataset at `url`.

    Args:
        source: the logs.
        url: of the dataset.
        columns: to make.
        plan_config: how scenes become shards.
        with_zarr: whether targets stand in `targets.zarr` too, or are referred to by `targets.view`.
        processes: that read logs.
        scan: of the source, where it has been made already.
        retry: codes of quarantined samples that are made again, see `pipeline.writing.again.choose`.

    Raises:
        ConfigError: the source has no scenes, a column has a name that is reserved, or a shard's Zarr chunks would be
            larger than memory.
        MismatchError: the dataset there was planned otherwise (but for scenes that the source has more by now: they
            become a generation of their own, see `growth`), a column was made otherwise, or the folder is
            somebody else's, or images were exchanged since shards of their logs were committed.
        DatasetError: a document there is damaged.
    """
    for column in columns if with_zarr else ():
        zarr.refuse_chunks(column.column, zarr_specs(column, with_zarr), plan_config.shard_size)
        if with_zarr == "view":
            view.refuse(column)
    volume = Volume(url)
    ground.refuse_unaccounted(volume)
    for column in columns:
        if column.column != layout.SAMPLES:
            refuse_reserved(column.column, column.targets)
    scan = scan or source.scan(processes=processes)
    scan.refuse_nothing()
    refs = scan.refs if isinstance(scan.refs, pa.Table) else refs_table(scan.refs)
    plan = make_plan(refs, plan_config)
    manifest = DatasetManifest(
        source=source.describe(),
        plan={
            "digest": plan.digest,
            "samples": plan.samples,
            "shards": plan.shards,
            "shard_size": plan_config.shard_size,
            "seed": plan_config.seed,
            **({"require": list(plan_config.require)} if plan_config.require else {}),
            "unreadable_logs": scan.unreadable,
            "not_found": list(scan.not_found),
            "skipped": scan.skipped,
        },
        zarr=with_zarr,
        synthetic=source.synthetic,
        notices=_notices(source, columns),
        code_version=metadata.version("last-shards"),
    )
    volume.make()
    if volume.exists(layout.DATASET):
        known = generations.read(volume, *read_manifest(volume))
        plan = growth.go_on(volume, known, manifest, plan, refs, scan)
        manifest, dataset = known.manifest, known.seal
        grown = plan.samples - known.now.plan["samples"]
        if plan.shards > manifest.plan["shards"] and manifest.zarr:
            growth.reshape(volume, plan, manifest.zarr)
    else:
        dataset, grown = _write(volume, manifest, plan), 0
    volume.sweep()
    _renew(volume, manifest, dataset, plan)
    begun = [_begin_column(volume, dataset, column, plan, with_zarr) for column in columns]
    done = frozenset((shard, c.column) for c in columns for shard in committed(volume, c.column))
    tried = choose(volume, scan, done, retry, complete=len(done) >= plan.shards * len(columns))
    done -= tried.pairs
    if len(done) < plan.shards * len(columns):
        witness.refuse_exchanged(volume, {shard for shard, _ in done})
    return Run(
        volume=volume,
        plan=plan,
        scan=scan,
        manifest=manifest,
        dataset=dataset,
        columns={c.column: c for c in begun},
        done=done,
        again=tried,
        grown=grown,
    )


def environment() -> dict[str, str]:
    """Versions that a column was begun with; told in `column.json`, compared by nobody."""
    packages = {"last-shards", "torch", "diffusers", "transformers", "numpy", "simplejpeg", "zarr"}
    installed = {d.name: d.version for d in metadata.distributions() if d.name in packages}
    return {"python": platform.python_version(), **dict(sorted(installed.items()))}


def close(run: Run) -> list[ColumnTotal]:
    """Read back every commit record, check the accounting, write the indices and the statistics.

    Raises:
        StoreError: the dataset is gone.
        MismatchError: another one is in its place.
        DatasetError: a document or a record is damaged, or belongs to another dataset or column.
        IncompleteError: a shard has no record, or the counts do not close.
    """
    _stand(run)
    totals: dict[str, ColumnTotal] = {}
    index.write(run.volume, _records(run, totals), run.plan)
    for column, manifest in run.columns.items():
        if measured(manifest.targets):
            statistics.write(run.volume, column, range(run.plan.shards))
    if run.manifest.zarr == "view":
        view.write(run.volume, run.plan)
    settle(run.volume)
    run.volume.sweep()  # a worker that outlived its driver may have left a file under way
    return [totals[column] for column in run.columns]


def _records(run: Run, totals: dict[str, ColumnTotal]) -> Iterator[CommitRecord]:
    """Every record, by column and shard, checked and counted as it passes: only a few are in memory.

    Args:
        run: begun.
        totals: is given each column's sums.
    """
    counts = run.plan.counts()
    for column in sorted({*columns_of(run.volume), *run.columns}):  # a store may list late what was just written
        shards = committed(run.volume, column)
        manifest = run.columns.get(column)
        if manifest is None:  # a column of an earlier run stays in the index
            yield from read_records(run.volume, column, shards)
            continue
        unlisted = sorted(set(range(run.plan.shards)) - set(shards))
        if missing := [shard for shard in unlisted if not run.volume.exists(layout.record(column, shard))]:
            raise IncompleteError(
                f"column {column}: {len(missing)} of {run.plan.shards} shards have no commit record "
                f"(first: {missing[:5]}); run the same command again to finish"
            )
        numbers, quarantined = Counter[str](), Counter[str]()
        for record in read_records(run.volume, column, range(run.plan.shards)):
            _check_record(record, run.dataset, manifest, counts[record.shard])
            numbers.update(shards=1, planned=record.planned, written=record.written, size=record.size)
            quarantined.update(q.code for q in record.quarantined)
            yield record
        totals[column] = ColumnTotal(column=column, quarantined=dict(quarantined), **numbers)
        if totals[column].planned != run.plan.samples:
            raise IncompleteError(
                f"column {column}: records plan {totals[column].planned}, the plan {run.plan.samples}"
            )


def _check_record(record: CommitRecord, dataset: str, manifest: ColumnManifest, planned: int) -> None:
    where = f"commit record of column {record.column}, shard {record.shard}"
    if record.dataset != dataset or record.fingerprint != manifest.fingerprint:
        raise MismatchError(
            f"{where}: written for dataset {record.dataset[:12]}, fingerprint {record.fingerprint[:12]}; here they are "
            f"{dataset[:12]}, {manifest.fingerprint[:12]}: it belongs to another run"
        )
    if record.planned != planned:
        raise DatasetError(f"{where}: planned {record.planned}, the plan has {planned}")


def _notices(source: Source, columns: Sequence[ColumnManifest]) -> tuple[str, ...]:
    notices = [SYNTHETIC_NOTICE] if source.synthetic else []
    for notice, holds in _OF_WEIGHTS.items():
        if of_them := [c.column for c in columns if holds(c)]:
            notices.append(notice.format(", ".join(of_them)))
    return tuple(notices)


def _write(volume: Volume, manifest: DatasetManifest, plan: Plan) -> str:
    """The seal of `dataset.json`, which is written first, and only once: from then on the folder is a dataset's."""
    data = manifest.to_bytes()
    for column in columns_of(volume):  # of a dataset whose dataset.json is lost
        path = layout.column_json(column)
        ground.vouch(volume, seal_of(data), ColumnManifest.from_bytes(volume.read(path), volume.path(path)))
    volume.put(layout.DATASET, data)
    return seal_of(data)


def _begin_column(
    volume: Volume, dataset: str, column: ColumnManifest, plan: Plan, with_zarr: ZarrMode
) -> ColumnManifest:
    """The manifest that stands on disk: this one, or what an earlier run has written of the same column."""
    path = layout.column_json(column.column)
    there = volume.exists(path)
    if there:
        recorded = ColumnManifest.from_bytes(volume.read(path), volume.path(path))
        column.refuse_other(recorded, volume.path(path))
        column = recorded
    else:
        ground.vouch(volume, dataset, column)
    ground.renew(volume, _zarr_column(column, plan, with_zarr))
    if not there:
        volume.put(path, column.to_bytes())
    return column


def _stand(run: Run) -> None:
    """What `begin` wrote is there, and as it was; what follows from it is made anew where somebody has removed it."""
    ground.refuse_other(run.volume, run.dataset, *run.columns.values())
    _renew(run.volume, run.manifest, run.dataset, run.plan)
    for column in run.columns.values():
        ground.renew(run.volume, _zarr_column(column, run.plan, run.manifest.zarr))


def _renew(volume: Volume, manifest: DatasetManifest, dataset: str, plan: Plan) -> None:
    """What follows from `dataset.json` and the source. The tables of a plan that grew do not: they are only read."""
    if plan.digest == manifest.plan["digest"]:
        ground.renew_plan(volume, plan)
    else:
        generations.read(volume, manifest, dataset).plan(volume)
    if manifest.zarr:
        attributes: dict[str, Any] = {"format": "last-shards", "synthetic": manifest.synthetic}
        ground.renew(volume, zarr.root_document(attributes | {"notices": list(manifest.notices)}))


def _zarr_column(column: ColumnManifest, plan: Plan, with_zarr: ZarrMode) -> dict[str, bytes]:
    if not with_zarr:
        return {}
    return zarr.array_documents(column.column, zarr_specs(column, with_zarr), plan.shards, plan.config.shard_size)
