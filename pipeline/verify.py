"""Re-read everything and name each fault.

From the top down, each level vouching for the next: `dataset.json` and `plan.parquet`, `column.json`, the commit
records, then size and sha256 of every file that a record names, every tar member against its checksum and its spec,
every Zarr row against the tar, the statistics against the values, and the counts against the plan. Files that no
document accounts for are faults as well. A fault never stops the search for the next one.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from pipeline import generations, index, statistics
from pipeline.decode import decode_jpeg
from pipeline.plan import Plan, ShardPlan
from pipeline.records import columns_of, committed, read_manifest, read_record
from pipeline.stores.checksum import crc32c
from pipeline.stores.column import zarr_specs
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import array_documents, root_document
from pipeline.tables import from_parquet
from shards_schema import layout
from shards_schema.codecs import TAR_END, load_npy
from shards_schema.commit import CommitRecord, Member
from shards_schema.errors import SampleError, ShardsError, SpecError
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.specs import TargetSpec
from shards_schema.statistics import measured


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was committed: where, and what."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` saw.

    Attributes:
        faults: empty when the dataset is clean.
        incomplete: (column, shards without a record) of columns that are still being made; not a fault.
    """

    columns: Mapping[str, ColumnManifest]
    planned: int
    written: Mapping[str, int]
    quarantined: Mapping[str, int]
    files: int
    size: int
    faults: tuple[Fault, ...]
    incomplete: Mapping[str, int]


def verify(url: str, *, threads: int = 2) -> Report:
    """Check the dataset at `url` completely; reads every byte of it.

    Raises:
        DatasetError: `dataset.json` or `plan.parquet` is missing or damaged, so that nothing else can be judged.
    """
    return _Verifier(Volume(url), threads).run()


