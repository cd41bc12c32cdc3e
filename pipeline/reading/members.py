"""Where each member of each committed sample lies: commit records in, byte ranges with checksums out.

A column is opened from its `column.json` and the commit records of its shards, and from nothing else; after that a
sample is found without a directory listing, an index file or a tar parser. Kept of a record: its tokens, and three
int64 for each member, so some 150 bytes a (sample, column). On a local disk records are read one after the other (their
JSON is parsed under the GIL, where threads only wait for each other); on a store several are asked for at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.cache import CommittedFile
from pipeline.stores.ranges import Located
from pipeline.stores.records import columns_of, committed, read_record
from pipeline.stores.threads import map_ahead
from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.commit import CommitRecord, Quarantined
from shards_schema.errors import AbsentError, DatasetError, MissingFileError
from shards_schema.manifests import ColumnManifest
from shards_schema.specs import TargetSpec
from shards_schema.storage import parts, read_specs

_REQUESTS = 8
"""Records that are asked of a store at once."""


class Value(NamedTuple):
    """One thing that was asked for: of which column, under which name, and the members that it is made of.

    `spec` is that of what is stored, for a target that has to be decoded; else None, and there is one member.
    """

    column: str
    asked: str
    spec: TargetSpec | None
    members: tuple[Located, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """What is kept of a commit record: its tar, its tokens, and for each member int64 [n, 3]: offset, size, CRC-32C."""

    file: CommittedFile
    tokens: tuple[str, ...]
    members: Mapping[str, NDArray[np.int64]]

    def located(self, name: str, place: int) -> Located:
        """A member of the sample at `place` of `tokens`."""
        return Located(self.file, name, *self.members[name][place].tolist())


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its shards in order, and where each token lies, (place in `shards`, place in the shard).

    Attributes:
        where: dataset and column, for messages.
        members: all that its tars have, as it is called there.
        encoded: member -> spec of what is stored, of the targets that are decoded when they are read.
        scales: members that are only part of others.
    """

    where: str
    manifest: ColumnManifest
    shards: tuple[Shard, ...]
    places: Mapping[str, tuple[int, int]]
    quarantined: Mapping[str, Quarantined]
    members: tuple[str, ...]
    encoded: Mapping[str, TargetSpec]
    scales: frozenset[str]

    def find(self, token: str, wanted: Sequence[str] | None, *, raw: bool) -> Iterator[Value]:
        """What is asked of one sample.

        Args:
            token: one of `places`.
            wanted: targets or members; None is all.
            raw: as they are stored, codes and scales.

        Raises:
            AbsentError: there is no such target or member.
        """
        which, place = self.places[token]
        shard = self.shards[which]
        every = (m.removesuffix(".npy") for m in self.members if raw or m not in self.scales)
        for asked in every if wanted is None else several(wanted):
            member = asked if asked in shard.members else f"{asked}.npy"
            if member not in shard.members:
                raise self._unknown(asked)
            spec = None if raw else self.encoded.get(member)
            names = (member,) if spec is None else [f"{part}.npy" for part in parts(spec)]
            yield Value(self.manifest.column, asked, spec, tuple([shard.located(name, place) for name in names]))

    def _unknown(self, asked: str) -> AbsentError:
        in_zarr = any(spec.name == asked for spec in read_specs(self.manifest.targets))
        hint = " (it stands in targets.zarr only)" if in_zarr else ""
        known = nearest(asked, [m.removesuffix(".npy") for m in self.members])
        return AbsentError(f"{self.where} has no {asked!r} in its tars{hint}{known}")


def open_column(volume: Volume, name: str, *, url: str, dataset: str, planned: int | None) -> Column:
    """A column and its committed shards.

    Args:
        volume: the dataset.
        name: of the column.
        url: the dataset as its user calls it, for messages.
        dataset: seal of `dataset.json`.
        planned: on a store, how many shards the plan has: each is asked for, since a list may not have the latest yet.
            None is a local disk, whose list does.

    Raises:
        MissingFileError: there is no such column.
        DatasetError: a document is damaged, or a record belongs to another dataset or column.
    """
    path = layout.column_json(name)
    try:
        manifest = ColumnManifest.from_bytes(volume.read(path), volume.path(path))
    except MissingFileError as error:
        known = nearest(name, columns_of(volume))
        raise MissingFileError(f"{url}: no column {name!r}: {error}{known}") from error
    shards: list[Shard] = []
    places: dict[str, tuple[int, int]] = {}
    quarantined: dict[str, Quarantined] = {}
    for record in _records(volume, name, planned):
        places.update((token, (len(shards), i)) for i, token in enumerate(record.tokens))
        quarantined.update((q.token, q) for q in record.quarantined)
        shards.append(_keep(record, dataset, manifest.fingerprint, volume))
    return Column(
        where=f"{url}: column {name}",
        manifest=manifest,
        shards=tuple(shards),
        places=places,
        quarantined=quarantined,
        members=tuple(dict.fromkeys(member for shard in shards for member in shard.members)),
        encoded={f"{s.name}.npy": s for s in manifest.targets if s.encoding not in (None, "scale")},
        scales=frozenset(f"{s.name}.npy" for s in manifest.targets if s.encoding == "scale"),
    )


def _records(volume: Volume, column: str, planned: int | None) -> Iterator[CommitRecord]:
    if planned is None:
        return (read_record(volume, column, shard) for shard in committed(volume, column))

    def asked(shard: int) -> CommitRecord | None:
        try:
            return read_record(volume, column, shard)
        except MissingFileError:
            return None

    return filter(None, map_ahead(asked, range(planned), threads=_REQUESTS))


def _keep(record: CommitRecord, dataset: str, fingerprint: str, volume: Volume) -> Shard:
    path, where = layout.tar(record.column, record.shard), volume.path(layout.record(record.column, record.shard))
    if record.dataset != dataset or record.fingerprint != fingerprint:
        raise DatasetError(
            f"{where}: written for dataset {record.dataset[:12]}, fingerprint {record.fingerprint[:12]}; here they are "
            f"{dataset[:12]}, {fingerprint[:12]}: the record belongs to another run"
        )
    if path not in record.files:
        raise DatasetError(f"{where}: names no file {path}")
    members = {  # [n, 3] of no samples as well
        name: np.array(each, np.int64).reshape(-1, 3) for name, each in record.members.items()
    }
    file = CommittedFile(record.shard, path, record.files[path], f"shard {record.shard}, {volume.path(path)}")
    return Shard(file, record.tokens, members)


def by_column(targets: Mapping[str, Sequence[str] | None]) -> Mapping[str, Sequence[str] | None]:
    """The targets that somebody asked for, each under its column.

    Raises:
        AbsentError: they are given in another way.
    """
    if not isinstance(targets, Mapping):
        raise AbsentError(
            f"targets are asked for by column, as {{'vggt': ['l3_grid']}} or {{'vggt': None}}, got {targets!r}"
        )
    return targets


def several(names: Iterable[str]) -> tuple[str, ...]:
    """Names that somebody gave; one text would be taken for as many names as it has letters.

    Raises:
        AbsentError: it is one.
    """
    if isinstance(names, str):
        raise AbsentError(f"columns and targets are lists of names, and {names!r} is one text; write [{names!r}]")
    return tuple(names)


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean a, b?`` or ``; there are a, b, c``."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=2)
    return f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(names) or 'none'}"
