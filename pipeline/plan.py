"""The plan: which scene goes into which row of which shard, fixed before any work.

A pure function of the scene list, the seed and the shard size. The scenes of a log stay together, in time order,
because their windows share frames and a worker that has the whole run decodes each JPEG once; a log with more scenes
than a shard holds is cut into equal pieces. The pieces are dealt in the order of a seeded hash (so that a shard mixes
logs, which shuffling readers need) to the fullest open shard that still has room, and what little room is left over
stays empty: every shard owns `shard_size` rows of the Zarr arrays, and row = shard * shard_size + place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.sources.base import SceneRef
from pipeline.tables import from_parquet, to_parquet
from shards_schema.errors import ConfigError, DatasetError

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


class PlanConfig(BaseModel):
    """How scenes become shards.

    Attributes:
        shard_size: rows a shard has at most; aim at one to three minutes of teacher time.
        seed: of the order in which logs are dealt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_size: int = Field(default=256, ge=1)
    seed: int = 0


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

    @property
    def samples(self) -> int:
        """Scenes planned."""
        return int(self.table.num_rows)

    def counts(self) -> list[int]:
        """Scenes of each shard."""
        return [int(n) for n in np.bincount(self.table["shard"].to_numpy(), minlength=self.shards)]

    def shard(self, shard: int) -> ShardPlan:
        """The scenes of one shard."""
        column = self.table["shard"].to_numpy()
        first, last = np.searchsorted(column, [shard, shard + 1])
        rows = self.table.slice(int(first), int(last - first)).to_pylist()
        return ShardPlan(
            shard,
            tuple(
                PlannedScene(
                    SceneRef(log=r["log"], timestamp=r["timestamp"], token=r["token"], start=r["start"]), r["row"]
                )
                for r in rows
            ),
        )

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
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, OSError, KeyError) as error:
            raise DatasetError(f"{where}: not a plan ({error})") from error
        shards = int(table["shard"].to_numpy().max(initial=-1)) + 1
        return cls(table, shards, config, _digest(table, config))


def make_plan(refs: Sequence[SceneRef], config: PlanConfig) -> Plan:
    """Deal scenes to shards.

    Raises:
        ConfigError: there are no scenes, or a token stands twice.
    """
    ordered = sorted(refs)
    if not ordered:
        raise ConfigError("no scenes to plan: look at source.root, source.split and source.filter")
    if len({ref.token for ref in ordered}) != len(ordered):
        seen: set[str] = set()
        twice = next(ref.token for ref in ordered if ref.token in seen or seen.add(ref.token))  # type: ignore[func-returns-value]
        raise ConfigError(f"token {twice} stands for two scenes; tokens name samples and must be unique")
    shards = _deal(sorted(_pieces(ordered, config.shard_size), key=lambda p: _order(config.seed, p)), config.shard_size)
    rows = [
        (ref.token, ref.log, ref.timestamp, number, number * config.shard_size + place, ref.start)
        for number, shard in enumerate(shards)
        for place, ref in enumerate(shard)
    ]
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
        schema=SCHEMA,
    )
    return Plan(table, len(shards), config, _digest(table, config))


Piece = tuple[SceneRef, ...]


def _pieces(ordered: Sequence[SceneRef], size: int) -> Iterator[Piece]:
    """The scenes of each log, cut into the fewest equal pieces that fit into a shard."""
    for _, group in groupby(ordered, key=lambda ref: ref.log):
        scenes = tuple(group)
        count = -(-len(scenes) // size)
        bounds = [len(scenes) * i // count for i in range(count + 1)]
        for first, last in pairwise(bounds):
            yield scenes[first:last]


def _order(seed: int, piece: Piece) -> bytes:
    return hashlib.sha256(f"{seed}:{piece[0].log}:{piece[0].token}".encode()).digest()


def _deal(pieces: Sequence[Piece], size: int) -> list[list[SceneRef]]:
    """Best fit: each piece goes to the open shard with the least room that is enough, the oldest of equals.

    Shards are held by room left; a bit mask of the rooms that occur finds the best one without a search.
    """
    shards: list[list[SceneRef]] = []
    by_room: list[list[int]] = [[] for _ in range(size + 1)]
    rooms = 0
    for piece in pieces:
        fitting = rooms >> len(piece)
        if fitting:
            room = len(piece) + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop(0)
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            number, room = len(shards), size
            shards.append([])
        shards[number].extend(piece)
        left = room - len(piece)
        by_room[left].append(number)
        if left:
            rooms |= 1 << left
    return shards


def _digest(table: pa.Table, config: PlanConfig) -> str:
    digest = hashlib.sha256(f"{config.shard_size},{config.seed}\n".encode())
    for batch in table.to_batches(max_chunksize=65536):
        columns = [batch.column(field.name).to_pylist() for field in SCHEMA]
        digest.update("".join(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True)).encode())
    return digest.hexdigest()
