"""The commit record: one sealed JSON a (shard, column), written last.

A shard exists when, and only when, its record does; a record names every file of the shard with size and digest, and
every member of its tar with offset, size and checksum, so that a reader needs neither a directory listing nor a tar
parser, and sees a changed bit in what it hands out without reading the rest of the file.

    {"schema_version": 1, "column": "vggt", "shard": 0,
     "dataset": "<seal of dataset.json>", "fingerprint": "<of column.json>",
     "planned": 64, "written": 63,
     "quarantined": [{"token": ..., "row": 17, "code": "image_truncated", "reason": "..."}],
     "files": {"vggt/000000.tar": {"size": 158720, "sha256": "..."}, "targets.zarr/vggt/l23_grid/c/0/0/0/0/0": {...},
               "vggt/000000.stats.parquet": {...}},
     "tokens": [...], "rows": [...],                                  # the written ones, in order
     "members": {"l23_grid.npy": [[offset, size, crc32c], ...], ...}, # of the data, aligned with tokens
     "sha256": "..."}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

from shards_schema.codecs import seal, unseal
from shards_schema.errors import DatasetError
from shards_schema.layout import SCHEMA_VERSION

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes and sha256 (hexadecimal) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A planned sample that could not be written, and why (see `errors.SampleError`). `row` is its row in Zarr."""

    token: str
    row: int
    code: str
    reason: str


class Member(NamedTuple):
    """The data of one member of a tar: its first byte there, its bytes, and their CRC-32C as an unsigned number."""

    offset: int
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """What one shard of one column holds; see the module for the form on disk.

    Attributes:
        dataset: seal of `dataset.json`, which holds the plan's digest.
        fingerprint: of the column; outputs of two fingerprints are never mixed.
        files: path in the dataset -> size and digest.
        tokens: tokens written, in the order of the tar.
        rows: their rows in the Zarr arrays.
        members: member extension (``l23_grid.npy``) -> where its data lies in the tar, aligned with `tokens`.
    """

    column: str
    shard: int
    dataset: str
    fingerprint: str
    planned: int
    quarantined: tuple[Quarantined, ...]
    files: Mapping[str, FileDigest]
    tokens: tuple[str, ...]
    rows: tuple[int, ...]
    members: Mapping[str, tuple[Member, ...]]

    @property
    def written(self) -> int:
        """Samples in the shard."""
        return len(self.tokens)

    @property
    def size(self) -> int:
        """Bytes of all files of the shard, the record itself not counted."""
        return sum(file.size for file in self.files.values())

    def check(self) -> None:
        """Closed accounting: planned = written + quarantined, no token twice, each member for each.

        Raises:
            DatasetError: the record contradicts itself.
        """
        where = f"commit record of column {self.column}, shard {self.shard}"
        if self.planned != self.written + len(self.quarantined):
            raise DatasetError(
                f"{where}: planned {self.planned}, written {self.written}, quarantined {len(self.quarantined)}"
            )
        every = [*self.tokens, *(q.token for q in self.quarantined)]
        if len(set(every)) != len(every):
            raise DatasetError(f"{where}: a token stands in it twice")
        if len(self.rows) != self.written or any(len(m) != self.written for m in self.members.values()):
            raise DatasetError(f"{where}: rows or members are not one for each of the {self.written} tokens")

    def to_bytes(self) -> bytes:
        """The sealed document."""
        self.check()
        return seal(
            {
                "schema_version": SCHEMA_VERSION,
                "column": self.column,
                "shard": self.shard,
                "dataset": self.dataset,
                "fingerprint": self.fingerprint,
                "planned": self.planned,
                "written": self.written,
                "quarantined": [
                    {"token": q.token, "row": q.row, "code": q.code, "reason": q.reason} for q in self.quarantined
                ],
                "files": {path: {"size": f.size, "sha256": f.sha256} for path, f in sorted(self.files.items())},
                "tokens": list(self.tokens),
                "rows": list(self.rows),
                "members": {name: list(members) for name, members in sorted(self.members.items())},
            },
            compact=True,
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> CommitRecord:
        """The record in a file.

        Raises:
            DatasetError: damaged, of another schema version, or contradicting itself.
        """
        document = unseal(data, where)
        check_version(document, where)
        try:
            record = of_document(
                cls,
                document,
                quarantined=tuple(Quarantined(**q) for q in document["quarantined"]),
                files={path: FileDigest(**f) for path, f in document["files"].items()},
                tokens=tuple(document["tokens"]),
                rows=tuple(document["rows"]),
                members={k: tuple(Member(*m) for m in v) for k, v in document["members"].items()},
            )
            record.check()
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{where}: not a commit record ({type(error).__name__}: {error})") from error
        return record


def of_document(kind: type[Kind], document: Mapping[str, Any], **made: Any) -> Kind:
    """A dataclass of a document's values of the same names; `made` are those that JSON has in another form.

    Raises:
        KeyError: the document lacks one.
    """
    return kind(**{f.name: document[f.name] for f in fields(kind) if f.name not in made}, **made)  # type: ignore[arg-type]


def check_version(document: Mapping[str, Any], where: str) -> None:
    """Refuse a document of another schema version.

    Raises:
        DatasetError: it is not of `layout.SCHEMA_VERSION`.
    """
    if (found := document.get("schema_version")) != SCHEMA_VERSION:
        raise DatasetError(
            f"{where}: schema version {found}, this code reads {SCHEMA_VERSION}; use the matching release"
        )
