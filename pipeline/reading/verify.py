"""Re-read everything and name each fault.

From the top down, each level vouching for the next: `dataset.json` and `plan.parquet`, `column.json`, the commit
records, then size and sha256 of every file that a record names, every tar member against its checksum and its spec,
every Zarr row against the tar (`pipeline.reading.verify_shard`), the statistics against the values, and the counts
against the plan. A fault never stops the search for the next one; what cannot be read is one.

A dataset that is still being made, or whose run was interrupted, is *unfinished*, which is no fault: shards without a
commit record, whatever of their files lies there, and tables that a run writes when it ends. In what is finished, a
file that no document accounts for is a fault.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipeline.reading.verify_shard import Fault as Fault  # part of what `verify` gives
from pipeline.reading.verify_shard import ShardCheck
from pipeline.stores import generations, index, statistics, view
from pipeline.stores.column import zarr_specs
from pipeline.stores.records import committed, read_manifest
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import array_documents, root_document
from shards_schema import layout
from shards_schema.commit import CommitRecord
from shards_schema.errors import MissingFileError, ShardsError
from shards_schema.inputs import documents
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.plan import Plan
from shards_schema.statistics import measured
from shards_schema.tables import from_parquet


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` saw.

    Attributes:
        faults: empty when nothing is wrong in what is there.
        incomplete: (column, shards without a record) of columns that are still being made; not a fault.
        unfinished: what is still to be done, in sentences; empty where the dataset is finished.
    """

    columns: Mapping[str, ColumnManifest]
    planned: int
    written: Mapping[str, int]
    quarantined: Mapping[str, int]
    files: int
    size: int
    faults: tuple[Fault, ...]
    incomplete: Mapping[str, int]
    unfinished: tuple[str, ...]


def verify(url: str | os.PathLike[str], *, threads: int = 2) -> Report:
    """Check the dataset at `url` completely; reads every byte of it.

    Raises:
        DatasetError: `dataset.json`, or `plan.parquet` of a column that was begun, is missing or damaged, so that
            nothing else can be judged.
        StoreError: one of the two cannot be read.
    """
    return _Verifier(Volume(os.fspath(url)), threads).run()


