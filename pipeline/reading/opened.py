"""An open dataset below its face: where each sample lies, and its values. `Dataset` reads through it, and the stream.

What is asked for is first found, which reads nothing, and then taken. Between the two a stream tells the disk what to
expect, or brings whole tars into the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pipeline.reading.members import Column, Value, by_column, nearest, open_column
from pipeline.reading.values import Values
from pipeline.stores import generations
from pipeline.stores.cache import CacheConfig, CommittedFile
from pipeline.stores.ranges import Located, RangeReader, Span
from pipeline.stores.records import columns_of, read_manifest
from pipeline.stores.volume import Volume
from shards_schema.errors import AbsentError, QuarantinedError
from shards_schema.plan import Plan
from shards_schema.storage import decode, parts

Wanted = Mapping[str, Sequence[str] | None]
"""Column -> names, or None for all: a target (``l3_grid``) or a member as it stands in the tar (``cam_f0.jpg``)."""

Sample = dict[str, dict[str, Any]]
"""Column -> name -> value: an array (targets), parsed JSON (``json``), bytes (any other member)."""

Arrays = Literal["views", "owned", "unread"]
"""Read-only views of the mapped file; arrays with memory of their own; `values.Unread`, to be copied."""


class Found(NamedTuple):
    """What `Opened.find` found of a sample: all that has to be known to read it."""

    token: str
    columns: tuple[str, ...]
    values: tuple[Value, ...]

    @property
    def members(self) -> list[Located]:
        """All that is read of it."""
        return [member for value in self.values for member in value.members]


class Opened:
    """The index of a dataset's open columns, and their files; arguments and errors are those of `Dataset`.

    Attributes:
        url, cache: as they were given.
        volume: the dataset.
        manifest, digest: `dataset.json` and its seal.
        columns: the open ones by name.
        files: reads their tars.
    """

    def __init__(
        self,
        url: str,
        columns: Sequence[str] | None,
        *,
        check_digests: bool,
        check_members: bool,
        max_open: int,
        cache: CacheConfig | None,
    ) -> None:
        self.url, self.cache = url, cache
        self._files_config: dict[str, Any] = {"check_digests": check_digests, "max_open": max_open, "cache": cache}
        self.volume = Volume(url)
        self.manifest, self.digest = read_manifest(self.volume)
        names = columns_of(self.volume) if columns is None else columns
        local = self.volume.local_root is not None
        planned = None if local else generations.read(self.volume, self.manifest, self.digest).shards
        self.columns = {n: open_column(self.volume, n, url=url, dataset=self.digest, planned=planned) for n in names}
        self._values = Values(None if local else cache, checked=check_members)
        self.files = RangeReader(url, **self._files_config)

    def forked(self) -> Opened:
        """The same for a forked process: this index, but files, locks and store connections of its own."""
        child = copy.copy(self)
        child.volume = Volume(self.url)
        child.files = RangeReader(self.url, **self._files_config)
        return child

    @cached_property
    def plan(self) -> Plan:
        """See `Dataset.plan`."""
        return generations.read(self.volume, self.manifest, self.digest).plan(self.volume)

    def column(self, name: str) -> Column:
        """One of `columns`.

        Raises:
            AbsentError: no such column is open.
        """
        if name not in self.columns:
            raise AbsentError(f"{self.url}: no column {name!r} is open{nearest(name, self.columns)}")
        return self.columns[name]

    def find(self, token: str, targets: Wanted | None = None, *, raw: bool = False) -> Found:
        """Where what `Dataset.read` reads lies; the arguments are its own. Nothing is read for it.

        Raises:
            AbsentError: see `Dataset.read`.
        """
        wanted = dict.fromkeys(self.columns) if targets is None else by_column(targets)
        values: list[Value] = []
        for name, names in wanted.items():
            column = self.column(name)
            if token not in column.places:
                raise self._absent(token, name, column)
            values += column.find(token, names, raw=raw)
        return Found(token, tuple(wanted), tuple(values))

    def take(self, found: Found, arrays: Arrays = "views") -> Sample:
        """Read what was found.

        Raises:
            MissingFileError, DigestError, DatasetError: see `Dataset.read`; what is wrong in an `Unread` array comes
                out when that is copied.
        """
        spans = iter(self.files.open(found.members))
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

    def tars(self, columns: Sequence[str]) -> Mapping[int, Sequence[CommittedFile]]:
        """Shard -> its tars, in the order of `columns`.

        Raises:
            AbsentError: no such column is open.
        """
        found: dict[int, list[CommittedFile]] = {}
        for name in columns:
            for shard in self.column(name).shards:
                found.setdefault(shard.file.shard, []).append(shard.file)
        return found

    def _absent(self, token: str, name: str, column: Column) -> AbsentError:
        """Why a token cannot be read: quarantined, planned but not committed yet, or unknown."""
        where = f"{self.url}: column {name}, token {token}"
        if token in column.quarantined:
            q = column.quarantined[token]
            return QuarantinedError(f"{where} was quarantined as {q.code}: {q.reason}", q.code, q.reason)
        planned = self.plan.table["token"].index(token).as_py() if isinstance(token, str) else -1
        if planned >= 0:
            shard = self.plan.table["shard"][planned].as_py()
            return AbsentError(f"{where} is planned for shard {shard}, which is not committed; finish the run first")
        example = next(iter(column.places), "none")
        return AbsentError(f"{where} is in no plan of this dataset; it has {len(column.places)} tokens, e.g. {example}")
