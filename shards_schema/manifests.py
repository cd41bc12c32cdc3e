"""The documents that are written once and never edited: `dataset.json`, `plan.<n>.json` and `<column>/column.json`.

`dataset.json` says what was planned from which source, `plan.<n>.json` what a dataset that grew planned more;
`column.json` says what one column holds and who made it. A run that finds one of them with other content is refused,
with both values named: two runs are never mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from shards_schema.codecs import digest_of, seal, unseal
from shards_schema.commit import check_version, of_document
from shards_schema.errors import DatasetError, MismatchError
from shards_schema.layout import SCHEMA_VERSION
from shards_schema.specs import NAME, TargetSpec

ZarrMode = bool | Literal["view"]
"""Whether a dataset has its targets as Zarr too: in `targets.zarr`, or by references to the tars (`targets.view`)."""

ABSENT = "absent"
"""In the place of a value that one of two documents lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """`dataset.json`.

    Attributes:
        source: what the source says of itself (kind, root, split, filter), without credentials.
        plan: digest, samples, shards, shard_size, seed, unreadable_logs {log: reason}, not_found [token].
        zarr: whether targets stand in `targets.zarr` as well as in the tars, or are referred to there.
        synthetic: whether the frames are generated.
        notices: sentences that every report repeats, e.g. that targets come from random weights.
        code_version: of last-shards.
    """

    source: Mapping[str, Any]
    plan: Mapping[str, Any]
    zarr: ZarrMode
    synthetic: bool
    notices: tuple[str, ...]
    code_version: str

    def to_bytes(self) -> bytes:
        """The sealed document."""
        return seal(
            {
                "format": "last-shards",
                "schema_version": SCHEMA_VERSION,
                "synthetic": self.synthetic,
                "notices": list(self.notices),
                "source": dict(self.source),
                "plan": dict(self.plan),
                "zarr": self.zarr,
                "code_version": self.code_version,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> DatasetManifest:
        """The manifest in a file.

        Raises:
            DatasetError: damaged, not ours, or of another schema version.
        """
        document = unseal(data, where)
        if document.get("format") != "last-shards":
            raise DatasetError(f"{where}: not a last-shards dataset (format {document.get('format')!r})")
        check_version(document, where)
        with _complete(where):
            return of_document(cls, document, notices=tuple(document["notices"]))

    def refuse_other(self, recorded: DatasetManifest, where: str) -> None:
        """Refuse to go on in a dataset that was planned otherwise.

        Raises:
            MismatchError: the plan or the source differs; both values are named.
        """
        for what in ("shard_size", "seed", "digest"):
            if recorded.plan.get(what) != self.plan.get(what):
                raise MismatchError(
                    f"{where}: plan.{what}: {recorded.plan.get(what)} on disk, {self.plan.get(what)} in this run; "
                    "give the same source, filter, seed and shard size, or another out"
                )
        for what in ("synthetic", "zarr"):
            if getattr(recorded, what) != getattr(self, what):
                raise MismatchError(
                    f"{where}: {what} is {getattr(recorded, what)} on disk, {getattr(self, what)} in this run"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationManifest:
    """`plan.<n>.json`: what the n-th growth of a dataset added.

    Attributes:
        number: n, from 1 on.
        dataset: seal of `dataset.json`.
        before: seal of the generation before; of `dataset.json` for the first.
        source: what the source said of itself then.
        plan: digest, samples and shards of what was added, first_shard, shard_size, seed; and of the whole source as
            it was then unreadable_logs, not_found, skipped.
        code_version: of last-shards.
    """

    number: int
    dataset: str
    before: str
    source: Mapping[str, Any]
    plan: Mapping[str, Any]
    code_version: str

    def to_bytes(self) -> bytes:
        """The sealed document."""
        return seal(
            {
                "format": "last-shards",
                "schema_version": SCHEMA_VERSION,
                "generation": self.number,
                "dataset": self.dataset,
                "before": self.before,
                "source": dict(self.source),
                "plan": dict(self.plan),
                "code_version": self.code_version,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> GenerationManifest:
        """The manifest in a file.

        Raises:
            DatasetError: damaged, or of another schema version.
        """
        document = unseal(data, where)
        check_version(document, where)
        with _complete(where):
            return of_document(cls, document, number=document["generation"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnManifest:
    """`<column>/column.json`.

    Attributes:
        column: its name.
        targets: the arrays of a sample (for `samples` they stand in Zarr only; its tar has JSON and JPEG members).
        provenance: everything that decides the bits of the output; the fingerprint is over it and the targets.
        random_weights: whether a network with random weights made it.
        config: the config as it was given (with the weights' repository and revision); told, not compared.
        environment: versions of the libraries that the column was begun with; told, not compared.
    """

    column: str
    targets: tuple[TargetSpec, ...]
    provenance: Mapping[str, Any]
    random_weights: bool
    config: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """sha256 over name, provenance and targets: what a commit record names its column by."""
        return self._digest([spec.to_json() for spec in self.targets])

    @property
    def identity(self) -> str:
        """The same without the meanings in words: outputs may be mixed if and only if it is equal."""
        return self._digest(self._unworded())

    def _digest(self, targets: list[dict[str, Any]]) -> str:
        return digest_of({"column": self.column, "provenance": dict(self.provenance), "targets": targets})

    def _unworded(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in spec.to_json().items() if k != "meaning"} for spec in self.targets]

    def to_bytes(self) -> bytes:
        """The sealed document."""
        return seal(
            {
                "schema_version": SCHEMA_VERSION,
                "column": self.column,
                "fingerprint": self.fingerprint,
                "random_weights": self.random_weights,
                "targets": [spec.to_json() for spec in self.targets],
                "provenance": dict(self.provenance),
                "config": dict(self.config),
                "environment": dict(self.environment),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> ColumnManifest:
        """The manifest in a file.

        Raises:
            DatasetError: damaged, or of another schema version.
        """
        document = unseal(data, where)
        check_version(document, where)
        with _complete(where):
            if not NAME.match(document["column"]):  # it becomes a folder
                raise ValueError(f"a column is named [a-z][a-z0-9_]*, found {document['column']!r:.80}")
            return of_document(cls, document, targets=tuple(map(TargetSpec.from_json, document["targets"])))

    def refuse_other(self, recorded: ColumnManifest, where: str) -> None:
        """Refuse to go on in a column that another teacher began.

        Raises:
            MismatchError: the identity differs; the first differing entries are named with both values.
        """
        if recorded.identity == self.identity:
            return
        ours = {"provenance": dict(self.provenance), "targets": self._unworded()}
        theirs = {"provenance": dict(recorded.provenance), "targets": recorded._unworded()}
        changes = "; ".join(list(differences(theirs, ours))[:6])
        raise MismatchError(
            f"{where}: column {self.column!r} was begun with fingerprint {recorded.fingerprint[:12]}, this run has "
            f"{self.fingerprint[:12]} ({changes}); give the same config and weights, or another out"
        )


@contextmanager
def _complete(where: str) -> Iterator[None]:
    """Turn a missing or impossible field into a `DatasetError` that names it."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: not what this release writes ({type(error).__name__}: {error})") from error


def differences(recorded: Any, found: Any) -> list[str]:
    """Where two JSON values differ, as ``path: recorded -> found``."""
    return [f"{path}: {a} -> {b}" for path, a, b in differing(recorded, found)]


def differing(recorded: Any, found: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ: the path, and both values, `ABSENT` where one has none."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        out: list[tuple[str, Any, Any]] = []
        for key in sorted(recorded.keys() | found.keys()):
            inner = f"{path}.{key}" if path else key
            out += differing(recorded.get(key, ABSENT), found.get(key, ABSENT), inner)
        return out
    return [] if recorded == found else [(path, recorded, found)]
