"""One shard of one column, held against its record, its spec and the plan: every fault, and never an exception."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr import Group

from pipeline.stores import statistics
from pipeline.stores.checksum import crc32c
from pipeline.stores.column import zarr_specs
from pipeline.stores.decode import decode_jpeg
from pipeline.stores.disk import wrap_read_errors
from pipeline.stores.records import read_record
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import fill_row
from shards_schema import layout
from shards_schema.codecs import TAR_END, load_npy
from shards_schema.commit import CommitRecord, Member
from shards_schema.errors import SampleError, ShardsError, SpecError
from shards_schema.manifests import ColumnManifest, ZarrMode
from shards_schema.plan import Plan, ShardPlan
from shards_schema.specs import TargetSpec
from shards_schema.statistics import measured


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was committed: where, and what."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What a shard is held against.

    Attributes:
        volume: the dataset.
        plan: what it should hold.
        dataset: the seal of `dataset.json`.
        zarr: whether targets stand in Zarr as well.
    """

    volume: Volume
    plan: Plan
    dataset: str
    zarr: ZarrMode

    def names(self, manifest: ColumnManifest, shard: int) -> set[str]:
        """The data files of a shard, by the layout."""
        names = {layout.tar(manifest.column, shard)}
        specs = zarr_specs(manifest, self.zarr)
        names |= {layout.zarr_chunk(manifest.column, spec.name, shard, 1 + len(spec.shape)) for spec in specs}
        if measured(manifest.targets):
            names.add(layout.shard_statistics(manifest.column, shard))
        return names

    def check(
        self, manifest: ColumnManifest, shard: int
    ) -> tuple[CommitRecord | None, list[Fault], statistics.Statistics | None]:
        """The record, what is wrong, and the shard's statistics, None where it has none or they are damaged."""
        path = layout.record(manifest.column, shard)
        try:
            record = read_record(self.volume, manifest.column, shard)
        except ShardsError as error:
            return None, [Fault(path, str(error))], None
        faults = [Fault(path, what) for what in self._record_faults(record, manifest, shard)]
        planned = not faults  # the rows of a record that is not the plan's lead anywhere
        damaged = {fault.path for fault in self._digest_faults(record, faults)}
        tar = layout.tar(manifest.column, shard)
        if planned and tar not in damaged:
            arrays = None if damaged else self._zarr_rows(manifest, shard, faults)
            try:
                data = self.volume.read(tar)
            except ShardsError as error:  # it was there a moment ago
                return record, [*faults, Fault(tar, str(error))], None
            faults += self._member_faults(record, manifest, data, arrays)
        if damaged or faults or layout.shard_statistics(manifest.column, shard) not in record.files:
            return record, faults, None
        try:
            found = statistics.read_shard(self.volume, manifest.column, shard)
        except ShardsError as error:
            return record, [*faults, Fault(layout.shard_statistics(manifest.column, shard), str(error))], None
        if not statistics.agree(found, statistics.recomputed(record, manifest, data)):
            faults.append(Fault(layout.shard_statistics(manifest.column, shard), "not those of the tar's values"))
        return record, faults, found

    def _record_faults(self, record: CommitRecord, manifest: ColumnManifest, shard: int) -> Iterator[str]:
        if (record.column, record.shard) != (manifest.column, shard):
            yield f"is the record of column {record.column}, shard {record.shard}: files were swapped"
            return
        if record.dataset != self.dataset:
            yield f"was written for dataset {record.dataset[:12]}, this is {self.dataset[:12]}"
        if record.fingerprint != manifest.fingerprint:
            yield f"has fingerprint {record.fingerprint[:12]}, column.json has {manifest.fingerprint[:12]}"
        if shard >= self.plan.shards:
            yield f"shard {shard} is not in the plan of {self.plan.shards} shards"
            return
        planned: ShardPlan = self.plan.shard(shard)
        expected = {p.ref.token: p.row for p in planned.scenes}
        found = dict(zip(record.tokens, record.rows, strict=True)) | {q.token: q.row for q in record.quarantined}
        if expected != found:
            yield f"accounts for other samples than the plan ({len(found)} against {len(expected)})"
        names = self.names(manifest, shard)
        if names != set(record.files):
            yield f"names other files than the layout has: {sorted(names ^ set(record.files))[:3]}"

    def _digest_faults(self, record: CommitRecord, faults: list[Fault]) -> list[Fault]:
        found: list[Fault] = []
        for path, expected in record.files.items():
            try:
                size, sha256 = self._digest(path)
            except ShardsError as error:
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
        with wrap_read_errors(self.volume.path(path)), self.volume.open(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest

    def _changed_members(self, record: CommitRecord, path: str) -> str:
        """Which members of a changed tar the reader refuses, as words for its fault; "" for none, or another file."""
        if path != layout.tar(record.column, record.shard):
            return ""
        try:
            data = self.volume.read(path)
        except ShardsError:
            return ""
        changed = [
            f"{token}.{ext}"
            for i, token in enumerate(record.tokens)
            for ext, members in record.members.items()
            if _changed(data, members[i])
        ]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"; changed in {', '.join(changed[:3])}{more}" if changed else ""

    def _zarr_rows(self, manifest: ColumnManifest, shard: int, faults: list[Fault]) -> dict[str, NDArray[Any]] | None:
        """The planned rows of this shard of every Zarr array, as zarr-python reads them; None where one cannot be.

        Those beyond the plan's are fill, of which an array may have a million: the digest of its file speaks for them.
        """
        if not self.zarr:
            return None
        first = shard * self.plan.config.shard_size
        end = first + self._slots(shard)
        rows: dict[str, NDArray[Any]] = {}
        for spec in zarr_specs(manifest, self.zarr):
            path = layout.zarr_array(manifest.column, spec.name)
            try:
                array = zarr.open_array(self.volume.path(path), mode="r")
                rows[spec.name] = np.asarray(array[first:end])
            except Exception as error:  # whatever a damaged array makes zarr-python raise is this fault
                faults.append(Fault(path, f"shard {shard}: zarr cannot read it ({type(error).__name__}: {error})"))
                return None
        return rows

    def _member_faults(
        self, record: CommitRecord, manifest: ColumnManifest, data: bytes, arrays: Mapping[str, NDArray[Any]] | None
    ) -> list[Fault]:
        """Every member where the record says, by a tar reader; its values as its spec says, and as Zarr has them."""
        path = layout.tar(record.column, record.shard)
        first_row = record.shard * self.plan.config.shard_size
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
            valid = np.zeros(self._slots(record.shard), np.uint8)
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

    def view_faults(self, group: Group, record: CommitRecord, manifest: ColumnManifest) -> list[Fault]:
        """Every row of a shard through the view, against the tar's, fill, or (small arrays) those of `targets.zarr`."""
        first = record.shard * self.plan.config.shard_size
        end = first + self._slots(record.shard)
        small = {spec.name for spec in zarr_specs(manifest, self.zarr)}
        faults: list[Fault] = []
        tar = memoryview(self.volume.read(layout.tar(record.column, record.shard)))
        for spec in zarr_specs(manifest, True):
            path = f"{layout.VIEW}/{record.column}/{spec.name}"
            try:
                found = np.asarray(group[f"{record.column}/{spec.name}"][first:end])  # type: ignore[index]
                if spec.name in small:
                    array = zarr.open_array(self.volume.path(layout.zarr_array(record.column, spec.name)), mode="r")
                    expected = np.asarray(array[first:end])
                else:
                    fill = np.frombuffer(fill_row(spec), spec.dtype).reshape(spec.fixed_shape)
                    expected = np.broadcast_to(fill, (end - first, *spec.fixed_shape)).copy()
                    for row, place in zip(record.rows, record.members.get(f"{spec.name}.npy", ()), strict=True):
                        expected[row - first] = load_npy(tar[place.offset : place.offset + place.size], path)
            except Exception as error:  # whatever a damaged view makes zarr-python raise is this fault
                faults.append(Fault(path, f"shard {record.shard}: cannot be read ({type(error).__name__}: {error})"))
                continue
            if not _same(found, expected):
                faults.append(Fault(path, f"shard {record.shard}: the view has other values"))
        return faults

    def _slots(self, shard: int) -> int:
        """Rows of a shard up to the last one that the plan uses."""
        rows = [planned.row for planned in self.plan.shard(shard).scenes]
        return max(rows, default=-1) + 1 - shard * self.plan.config.shard_size


def _changed(tar: bytes | memoryview, place: Member) -> bool:
    """Whether a member has another checksum than its record says."""
    return crc32c(memoryview(tar)[place.offset : place.offset + place.size]) != place.crc32c


def _member_fault(
    name: str, data: memoryview, spec: TargetSpec | None, arrays: Mapping[str, NDArray[Any]] | None, slot: int
) -> str | None:
    try:
        if spec is not None:
            array = load_npy(data, name)
            spec.check(array)
            if arrays is not None and spec.name in arrays and not _same(arrays[spec.name][slot], array):
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