class _Verifier:
    def __init__(self, volume: Volume, threads: int) -> None:
        self._volume, self._threads = volume, threads
        self._faults: list[Fault] = []
        self._known = {layout.DATASET, layout.PLAN, layout.INDEX, layout.QUARANTINE}
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

    def run(self) -> Report:
        manifest, _ = self._dataset
        plan = self._plan
        if manifest.zarr:
            attributes = {"format": "last-shards", "synthetic": manifest.synthetic, "notices": list(manifest.notices)}
            self._expect(root_document(attributes))
        columns: dict[str, ColumnManifest] = {}
        records: list[CommitRecord] = []
        incomplete: dict[str, int] = {}
        for column in columns_of(self._volume):
            path = layout.column_json(column)
            self._known.add(path)
            try:
                columns[column] = ColumnManifest.from_bytes(self._volume.read(path), self._volume.path(path))
            except ShardsError as error:
                self._fault(path, str(error))
                continue
            own = self._column(columns[column])
            records += own
            if plan.shards > len(own):
                incomplete[column] = plan.shards - len(own)
        if not incomplete:
            self._indices(records)
        self._strangers()
        return Report(
            columns=columns,
            planned=plan.samples,
            written={c: sum(r.written for r in records if r.column == c) for c in columns},
            quarantined={c: sum(len(r.quarantined) for r in records if r.column == c) for c in columns},
            files=self._files,
            size=self._size,
            faults=tuple(self._faults),
            incomplete=incomplete,
        )

    def _expect(self, documents: Mapping[str, bytes]) -> None:
        """Files whose whole content follows from what is known already."""
        for path, expected in documents.items():
            self._known.add(path)
            try:
                found = self._volume.read(path)
            except ShardsError as error:
                self._fault(path, str(error))
                continue
            if json.loads(expected) != _json_or_none(found):
                self._fault(path, "not the Zarr metadata that belongs to this dataset")

    def _column(self, manifest: ColumnManifest) -> list[CommitRecord]:
        specs = zarr_specs(manifest)
        if self._dataset[0].zarr:
            self._expect(array_documents(manifest.column, specs, self._plan.shards, self._plan.config.shard_size))
        records = []
        total: statistics.Statistics | None = {} if measured(manifest.targets) else None
        shards = committed(self._volume, manifest.column)
        with ThreadPoolExecutor(self._threads) as pool:
            for shard, (record, faults, part) in zip(
                shards, pool.map(lambda s: self._shard(manifest, s), shards), strict=True
            ):
                self._known.add(layout.record(manifest.column, shard))
                self._faults += faults
                if part is None:
                    total = None
                elif total is not None:
                    statistics.merge(total, part)
                if record is not None:
                    records.append(record)
                    self._known.update(record.files)
                    self._files += 1 + len(record.files)
                    self._size += record.size
        if measured(manifest.targets):
            self._known.add(layout.statistics(manifest.column))
        if total is not None and len(shards) == self._plan.shards:
            self._table(layout.statistics(manifest.column), statistics.column_table(total))
        return records

    def _shard(
        self, manifest: ColumnManifest, shard: int
    ) -> tuple[CommitRecord | None, list[Fault], statistics.Statistics | None]:
        """The record, what is wrong, and the shard's statistics, None where it has none or they are damaged."""
        path = layout.record(manifest.column, shard)
        try:
            record = read_record(self._volume, manifest.column, shard)
        except ShardsError as error:
            return None, [Fault(path, str(error))], None
        faults = [Fault(path, what) for what in self._record_faults(record, manifest, shard)]
        planned = not faults  # the rows of a record that is not the plan's lead anywhere
        damaged = {fault.path for fault in self._digest_faults(record, faults)}
        tar = layout.tar(manifest.column, shard)
        if planned and tar not in damaged:
            arrays = None if damaged else self._zarr_rows(manifest, shard, faults)
            data = self._volume.read(tar)
            faults += self._member_faults(record, manifest, data, arrays)
        if damaged or faults or layout.shard_statistics(manifest.column, shard) not in record.files:
            return record, faults, None
        try:
            found = statistics.read_shard(self._volume, manifest.column, shard)
        except ShardsError as error:
            return record, [*faults, Fault(layout.shard_statistics(manifest.column, shard), str(error))], None
        if not statistics.agree(found, statistics.recomputed(record, manifest, data)):
            faults.append(Fault(layout.shard_statistics(manifest.column, shard), "not those of the tar's values"))
        return record, faults, found

    def _record_faults(self, record: CommitRecord, manifest: ColumnManifest, shard: int) -> Iterator[str]:
        if (record.column, record.shard) != (manifest.column, shard):
            yield f"is the record of column {record.column}, shard {record.shard}: files were swapped"
            return
        if record.dataset != self._dataset[1]:
            yield f"was written for dataset {record.dataset[:12]}, this is {self._dataset[1][:12]}"
        if record.fingerprint != manifest.fingerprint:
            yield f"has fingerprint {record.fingerprint[:12]}, column.json has {manifest.fingerprint[:12]}"
        if shard >= self._plan.shards:
            yield f"shard {shard} is not in the plan of {self._plan.shards} shards"
            return
        planned: ShardPlan = self._plan.shard(shard)
        expected = {p.ref.token: p.row for p in planned.scenes}
        found = dict(zip(record.tokens, record.rows, strict=True)) | {q.token: q.row for q in record.quarantined}
        if expected != found:
            yield f"accounts for other samples than the plan ({len(found)} against {len(expected)})"
        names = {layout.tar(record.column, shard)}
        if self._dataset[0].zarr:
            names |= {layout.zarr_chunk(record.column, s.name, shard, 1 + len(s.shape)) for s in zarr_specs(manifest)}
        if record.version > 1 and measured(manifest.targets):
            names.add(layout.shard_statistics(record.column, shard))
        if names != set(record.files):
            yield f"names other files than the layout has: {sorted(names ^ set(record.files))[:3]}"

    def _digest_faults(self, record: CommitRecord, faults: list[Fault]) -> list[Fault]:
        found: list[Fault] = []
        for path, expected in record.files.items():
            try:
                size, sha256 = self._digest(path)
            except (ShardsError, OSError) as error:
                found.append(Fault(path, str(error)))
                continue
            if size != expected.size:
                found.append(Fault(path, f"{size} bytes, committed were {expected.size}"))
            elif sha256 != expected.sha256:
                what = f"sha256 {sha256[:12]}, committed was {expected.sha256[:12]}"
                found.append(Fault(path, what + self._changed_members(record, path)))
        faults += found
        return found

    def _digest(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._volume.open(path) as file:
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
        return size, digest.hexdigest()

    def _changed_members(self, record: CommitRecord, path: str) -> str:
        """Which members of a changed tar the reader refuses, as words for its fault; "" for none, or another file."""
        if path != layout.tar(record.column, record.shard):
            return ""
        data = self._volume.read(path)
        changed = [
            f"{token}.{ext}"
            for i, token in enumerate(record.tokens)
            for ext, members in record.members.items()
            if _changed(data, members[i])
        ]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"; changed in {', '.join(changed[:3])}{more}" if changed else ""

    def _zarr_rows(self, manifest: ColumnManifest, shard: int, faults: list[Fault]) -> dict[str, NDArray[Any]] | None:
        """The rows of this shard of every Zarr array, as zarr-python reads them; None where one cannot be read."""
        if not self._dataset[0].zarr:
            return None
        size = self._plan.config.shard_size
        rows: dict[str, NDArray[Any]] = {}
        for spec in zarr_specs(manifest):
            path = layout.zarr_array(manifest.column, spec.name)
            try:
                array = zarr.open_array(self._volume.path(path), mode="r")
                rows[spec.name] = np.asarray(array[shard * size : (shard + 1) * size])
            except Exception as error:  # whatever a damaged array makes zarr-python raise is this fault
                faults.append(Fault(path, f"shard {shard}: zarr cannot read it ({type(error).__name__}: {error})"))
                return None
        return rows

    def _member_faults(
        self, record: CommitRecord, manifest: ColumnManifest, data: bytes, arrays: Mapping[str, NDArray[Any]] | None
    ) -> list[Fault]:
        """Every member where the record says, by a tar reader; its values as its spec says, and as Zarr has them."""
        path = layout.tar(record.column, record.shard)
        first_row = record.shard * self._plan.config.shard_size
        specs = {f"{spec.name}.npy": spec for spec in manifest.targets}
        faults: list[Fault] = []
        if not data.endswith(TAR_END):
            faults.append(Fault(path, "does not end as a tar must: it was cut"))
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:  # "r" would unpack a compressed one
                found = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
        except Exception as error:  # whatever a damaged tar makes tarfile raise is this fault
            return [*faults, Fault(path, f"no tar reader can read it ({type(error).__name__}: {error})")]
        extensions = list(record.members)
        expected = {
            f"{token}.{ext}": record.members[ext][i][:2] for i, token in enumerate(record.tokens) for ext in extensions
        }
        if {name: (offset, size) for name, offset, size in found} != expected or len(found) != len(expected):
            return [*faults, Fault(path, "members are not those that the commit record names")]
        for i, (token, row) in enumerate(zip(record.tokens, record.rows, strict=True)):
            for ext in extensions:
                place = record.members[ext][i]
                if _changed(data, place):
                    faults.append(Fault(path, f"{token}.{ext}: has another CRC-32C than its commit record says"))
                    continue
                member = memoryview(data)[place.offset : place.offset + place.size]
                what = _member_fault(f"{token}.{ext}", member, specs.get(ext), arrays, row - first_row)
                if what:
                    faults.append(Fault(path, f"{token}.{ext}: {what}"))
        if arrays is not None:
            valid = np.zeros(self._plan.config.shard_size, np.uint8)
            valid[np.array(record.rows, dtype=np.int64) - first_row] = 1
            if not np.array_equal(arrays[layout.VALID], valid):
                faults.append(
                    Fault(layout.zarr_array(record.column, layout.VALID), f"shard {record.shard}: wrong rows")
                )
            if record.column == layout.SAMPLES:
                tokens = arrays["token"][np.array(record.rows, dtype=np.int64) - first_row]
                if tokens.tolist() != list(record.tokens):
                    faults.append(
                        Fault(layout.zarr_array(record.column, "token"), f"shard {record.shard}: wrong tokens")
                    )
        return faults

    def _indices(self, records: list[CommitRecord]) -> None:
        tables = {
            layout.INDEX: index.index_table(records),
            layout.QUARANTINE: index.quarantine_table(records, self._plan),
        }
        for path, expected in tables.items():
            self._table(path, expected)

    def _table(self, path: str, expected: pa.Table) -> None:
        """A table that follows from the records and their files."""
        self._known.add(path)
        try:
            found = from_parquet(self._volume.read(path))
        except Exception as error:  # pyarrow raises many kinds; each of them is this fault
            self._fault(path, f"cannot be read ({error}); run the job again to rebuild it")
            return
        if (
            path == layout.INDEX
            and "crc32c" not in found.column_names
            and expected["crc32c"].null_count == len(expected)
        ):
            expected = expected.drop_columns(["crc32c"])  # the index of a dataset that was finished before version 3
        if not found.equals(expected):
            self._fault(path, "is not what the commit records say; run the job again to rebuild it")

    def _strangers(self) -> None:
        for path in self._volume.walk():
            top = path.split("/", 1)[0]
            if path not in self._known and top not in (layout.LOGS, layout.TEMP, layout.LOCK):
                self._fault(path, "no document accounts for this file")


def _changed(tar: bytes | memoryview, place: Member) -> bool:
    """Whether a member has another checksum than its record says; False where that has none."""
    data = memoryview(tar)[place.offset : place.offset + place.size]
    return place.crc32c is not None and crc32c(data) != place.crc32c


def _member_fault(
    name: str, data: memoryview, spec: TargetSpec | None, arrays: Mapping[str, NDArray[Any]] | None, slot: int
) -> str | None:
    try:
        if spec is not None:
            array = load_npy(data, name)
            spec.check(array)
            if arrays is not None and not spec.ragged and not _same(arrays[spec.name][slot], array):
                return "Zarr has other values"
        elif name.endswith(".json"):
            json.loads(bytes(data))
        elif name.endswith(".jpg"):
            decode_jpeg(bytes(data), name)
        else:
            return "no spec for this member"
    except (ValueError, SampleError, SpecError) as error:
        return str(error)
    return None


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Bitwise, so that NaN equals NaN and -0.0 is not 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
