"""Random access to the committed shards of a dataset: a token and the names of what is wanted in, arrays out.

Opening reads `dataset.json`, `column.json` and the commit records of the asked-for columns, and nothing else; after
that a sample is found without a directory listing, an index file or a tar parser. On a local disk each tar is mapped
into memory once and arrays are read-only views of it, with no copy (but for targets that are stored encoded, which are
decoded to float32); on any other fsspec store a read is one batch of range requests. Only committed shards exist here,
and a fault is an error that names shard and file, never a sample less. Every member is held against the CRC-32C in its
commit record before it is parsed, so that a bit that changed after the commit is an error as well (datasets of schema
versions 1 and 2 have no checksums). Memory: places as int64, so some 150 bytes a (sample, column).

    dataset = Dataset("out/demo")
    for token in dataset.tokens("samples", "vggt"):              # the join: written in both, in plan order
        sample = dataset.read(token, {"samples": ["json", "cam_f0.jpg"], "vggt": ["l3_grid", "depth"]})
        sample["vggt"]["l3_grid"], sample["samples"]["json"]["future"]["trajectory"], sample["samples"]["cam_f0.jpg"]
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import statistics
from pipeline.plan import Plan, PlanConfig
from pipeline.records import columns_of, committed, read_record
from pipeline.stores.cache import CacheConfig
from pipeline.stores.checksum import crc32c
from pipeline.stores.ranges import ByteRange, CommittedFile, RangeReader
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.codecs import load_npy, seal_of
from shards_schema.commit import CommitRecord, Member, Quarantined
from shards_schema.errors import AbsentError, DatasetError, DigestError, MissingFileError, QuarantinedError
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics
from shards_schema.storage import decode, parts, read_specs

_OPENING_THREADS = 8
_UNCHECKED = -1

Wanted = Mapping[str, Sequence[str] | None]
"""Column -> names, or None for all: a target (``l3_grid``) or a member as it stands in the tar (``cam_f0.jpg``)."""

Sample = dict[str, dict[str, Any]]
"""Column -> name -> value: a read-only array (targets), parsed JSON (``json``), bytes (any other member)."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """What is kept of a commit record: tokens, and for each member int64 [n, 3].

    These are offset and size in the tar, and the CRC-32C, or `_UNCHECKED` where the record has none.
    """

    file: CommittedFile
    tokens: tuple[str, ...]
    members: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class _Column:
    """One column: its shards in order, and where each token lies, (place in `shards`, place in the shard).

    Attributes:
        encoded: member -> spec of what is stored, of the targets that are decoded when they are read.
        scales: members that are only part of others.
    """

    manifest: ColumnManifest
    shards: tuple[_Shard, ...]
    places: Mapping[str, tuple[int, int]]
    quarantined: Mapping[str, Quarantined]
    members: tuple[str, ...]
    encoded: Mapping[str, TargetSpec]
    scales: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of one sample: how it is called in the tar, which bytes it is, and their CRC-32C (or `_UNCHECKED`)."""

    name: str
    place: ByteRange
    crc32c: int


@dataclass(frozen=True, slots=True)
class _Value:
    """One thing that was asked for: under which name, and the members that it is made of.

    Attributes:
        spec: of what is stored, for a target that has to be decoded; else None, and there is one member.
    """

    column: str
    asked: str
    spec: TargetSpec | None
    members: tuple[_Member, ...]


