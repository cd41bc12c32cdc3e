"""Random access to the committed shards of a dataset: a token and the names of what is wanted in, arrays out.

Opening reads `dataset.json`, `column.json` and the commit records of the asked-for columns, and nothing else
(`pipeline.reading.members`). On a local disk arrays are read-only views of the mapped tar, with no copy, or are
read straight into memory of their own or of the caller's (`owned`, `take`); targets that are stored encoded are decoded
to float32. On any other fsspec store a read is one batch of range requests. Only committed shards exist here, and a
fault is an error that names shard and file, never a sample less. Every member is held against the CRC-32C in its commit
record before its value is handed out, so that a bit that changed after the commit is an error as well.

    dataset = Dataset("out/demo")
    for token in dataset.tokens("samples", "vggt"):              # the join: written in both, in plan order
        sample = dataset.read(token, {"samples": ["json", "cam_f0.jpg"], "vggt": ["l3_grid", "depth"]})
        sample["vggt"]["l3_grid"], sample["samples"]["json"]["future"]["trajectory"], sample["samples"]["cam_f0.jpg"]
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

from pipeline.reading.members import Column, Value, nearest, open_column, several
from pipeline.reading.values import Values
from pipeline.stores import generations, statistics
from pipeline.stores.cache import CacheConfig
from pipeline.stores.ranges import RangeReader, Span
from pipeline.stores.records import columns_of, read_manifest
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.commit import Quarantined
from shards_schema.errors import AbsentError, MissingFileError, QuarantinedError
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import Plan
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics
from shards_schema.storage import decode, parts, read_specs

Wanted = Mapping[str, Sequence[str] | None]
"""Column -> names, or None for all: a target (``l3_grid``) or a member as it stands in the tar (``cam_f0.jpg``)."""

Sample = dict[str, dict[str, Any]]
"""Column -> name -> value: an array (targets), parsed JSON (``json``), bytes (any other member)."""

Arrays = Literal["views", "owned", "unread"]
"""Read-only views of the mapped file; arrays with memory of their own; `values.Unread`, to be copied."""


class Found(NamedTuple):
    """What `Dataset.find` found of a sample: all that has to be known to read it."""

    token: str
    columns: tuple[str, ...]
    values: tuple[Value, ...]


class Dataset:
    """A committed dataset, open for reading. Safe to share between threads; a pickled one opens itself again.

    Args:
        url: a local path or any fsspec URL.
        columns: the columns to open; None is all. Those not named are not touched.
        check_digests: hash each tar when it is first read from, and compare with its commit record: what no member's
            checksum says (headers, padding, somebody who means harm).
        check_members: compare each member with its checksum, on every read. Some 40 to 70 us for a MB, which is little
            beside a JPEG to decode and much beside arrays that are mapped and lie in memory already.
        max_open: tars that stay open at once (local disks), whatever is waiting to be read; views of older ones stay
            good. Fewer where the process may open no more.
        cache: keeps whole tars of a remote dataset on a local disk, so that each is fetched once; None is a request for
            each member that is read. See `pipeline.stores.cache`.

    Attributes:
        url, cache: as they were given.
        manifest: `dataset.json`.
        digest: its seal.

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
        names = None if columns is None else several(columns)
        self.url, self.cache = url, cache
        self._files_config: dict[str, Any] = {"check_digests": check_digests, "max_open": max_open, "cache": cache}
        self._config: dict[str, Any] = {"columns": names, "check_members": check_members, **self._files_config}
        self._volume = Volume(url)
        self.manifest, self.digest = read_manifest(self._volume)
        opened = columns_of(self._volume) if names is None else names
        local = self._volume.local_root is not None
        planned = None if local else generations.read(self._volume, self.manifest, self.digest).shards
        self._columns = {n: open_column(self._volume, n, url=url, dataset=self.digest, planned=planned) for n in opened}
        self._values = Values(None if local else cache, checked=check_members)
        self._statistics: dict[str, statistics.Statistics] = {}
        self._files = RangeReader(url, **self._files_config)

    def __repr__(self) -> str:
        columns = ", ".join(f"{n} {len(c.places)}" for n, c in self._columns.items())
        plan = self.manifest.plan
        return f"Dataset({self.url!r}: begun with {plan['samples']} scenes in {plan['shards']} shards; {columns})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Dataset, self.url, **self._config), ()

    def forked(self) -> Dataset:
        """The same dataset for a forked process: this index, but files, locks and store connections of its own."""
        child = copy.copy(self)
        child._volume = Volume(self.url)
        child._files = RangeReader(self.url, **self._files_config)
        return child

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
            AbsentError: no such column or target, or one without statistics: it has no channel axis, or the run is not
                finished.
            DatasetError: the file is damaged.
        """
        path = layout.statistics(self._column(column).manifest.column)
        if column not in self._statistics:
            try:
                self._statistics[column] = statistics.parse(self._volume.read(path), self._volume.path(path))
            except MissingFileError as error:
                raise AbsentError(
                    f"{self.url}: column {column} has no statistics ({error}); they are written when a run ends, for "
                    "targets with a channel axis"
                ) from error
        found = self._statistics[column]
        if target not in found:
            raise AbsentError(f"{self.url}: column {column} has no statistics of {target!r}{nearest(target, found)}")
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
        """Every sample that was asked for, with its log, of all generations; read when first used.

        Raises:
            DatasetError: a document is damaged; a table is missing, damaged, or not the one that its document names.
        """
        return generations.read(self._volume, self.manifest, self.digest).plan(self._volume)

    def read(self, token: str, targets: Wanted | None = None, *, raw: bool = False, owned: bool = False) -> Sample:
        """One sample, as much of it as is asked for.

        Args:
            token: of a scene.
            targets: what is wanted of which column; None is everything of every open column.
            raw: give the arrays as they are stored, codes and scales, and decode nothing.
            owned: give arrays with memory of their own, which may be written to. That is faster than to copy a view, as
                the checksum then is that of the copy, which is in the cache.

        Returns:
            Column -> name (as asked) -> value. Arrays are read-only and keep their file mapped while they live, but for
            `owned`.

        Raises:
            AbsentError: no such token, column or target; `QuarantinedError` where the token was quarantined.
            MissingFileError, DigestError, DatasetError: a tar is gone, changed or cut; shard and file are named, and
                the member that is not what was committed.
        """
        return self.take(self.find(token, targets, raw=raw), "owned" if owned else "views")

    def find(self, token: str, targets: Wanted | None = None, *, raw: bool = False) -> Found:
        """Where what `read` reads lies; the arguments are its own. Nothing is read for it.

        Raises:
            AbsentError: see `read`.
        """
        wanted = dict.fromkeys(self._columns) if targets is None else targets
        values: list[Value] = []
        for name, names in wanted.items():
            column = self._column(name)
            if token not in column.places:
                raise self._absent(token, name, column)
            values += column.find(token, names, raw=raw)
        return Found(token, tuple(wanted), tuple(values))

    def take(self, found: Found, arrays: Arrays = "views") -> Sample:
        """Read what was found.

        Raises:
            MissingFileError, DigestError, DatasetError: see `read`; what is wrong in an `Unread` array comes out when
                that is copied.
        """
        spans = iter(self._files.open([member for value in found.values for member in value.members]))
        sample: Sample = {column: {} for column in found.columns}
        for value in found.values:
            sample[value.column][value.asked] = self._value(value, [next(spans) for _ in value.members], found, arrays)
        return sample

    def _value(self, value: Value, spans: Sequence[Span], found: Found, arrays: Arrays) -> Any:
        first = value.members[0]
        if value.spec is not None:
            stored = [self._values.array(s, m, found.token) for s, m in zip(spans, value.members, strict=True)]
            decoded = decode(value.spec, dict(zip(parts(value.spec), stored, strict=True)))
            decoded.flags.writeable = arrays == "owned"
            return decoded
        if not first.name.endswith(".npy"):
            return self._values.other(spans[0], first, found.token)
        if arrays == "views":
            return self._values.array(spans[0], first, found.token)
        unread = self._values.unread(spans[0], first, found.token)
        return unread if arrays == "unread" else unread.owned()

    def expect(self, found: Iterable[Found]) -> None:
        """Begin to read samples that will be taken next: a hint for local disks, which then read them at once.

        Raises:
            DatasetError: what `take` would raise.
        """
        for one in found:
            self._files.expect([member for value in one.values for member in value.members])

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

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            raise AbsentError(f"{self.url}: no column {name!r} is open{nearest(name, self._columns)}")
        return self._columns[name]

    def _absent(self, token: str, name: str, column: Column) -> AbsentError:
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
