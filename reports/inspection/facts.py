"""What a dataset says of itself: from its documents and commit records alone, finished or not, damaged or not.

Nothing here stops at a fault: a column that cannot be read is named, with the reason, and the others are told as if it
were not there. (`make verify` reads every byte; this looks at names and sizes only.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.stores import generations
from pipeline.stores.records import columns_of, committed, read_manifest, read_record
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.commit import CommitRecord, Quarantined
from shards_schema.errors import ShardsError
from shards_schema.manifests import ColumnManifest, DatasetManifest

NAVTRAIN_SCENES = 103_288
"""Scenes of NAVSIM's training split, for the extrapolated size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """One column.

    Attributes:
        manifest: None where `column.json` is damaged.
        shards: how many have a readable commit record.
        missing: shards of the plan that have none.
        quarantined: code -> how many, and one example of each.
        tar: bytes of its tars.
        zarr: bytes of its Zarr shards.
        statistics: bytes of its shards' sums.
        members: tar member -> mean bytes a sample.
        damage: what is wrong, one sentence each.
    """

    name: str
    manifest: ColumnManifest | None
    shards: int
    missing: int
    written: int
    quarantined: Mapping[str, tuple[int, Quarantined]]
    tar: int
    zarr: int
    statistics: int
    members: Mapping[str, float]
    damage: tuple[str, ...]

    @property
    def left_out(self) -> int:
        """Samples quarantined."""
        return sum(count for count, _ in self.quarantined.values())

    @property
    def size(self) -> int:
        """Bytes of every file that its records name."""
        return self.tar + self.zarr + self.statistics

    @property
    def bytes_a_sample(self) -> float:
        """Of `size`; 0 where nothing is written."""
        return self.size / self.written if self.written else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A dataset: where it lies, what was planned, and its columns."""

    url: str
    where: str
    manifest: DatasetManifest
    columns: tuple[ColumnFacts, ...]

    @property
    def notices(self) -> tuple[str, ...]:
        """What every reader must know first: the recorded notices, and any random column that they do not name."""
        said = list(self.manifest.notices)
        for column in self.columns:
            random = column.manifest is not None and column.manifest.random_weights
            if random and not any("RANDOM" in notice and column.name in notice for notice in said):
                said.append(f"Column {column.name} was made with RANDOM WEIGHTS: do not train on it.")
        return tuple(said)

    @property
    def unfinished(self) -> bool:
        """Whether some column lacks shards, or no column was begun."""
        return not self.columns or any(column.missing for column in self.columns)

    @property
    def bytes_a_sample(self) -> float:
        """Of all columns together."""
        return sum(column.bytes_a_sample for column in self.columns)


def gather(url: str) -> Facts:
    """The facts of the dataset at `url`.

    Raises:
        MissingFileError: there is no `dataset.json`.
        DatasetError: it is damaged or of another schema version.
    """
    volume = Volume(url)
    known = generations.read(volume, *read_manifest(volume))
    names = [name for name in columns_of(volume) if name != layout.SAMPLES]
    ordered = [layout.SAMPLES, *names] if volume.exists(layout.column_json(layout.SAMPLES)) else names
    return Facts(
        url=url,
        where=volume.path("").rstrip("/"),
        manifest=known.now,
        columns=tuple(_column(volume, name, known.shards) for name in ordered),
    )


def _column(volume: Volume, name: str, shards: int) -> ColumnFacts:
    damage: list[str] = []
    manifest = None
    try:
        path = layout.column_json(name)
        manifest = ColumnManifest.from_bytes(volume.read(path), volume.path(path))
    except (ShardsError, KeyError, TypeError) as error:
        damage.append(_sentence(error))
    records: list[CommitRecord] = []
    present = committed(volume, name)
    for shard in present:
        try:
            records.append(read_record(volume, name, shard))
        except ShardsError as error:
            damage.append(_sentence(error))
    damage += _misfits(volume, records)
    quarantined: dict[str, tuple[int, Quarantined]] = {}
    counts = Counter(q.code for record in records for q in record.quarantined)
    for q in (q for record in records for q in record.quarantined):
        quarantined.setdefault(q.code, (counts[q.code], q))
    sizes: Counter[str] = Counter()
    for path, file in ((path, file) for record in records for path, file in record.files.items()):
        kind = "tar" if path.endswith(".tar") else "zarr" if path.startswith(f"{layout.ZARR}/") else "statistics"
        sizes[kind] += file.size
    return ColumnFacts(
        name=name,
        manifest=manifest,
        shards=len(records),
        missing=shards - len(present),
        written=sum(record.written for record in records),
        quarantined=quarantined,
        tar=sizes["tar"],
        zarr=sizes["zarr"],
        statistics=sizes["statistics"],
        members=_members(records),
        damage=tuple(damage),
    )


def _members(records: Sequence[CommitRecord]) -> dict[str, float]:
    sizes: dict[str, list[int]] = {}
    for record in records:
        for member, places in record.members.items():
            sizes.setdefault(member, []).extend(place.size for place in places)
    return {member: float(np.mean(found)) for member, found in sizes.items() if found}


def _misfits(volume: Volume, records: Sequence[CommitRecord]) -> list[str]:
    """Files that a record names and that are gone or of another size; local disks only, where asking is free."""
    if volume.local_root is None:
        return []
    found = []
    for record in records:
        for path, file in record.files.items():
            try:
                size = volume.size(path)
            except ShardsError:
                found.append(f"shard {record.shard}: {path} is not there")
                continue
            if size != file.size:
                found.append(f"shard {record.shard}: {path} has {size} bytes, its record says {file.size}")
    return found


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, ShardsError) else f"not a document of this release ({error!r})"


def weights_line(manifest: ColumnManifest) -> str:
    """Where a teacher's weights come from, as one line; "" for a column that has none."""
    weights = manifest.provenance.get("weights")
    if not isinstance(weights, Mapping):
        return "RANDOM" if manifest.random_weights else ""
    if weights.get("random"):
        return f"RANDOM, seed {weights.get('seed')}"
    given = manifest.config.get("weights")
    origin: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    parts = [str(origin["hub"]) + f" @ {str(origin.get('revision'))[:12]}"] if origin.get("hub") else []
    parts += [str(weights["file"])] if weights.get("file") else []
    parts += [f"sha256 {str(weights['sha256'])[:16]}"] if weights.get("sha256") else []
    return ", ".join(parts) or ", ".join(f"{k}={v}" for k, v in weights.items())


def settings_line(manifest: ColumnManifest) -> str:
    """The rest of the provenance; nested mappings keep their plain values only."""
    rest = {k: _short(v) for k, v in manifest.provenance.items() if k not in ("weights", "statistics")}
    return ", ".join(f"{key} {text}" for key, text in rest.items() if text)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = [f"{k} {text}" for k, v in value.items() if not isinstance(v, Mapping) and (text := _short(v))]
        return " / ".join(inner[:4]) + (" / ..." if len(inner) > 4 else "")
    if isinstance(value, list):
        plain = all(not isinstance(v, (Mapping, list)) for v in value)
        return ",".join(map(str, value)) if plain and len(value) <= 24 else f"({len(value)} entries)"
    return "" if value is None else str(value)
