"""The plan file, `plan.parquet`: which scene stands in which row of which shard.

The rows of all generations, in order, are one plan. Who reads a dataset needs no more; how scenes are dealt to shards
is `pipeline.writing.plan`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from shards_schema.errors import DatasetError
from shards_schema.inputs.models import StrictModel
from shards_schema.tables import from_parquet, to_parquet

SCHEMA = pa.schema(
    [
        ("token", pa.string()),
        ("log", pa.string()),
        ("timestamp", pa.int64()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("start", pa.int32()),
    ]
)
"""`plan.parquet`: scene token, log name, microseconds, shard, row in the Zarr arrays, index of the window's first
frame in its log. Sorted by row."""

_CHUNK = 1 << 18
"""Rows that are text, to be hashed, at once."""

_SCENE = ("token", "log", "timestamp", "row", "start")


@dataclass(frozen=True, slots=True, order=True)
class SceneRef:
    """A scene as the plan knows it.

    Attributes:
        log: the log's name.
        timestamp: microseconds of the current frame.
        token: the scene's id (that of its current frame).
        start: index in the log of the window's first frame.
    """

    log: str
    timestamp: int
    token: str
    start: int


class PlanConfig(StrictModel):
    """How scenes become shards."""

    shard_size: int = Field(default=256, ge=1, le=1 << 20)
    """Rows a shard has at most; aim at one to three minutes of teacher time."""
    seed: int = 0
    """Of the order in which logs are dealt."""
    require: tuple[str, ...] = ()
    """Columns; only scenes that have every image that these ask for are planned."""


@dataclass(frozen=True, slots=True)
class PlannedScene:
    """A scene, and its row in the Zarr arrays."""

    ref: SceneRef
    row: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard of the plan: its scenes in row order."""

    shard: int
    scenes: tuple[PlannedScene, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards.

    Attributes:
        table: see `SCHEMA`.
        shards: how many.
        config: shard size and seed.
        digest: sha256 over every row, the shard size and the seed.
    """

    table: pa.Table
    shards: int
    config: PlanConfig
    digest: str
    _bounds: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    """First row of the table of each shard, and the end."""

    def __repr__(self) -> str:
        return f"Plan({self.samples} samples in {self.shards} shards; {self.config!r}, digest {self.digest[:12]})"

    def __post_init__(self) -> None:
        shards = self.table["shard"].to_numpy()
        object.__setattr__(self, "_bounds", np.searchsorted(shards, np.arange(self.shards + 1)))

    @classmethod
    def of(cls, table: pa.Table, config: PlanConfig) -> Plan:
        """The plan whose rows these are."""
        shards = int(table["shard"].to_numpy().max(initial=-1)) + 1
        return cls(table, shards, config, _digest(table, config))

    @property
    def samples(self) -> int:
        """Scenes planned."""
        return int(self.table.num_rows)

    def counts(self) -> list[int]:
        """Scenes of each shard."""
        return [int(n) for n in np.diff(self._bounds)]

    def shard(self, shard: int) -> ShardPlan:
        """The scenes of one shard."""
        first, last = self._bounds[shard : shard + 2].tolist()
        columns = (self.table[name].slice(first, last - first).to_pylist() for name in _SCENE)
        return ShardPlan(
            shard,
            tuple(
                PlannedScene(SceneRef(log=log, timestamp=timestamp, token=token, start=start), row)
                for token, log, timestamp, row, start in zip(*columns, strict=True)
            ),
        )

    def places(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Where rows of the Zarr arrays stand in `table`.

        Raises:
            DatasetError: a row is of no planned scene.
        """
        planned, asked = self.table["row"].to_numpy(), np.array(rows, np.int64)
        places = np.searchsorted(planned, asked)
        strange = np.flatnonzero(planned[np.minimum(places, len(planned) - 1)] != asked)
        if len(strange):
            raise DatasetError(f"row {asked[strange[0]]} belongs to no scene of the plan ({self.shards} shards)")
        return places

    def to_parquet(self) -> bytes:
        """`plan.parquet`."""
        return to_parquet(self.table)

    @classmethod
    def from_parquet(cls, data: bytes, config: PlanConfig, where: str) -> Plan:
        """The plan in a file.

        Raises:
            DatasetError: not a plan.
        """
        try:
            table = from_parquet(data).cast(SCHEMA)
        except (pa.ArrowException, ValueError, OSError, KeyError) as error:
            raise DatasetError(f"{where}: not a plan ({error})") from error
        return cls.of(table, config)


def joined(parts: Sequence[Plan]) -> Plan:
    """The generations of a plan, in order, as one; the digest is over the rows of all."""
    if len(parts) == 1:
        return parts[0]
    table = pa.concat_tables([part.table for part in parts]).combine_chunks()
    return Plan.of(table, parts[0].config)


def _digest(table: pa.Table, config: PlanConfig) -> str:
    """Over the rows as lines of text, ``token,log,timestamp,shard,row,start``."""
    digest = hashlib.sha256(f"{config.shard_size},{config.seed}\n".encode())
    for batch in table.to_batches(max_chunksize=_CHUNK):
        *columns, last = (batch.column(field.name).cast(pa.string()) for field in SCHEMA)
        lines = pc.binary_join_element_wise(*columns, pc.binary_join_element_wise(last, "", "\n"), ",")
        offsets = np.frombuffer(lines.buffers()[1], np.int32, len(lines) + 1, 4 * lines.offset)
        digest.update(memoryview(lines.buffers()[2])[offsets[0] : offsets[-1]])
    return digest.hexdigest()