class _Verifier:
    def __init__(self, volume: Volume, threads: int) -> None:
        self._volume, self._threads = volume, threads
        self._faults: list[Fault] = []
        self._known = {layout.DATASET, layout.PLAN, layout.INDEX, layout.QUARANTINE}
        self._statistics: dict[str, pa.Table] = {}
        self._unread = 0
        self._files = 0
        self._size = 0

    @cached_property
    def _dataset(self) -> tuple[DatasetManifest, str]:
        return read_manifest(self._volume)

    @cached_property
    def _plan(self) -> Plan:
        known = generations.read(self._volume, *self._dataset)
        for number in range(1, len(known.later) + 1):
            self._known |= {layout.generation(number), layout.generation_plan(number)}
        self._known.add(layout.generation_plan(len(known.later) + 1))  # of a growth that was interrupted
        return known.plan(self._volume)

    def _fault(self, path: str, what: str) -> None:
        self._faults.append(Fault(path, what))

    @cached_property
    def _shards(self) -> ShardCheck:
        manifest, seal = self._dataset
        return ShardCheck(self._volume, self._plan, seal, manifest.zarr)

    def run(self) -> Report:
        manifest, _ = self._dataset
        begun = [name for name in self._volume.folders("") if self._begun(name)]
        try:
            plan = self._plan
        except MissingFileError:
            if begun:
                raise
            self._unaccounted({layout.ZARR})  # a run that ended between its first two documents
            why = "the plan is not written, and no column is begun"
            return self._report({}, int(manifest.plan["samples"]), [], {}, [why])
        if manifest.zarr and begun:
            attributes = {"format": "last-shards", "synthetic": manifest.synthetic, "notices": list(manifest.notices)}
            self._expect(root_document(attributes))
        columns: dict[str, ColumnManifest] = {}
        records: list[CommitRecord] = []
        incomplete: dict[str, int] = {}
        for column in begun:
            self._known.add(path := layout.column_json(column))
            try:
                columns[column] = ColumnManifest.from_bytes(self._volume.read(path), self._volume.path(path))
                own, missing = self._column(columns[column])
            except ShardsError as error:
                self._fault(path, str(error))
                self._unread += 1
                continue
            records += own
            if missing:
                incomplete[column] = missing
        unfinished = [f"{n} shards of column {column} have no commit record" for column, n in incomplete.items()]
        if not columns and not self._faults:
            unfinished.append("no column is begun")
        if not unfinished and not self._unread:
            unfinished += self._closing(records)
        if not unfinished and manifest.zarr == "view":
            self._view([*columns.values()], records)
        self._unaccounted(set() if not unfinished else {layout.ZARR, layout.VIEW})
        return self._report(columns, plan.samples, records, incomplete, unfinished)

    def _report(
        self,
        columns: Mapping[str, ColumnManifest],
        planned: int,
        records: Sequence[CommitRecord],
        incomplete: Mapping[str, int],
        unfinished: Sequence[str],
    ) -> Report:
        return Report(
            columns=columns,
            planned=planned,
            written={c: sum(r.written for r in records if r.column == c) for c in columns},
            quarantined={c: sum(len(r.quarantined) for r in records if r.column == c) for c in columns},
            files=self._files,
            size=self._size,
            faults=tuple(self._faults),
            incomplete=incomplete,
            unfinished=tuple(unfinished),
        )

    def _begun(self, column: str) -> bool:
        try:
            return self._volume.exists(layout.column_json(column))
        except ShardsError:
            return True  # and told as a fault where it is read

    def _expect(self, documents_: Mapping[str, bytes]) -> None:
        """Files whose whole content follows from what is known already."""
        for path, expected in documents_.items():
            self._known.add(path)
            try:
                found = documents.parse_json(self._volume.read(path))
            except ShardsError as error:
                self._fault(path, str(error))
                continue
            except documents.UnreadableError:
                found = None
            if json.loads(expected) != found:
                self._fault(path, "not the Zarr metadata that belongs to this dataset")

    def _column(self, manifest: ColumnManifest) -> tuple[list[CommitRecord], int]:
        """The records of a column, and how many shards have none."""
        column = manifest.column
        if self._dataset[0].zarr:
            specs = zarr_specs(manifest, self._dataset[0].zarr)
            self._expect(array_documents(column, specs, self._plan.shards, self._plan.config.shard_size))
        records = []
        total: statistics.Statistics | None = {} if measured(manifest.targets) else None
        shards = committed(self._volume, column)
        missing = set(range(self._plan.shards)) - set(shards)
        with ThreadPoolExecutor(self._threads) as pool:
            for shard, (record, faults, part) in zip(
                shards, pool.map(lambda s: self._shards.check(manifest, s), shards), strict=True
            ):
                self._faults += faults
                if part is None:
                    total = None
                elif total is not None:
                    statistics.merge(total, part)
                if record is None:
                    self._unread += 1
                    self._underway(manifest, shard)
                    continue
                records.append(record)
                self._known.update({layout.record(column, shard), *record.files})
                self._files += 1 + len(record.files)
                self._size += record.size
        for shard in missing:  # somebody may be writing it now
            self._underway(manifest, shard)
        if measured(manifest.targets):
            self._known.add(layout.statistics(column))
        if total is not None and not missing:
            self._statistics[layout.statistics(column)] = statistics.column_table(total)
        return records, len(missing)

    def _underway(self, manifest: ColumnManifest, shard: int) -> None:
        """Files of a shard that no record speaks for, and that are where they belong."""
        self._known |= {layout.record(manifest.column, shard), *self._shards.names(manifest, shard)}

    def _closing(self, records: list[CommitRecord]) -> list[str]:
        """Check what a run writes when it ends; what of it is still to be done, in sentences."""
        absent = [path for path in (layout.INDEX, layout.QUARANTINE, *self._statistics) if self._absent(path)]
        # a run that ends takes its lock away; one that was killed while it wrote these has left it
        underway = {layout.INDEX, layout.QUARANTINE} <= {*absent} or (absent and not self._absent(layout.LOCK))
        if underway:
            return [f"every shard is committed, and the run was not closed: no {', '.join(absent)}"]
        if (older := self._indexed(records)) is not None:
            self._table(layout.QUARANTINE, index.quarantine_table(older, self._plan))
            return [f"{len(records) - len(older)} shards were committed after the tables of the dataset were written"]
        self._table(layout.INDEX, index.index_table(records))
        self._table(layout.QUARANTINE, index.quarantine_table(records, self._plan))
        for path, expected in self._statistics.items():
            self._table(path, expected)
        return []

    def _absent(self, path: str) -> bool:
        try:
            return not self._volume.exists(path)
        except ShardsError:  # nobody knows
            return False

    def _indexed(self, records: list[CommitRecord]) -> list[CommitRecord] | None:
        """The records of an index that is right and lacks some; None where it lacks none, or is wrong."""
        try:
            found = from_parquet(self._volume.read(layout.INDEX))
            pairs = set(zip(found["column"].to_pylist(), found["shard"].to_pylist(), strict=True))
        except Exception:  # damaged: `_table` says so
            return None
        older = [r for r in records if not r.members or not r.tokens or (r.column, r.shard) in pairs]
        return older if len(older) < len(records) and found.equals(index.index_table(older)) else None

    def _view(self, columns: list[ColumnManifest], records: list[CommitRecord]) -> None:
        """References that follow from the records, and every row that zarr-python reads through them."""
        shards, size, before = self._plan.shards, self._plan.config.shard_size, len(self._faults)
        self._expect({layout.VIEW_METADATA: view.metadata(columns, shards, size)})
        for manifest in columns:
            own = [record for record in records if record.column == manifest.column]
            for path, fill in view.fills(manifest).items():
                self._known.add(path)
                if self._absent(path) or self._volume.read(path) != fill:
                    self._fault(path, "is not a chunk of fill; run the job again to rebuild it")
            for path, table in view.tables(manifest, shards, size, own):
                self._table(path, table)
        if len(self._faults) == before:
            group = view.opened(self._volume.path("").rstrip("/"))
            for record in records:
                manifest = next(m for m in columns if m.column == record.column)
                self._faults += self._shards.view_faults(group, record, manifest)

    def _table(self, path: str, expected: pa.Table) -> None:
        """A table that follows from the records and their files."""
        self._known.add(path)
        try:
            found = from_parquet(self._volume.read(path))
        except Exception as error:  # pyarrow raises many kinds; each of them is this fault
            self._fault(path, f"cannot be read ({error}); run the job again to rebuild it")
            return
        if not found.equals(expected):
            self._fault(path, "is not what the commit records say; run the job again to rebuild it")

    def _unaccounted(self, underway: set[str]) -> None:
        """Files that no document accounts for; below `underway` there may be some of a column that is being begun."""
        try:
            found = self._volume.walk()
        except ShardsError as error:
            self._fault(".", f"its files cannot be listed: {error}")
            return
        for path in found:
            top = path.split("/", 1)[0]
            if path in self._known or top in (layout.LOGS, layout.TEMP, layout.LOCK):
                continue
            if not (top in underway and (top == layout.VIEW or path.endswith("/zarr.json"))):
                self._fault(path, "no document accounts for this file")