class Dataset:
    """A committed dataset, open for reading. Safe to share between threads; a pickled one opens itself again.

    Args:
        url: a local path or any fsspec URL.
        columns: the columns to open; None is all. Those not named are not touched.
        check_digests: hash each tar when it is first read from, and compare with its commit record: what no member's
            checksum says (headers, padding, somebody who means harm; datasets without checksums).
        check_members: compare each member with its checksum, on every read. Some 70 us for a MB, which is little beside
            a JPEG to decode and much beside arrays that are mapped and lie in memory already.
        max_open: tars that stay mapped at once (local disks); views of older ones stay good.
        cache: keeps whole tars of a remote dataset on a local disk, so that each is fetched once; None is a request for
            each member that is read. See `pipeline.stores.cache`.

    Raises:
        MissingFileError: there is no dataset, or no such column, at `url`.
        DatasetError: a document is damaged, or a record belongs to another dataset or column.
    """

    def __init__(
        self,
        url: str,
        *,
        columns: Iterable[str] | None = None,
        check_digests: bool = False,
        check_members: bool = True,
        max_open: int = 64,
        cache: CacheConfig | None = None,
    ) -> None:
        names = None if columns is None else tuple(columns)
        self._url = url
        self._files_config: dict[str, Any] = {"check_digests": check_digests, "max_open": max_open, "cache": cache}
        self._config: dict[str, Any] = {"columns": names, "check_members": check_members, **self._files_config}
        self._volume = Volume(url)
        data = self._volume.read(layout.DATASET)
        self.manifest = DatasetManifest.from_bytes(data, self._volume.path(layout.DATASET))
        self.digest = seal_of(data)
        opened = columns_of(self._volume) if names is None else names
        self._columns = {name: self._open_column(name) for name in opened}
        self._statistics: dict[str, statistics.Statistics] = {}
        self._files = RangeReader(url, **self._files_config)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Dataset, self._url, **self._config), ()

    def forked(self) -> Dataset:
        """The same dataset for a forked process: this index, but maps, locks and store connections of its own."""
        child = copy.copy(self)
        child._volume = Volume(self._url)
        child._files = RangeReader(self._url, **self._files_config)
        return child

    @property
    def url(self) -> str:
        """As it was given."""
        return self._url

    @property
    def columns(self) -> Mapping[str, ColumnManifest]:
        """The open columns and their `column.json`."""
        return {name: column.manifest for name, column in self._columns.items()}

    def specs(self, column: str) -> Mapping[str, TargetSpec]:
        """Targets of a column by name, as `read` gives them (`columns` has them as they are stored).

        Those of `samples` stand in Zarr; its tar has the members of `members`.

        Raises:
            AbsentError: no such column.
        """
        return {spec.name: spec for spec in read_specs(self._column(column).manifest.targets)}

    def statistics(self, column: str, target: str) -> ChannelStatistics:
        """Mean, std, min and max of each channel of a target, over every sample that is written in the column.

        Raises:
            AbsentError: no such column or target, or one without statistics: it has no channel axis, the run is not
                finished, or the column was made before there were any.
            DatasetError: the file is damaged.
        """
        path = layout.statistics(self._column(column).manifest.column)
        if column not in self._statistics:
            try:
                self._statistics[column] = statistics.parse(self._volume.read(path), self._volume.path(path))
            except MissingFileError as error:
                raise AbsentError(
                    f"{self.url}: column {column} has no statistics ({error}); they are written when a run ends, for "
                    "targets with a channel axis, and not to columns that were made before there were any"
                ) from error
        found = self._statistics[column]
        if target not in found:
            raise AbsentError(f"{self.url}: column {column} has no statistics of {target!r}{_nearest(target, found)}")
        return found[target]

    def members(self, column: str) -> tuple[str, ...]:
        """What `read` can give of a column, as it stands in the tar (``l3_grid.npy``, ``json``, ``cam_f0.jpg``).

        Raises:
            AbsentError: no such column.
        """
        return self._column(column).members

    def tokens(self, *columns: str) -> tuple[str, ...]:
        """The tokens that are written in every one of `columns` (at least one), in plan order.

        Raises:
            AbsentError: no such column.
        """
        first, *others = [self._column(name) for name in columns or [*self._columns][:1]]
        every = (token for shard in first.shards for token in shard.tokens)
        return tuple(token for token in every if all(token in other.places for other in others))

    def quarantined(self, column: str) -> Mapping[str, Quarantined]:
        """The tokens of committed shards that a column could not write, with the reasons.

        Raises:
            AbsentError: no such column.
        """
        return self._column(column).quarantined

    @cached_property
    def plan(self) -> Plan:
        """`plan.parquet`: every sample that was asked for, with its log; read when first used.

        Raises:
            DatasetError: missing, damaged, or not the plan that `dataset.json` names.
        """
        recorded = self.manifest.plan
        where = self._volume.path(layout.PLAN)
        config = PlanConfig(shard_size=recorded["shard_size"], seed=recorded["seed"])
        plan = Plan.from_parquet(self._volume.read(layout.PLAN), config, where)
        if plan.digest != recorded["digest"]:
            raise DatasetError(f"{where}: plan digest {plan.digest}, dataset.json says {recorded['digest']}")
        return plan

    def read(self, token: str, targets: Wanted | None = None, *, raw: bool = False) -> Sample:
        """One sample, as much of it as is asked for.

        Args:
            token: of a scene.
            targets: what is wanted of which column; None is everything of every open column.
            raw: give the arrays as they are stored, codes and scales, and decode nothing.

        Returns:
            Column -> name (as asked) -> value. Arrays are read-only and keep their file mapped while they live.

        Raises:
            AbsentError: no such token, column or target; `QuarantinedError` where the token was quarantined.
            MissingFileError, DigestError, DatasetError: a tar is gone, changed or cut; shard and file are named, and
                the member that is not what was committed.
        """
        wanted = dict.fromkeys(self._columns) if targets is None else targets
        values = [v for column, names in wanted.items() for v in self._values(token, column, names, raw)]
        read = iter(self._files.read([m.place for v in values for m in v.members]))
        sample: Sample = {column: {} for column in wanted}
        for value in values:
            stored = [self._parsed(next(read), member, token) for member in value.members]
            sample[value.column][value.asked] = stored[0] if value.spec is None else _decoded(value.spec, stored)
        return sample

    def expect(self, tokens: Sequence[str], targets: Wanted) -> None:
        """Begin to read samples that will be asked for next: a hint for local disks, which then read them at once.

        Raises:
            DatasetError: what `read` would raise.
        """
        values = [v for t in tokens for column, names in targets.items() for v in self._values(t, column, names, False)]
        self._files.expect([m.place for v in values for m in v.members])

    @property
    def cache(self) -> CacheConfig | None:
        """As it was given."""
        return cast(CacheConfig | None, self._config["cache"])

    def shard_bytes(self, columns: Iterable[str]) -> Mapping[int, int]:
        """Shard -> bytes of its tars in some columns.

        Raises:
            AbsentError: no such column.
        """
        total: dict[int, int] = {}
        for name in columns:
            for shard in self._column(name).shards:
                total[shard.file.shard] = total.get(shard.file.shard, 0) + shard.file.digest.size
        return total

    def bring(self, shards: Sequence[int], columns: Sequence[str]) -> None:
        """Begin to fetch the tars of shards into the cache, shard by shard, and do not wait.

        Raises:
            AbsentError: no such column.
        """
        files = {(s.file.shard, name): s.file for name in columns for s in self._column(name).shards}
        order = [(shard, name) for shard in shards for name in columns]
        self._files.bring([files[key] for key in order if key in files])

    def _open_column(self, name: str) -> _Column:
        path = layout.column_json(name)
        manifest = ColumnManifest.from_bytes(self._volume.read(path), self._volume.path(path))
        shards: list[_Shard] = []
        places: dict[str, tuple[int, int]] = {}
        quarantined: dict[str, Quarantined] = {}
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            for record in pool.map(lambda shard: self._record(name, shard), self._shards(name)):
                if record is None:
                    continue
                shards.append(self._keep(record, manifest))
                places.update((token, (len(shards) - 1, i)) for i, token in enumerate(record.tokens))
                quarantined.update((q.token, q) for q in record.quarantined)
        members = tuple(dict.fromkeys(member for shard in shards for member in shard.members))
        encoded = {f"{s.name}.npy": s for s in manifest.targets if s.encoding not in (None, "scale")}
        scales = frozenset(f"{s.name}.npy" for s in manifest.targets if s.encoding == "scale")
        return _Column(manifest, tuple(shards), places, quarantined, members, encoded, scales)

    def _shards(self, name: str) -> Iterable[int]:
        """Shards to ask for: on a store, every one of the plan, since a list may not have the latest yet."""
        if self._volume.local_root is not None:
            return committed(self._volume, name)
        return range(int(self.manifest.plan["shards"]))

    def _record(self, name: str, shard: int) -> CommitRecord | None:
        try:
            return read_record(self._volume, name, shard)
        except MissingFileError:
            if self._volume.local_root is not None:
                raise
            return None

    def _keep(self, record: CommitRecord, manifest: ColumnManifest) -> _Shard:
        path = layout.tar(record.column, record.shard)
        where = self._volume.path(layout.record(record.column, record.shard))
        if record.dataset != self.digest or record.fingerprint != manifest.fingerprint:
            raise DatasetError(
                f"{where}: written for dataset {record.dataset[:12]}, fingerprint {record.fingerprint[:12]}; here they "
                f"are {self.digest[:12]}, {manifest.fingerprint[:12]}: the record belongs to another run"
            )
        if path not in record.files:
            raise DatasetError(f"{where}: names no file {path}")
        members = {name: np.array([self._place(m) for m in each], np.int64) for name, each in record.members.items()}
        members = {name: places.reshape(-1, 3) for name, places in members.items()}  # of no samples as well
        return _Shard(CommittedFile(record.shard, path, record.files[path]), record.tokens, members)

    def _place(self, member: Member) -> tuple[int, int, int]:
        checked = member.crc32c if self._config["check_members"] else None
        return member.offset, member.size, _UNCHECKED if checked is None else checked

    def _column(self, name: str) -> _Column:
        if name not in self._columns:
            raise AbsentError(f"{self.url}: no column {name!r} is open{_nearest(name, self._columns)}")
        return self._columns[name]

    def _values(self, token: str, name: str, wanted: Sequence[str] | None, raw: bool) -> list[_Value]:
        column = self._column(name)
        if token not in column.places:
            raise self._absent(token, name, column)
        which, place = column.places[token]
        shard = column.shards[which]
        if wanted is None:
            hidden = () if raw else column.scales
            wanted = [m.removesuffix(".npy") for m in column.members if m not in hidden]
        values = []
        for asked in wanted:
            member = asked if asked in shard.members else f"{asked}.npy"
            if member not in shard.members:
                hint = " (it stands in targets.zarr only)" if asked in self.specs(name) else ""
                known = _nearest(asked, [m.removesuffix(".npy") for m in column.members])
                raise AbsentError(f"{self.url}: column {name} has no {asked!r} in its tars{hint}{known}")
            spec = None if raw else column.encoded.get(member)
            names = (member,) if spec is None else tuple(f"{part}.npy" for part in parts(spec))
            places = [(m, *shard.members[m][place].tolist()) for m in names]
            found = tuple(_Member(m, ByteRange(shard.file, start, size), crc) for m, start, size, crc in places)
            values.append(_Value(name, asked, spec, found))
        return values

    def _parsed(self, data: memoryview | bytes, member: _Member, token: str) -> Any:
        file = member.place.file
        if member.crc32c != _UNCHECKED and (found := crc32c(data)) != member.crc32c:
            raise self._changed(member, token, found)
        where = f"shard {file.shard}, {file.path}: {token}.{member.name}"
        if member.name.endswith(".npy"):
            return load_npy(data, where)
        if member.name == "json" or member.name.endswith(".json"):
            try:
                return json.loads(bytes(data))
            except ValueError as error:
                raise DatasetError(f"{where}: not JSON ({error}); the file was changed") from error
        return bytes(data)

    def _changed(self, member: _Member, token: str, found: int) -> DigestError:
        file, copy = member.place.file, ""
        if self.cache is not None and self._volume.local_root is None:
            copy = f" If it is only the copy {self.cache.folder}/{file.digest.sha256} that was, delete that."
        return DigestError(
            f"shard {file.shard}, {self._volume.path(file.path)}: {token}.{member.name}: CRC-32C {found:08x}, its "
            f"commit record says {member.crc32c:08x}; the file was changed. Restore it, or delete the record and run "
            f"the job again; `make verify` lists all that is damaged.{copy}"
        )

    def _absent(self, token: str, name: str, column: _Column) -> AbsentError:
        """Why a token cannot be read: quarantined, planned but not committed yet, or unknown."""
        where = f"{self.url}: column {name}, token {token}"
        if token in column.quarantined:
            q = column.quarantined[token]
            return QuarantinedError(f"{where} was quarantined as {q.code}: {q.reason}", q.code, q.reason)
        planned = self.plan.table["token"].index(token).as_py()
        if planned >= 0:
            shard = self.plan.table["shard"][planned].as_py()
            return AbsentError(f"{where} is planned for shard {shard}, which is not committed; finish the run first")
        example = next(iter(column.places), "none")
        return AbsentError(f"{where} is in no plan of this dataset; it has {len(column.places)} tokens, e.g. {example}")


def _decoded(spec: TargetSpec, stored: Sequence[NDArray[Any]]) -> NDArray[Any]:
    values = decode(spec, dict(zip(parts(spec), stored, strict=True)))
    values.flags.writeable = False
    return values


def _nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean a, b?`` or ``; there are a, b, c``."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=2)
    return f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(names) or 'none'}"
