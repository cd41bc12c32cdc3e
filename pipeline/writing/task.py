"""What goes to a shard worker and what comes back: a few hundred bytes each way, whoever carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards_schema.plan import PlannedScene


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What to do: the columns of one shard that have no commit record yet, or are to be made again.

    Attributes:
        again: those of them that have a commit record, which goes to the history when its successor is ready.
        absent: (token, step, channel) of images that were looked for when the run began, and were not there: of them
            nothing is said by a folder that is not there.
        sandbox: a worker died or hung at it; decode where that cannot happen (`pipeline.writing.sandbox`). Same output.
    """

    shard: int
    scenes: tuple[PlannedScene, ...]
    columns: tuple[str, ...]
    again: tuple[str, ...] = ()
    absent: tuple[tuple[str, int, str], ...] = ()
    sandbox: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnReceipt:
    """What became of one (shard, column).

    Attributes:
        planned: scenes of the shard.
        written: of them, those with targets.
        quarantined: how many were left out, by code.
        size: bytes.
        teacher_seconds: how long the teacher was at work: of one in phases the device, by its own clock; of any other
            the thread that computed.
        launched: whether the teacher is one in phases. A worker's device does their batches one after the other, so
            the seconds of all of them add up to those of the device.
    """

    column: str
    planned: int
    written: int
    quarantined: Mapping[str, int]
    size: int
    teacher_seconds: float
    launched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What became of a task; a few hundred bytes, the only thing that leaves the worker.

    Attributes:
        decodes: images decoded.
        images: distinct images asked for.
        seconds: wall time of the task, waiting included.
        host: name of the machine.
        device: what the teachers ran on, by its maker's name; two kinds of GPU differ in last bits.
        read: one image a log of those that were read, see `pipeline.writing.witness`.
    """

    shard: int
    columns: tuple[ColumnReceipt, ...]
    decodes: int
    images: int
    seconds: float
    host: str
    device: str
    read: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
