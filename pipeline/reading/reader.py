"""Random access to the committed shards of a dataset: a token and the names of what is wanted in, arrays out.

Opening reads `dataset.json`, `column.json` and the commit records of the asked-for columns, and nothing else
(`pipeline.reading.members`). On a local disk arrays are read-only views of the mapped tar, with no copy, or are read
straight into memory of their own (`owned`); targets that are stored encoded are decoded to float32. On any other fsspec
store a read is one batch of range requests. Only committed shards exist here, and a fault is an error that names shard
and file, never a sample less. Every member is held against the CRC-32C in its commit record before its value is handed
out, so that a bit that changed after the commit is an error as well.

    dataset = Dataset("out/demo")
    for token in dataset.tokens("samples", "vggt"):              # the join: written in both, in plan order
        sample = dataset.read(token, {"samples": ["json", "cam_f0.jpg"], "vggt": ["l3_grid", "depth"]})
        sample["vggt"]["l3_grid"], sample["samples"]["json"]["future"]["trajectory"], sample["samples"]["cam_f0.jpg"]
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from pipeline.reading.members import nearest, several
from pipeline.reading.opened import Opened, Sample, Wanted
from pipeline.stores import statistics
from pipeline.stores.cache import CacheConfig
from shards_schema import layout
from shards_schema.commit import Quarantined
from shards_schema.errors import AbsentError, MissingFileError
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import Plan
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics
from shards_schema.storage import read_specs


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
        url, cache: as they were given, a path as text.
        manifest: `dataset.json`.
        digest: its seal.

    Raises:
        MissingFileError: there is no dataset, or no such column, at `url`.
        DatasetError: a document is damaged, or a record belongs to another dataset or column.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        columns: Iterable[str] | None = None,
        check_digests: bool = False,
        check_members: bool = True,
        max_open: int = 64,
        cache: CacheConfig | None = None,
    ) -> None:
        self._config: dict[str, Any] = {
            "columns": None if columns is None else several(columns),
            "check_digests": check_digests,
            "check_members": check_members,
            "max_open": max_open,
            "cache": cache,
        }
        self.url, self.cache = os.fspath(url), cache
        self._opened = Opened(self.url, **self._config)
        self.manifest, self.digest = self._opened.manifest, self._opened.digest
        self._statistics: dict[str, statistics.Statistics] = {}

    def __repr__(self) -> str:
        columns = ", ".join(f"{n} {len(c.places)}" for n, c in self._opened.columns.items())
        plan = self.manifest.plan
        return f"Dataset({self.url!r}: begun with {plan['samples']} scenes in {plan['shards']} shards; {columns})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Dataset, self.url, **self._config), ()

    def __copy__(self) -> Dataset:  # for a forked process
        child = object.__new__(Dataset)
        child.__dict__ |= self.__dict__ | {"_opened": self._opened.forked()}
        return child

    @property
    def columns(self) -> Mapping[str, ColumnManifest]:
        """The open columns and their `column.json`."""
        return {name: column.manifest for name, column in self._opened.columns.items()}

    def specs(self, column: str) -> Mapping[str, TargetSpec]:
        """Targets of a column by name, as `read` gives them (`columns` has them as they are stored).

        Those of `samples` stand in Zarr; its tar has the members of `members`.

        Raises:
            AbsentError: no such column.
        """
        return {spec.name: spec for spec in read_specs(self._opened.column(column).manifest.targets)}

    def statistics(self, column: str, target: str) -> ChannelStatistics:
        """Mean, std, min and max of each channel of a target, over every sample that is written in the column.

        Raises:
            AbsentError: no such column or target, or one without statistics: it has no channel axis, or the run is not
                finished.
            DatasetError: the file is damaged.
        """
        path, volume = layout.statistics(self._opened.column(column).manifest.column), self._opened.volume
        if column not in self._statistics:
            try:
                self._statistics[column] = statistics.parse(volume.read(path), volume.path(path))
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
        return self._opened.column(column).members

    def tokens(self, *columns: str) -> tuple[str, ...]:
        """The tokens that are written in every one of `columns` (at least one), in plan order.

        Raises:
            AbsentError: no such column.
        """
        first, *others = [self._opened.column(name) for name in columns or [*self._opened.columns][:1]]
        every = (token for shard in first.shards for token in shard.tokens)
        return tuple(token for token in every if all(token in other.places for other in others))

    def quarantined(self, column: str) -> Mapping[str, Quarantined]:
        """The tokens of committed shards that a column could not write, with the reasons.

        Raises:
            AbsentError: no such column.
        """
        return self._opened.column(column).quarantined

    @property
    def plan(self) -> Plan:
        """Every sample that was asked for, with its log, of all generations; read when first used.

        Raises:
            DatasetError: a document is damaged; a table is missing, damaged, or not the one that its document names.
        """
        return self._opened.plan

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
        return self._opened.take(self._opened.find(token, targets, raw=raw), "owned" if owned else "views")


def opened(dataset: Dataset) -> Opened:
    """What a dataset reads through, for who finds first and takes later: the stream."""
    return dataset._opened
