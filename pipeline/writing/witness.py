"""Whether the images of a dataset are still those that its committed shards were made of.

A run that goes on reads images again, of the same logs and often of the same scenes. Where somebody has exchanged them
meanwhile (another download, other compression), shards and columns of two kinds of image would be mixed and nobody
could tell. So the log of a shard (``logs/<shard>.json``, its receipt) has one image a log, the first that was read
whole: where it was, how many bytes it has, and the CRC-32C of all of them. It is no part of the dataset: paths are a
machine's own.

A run that has something to do reads one witness a log again before it begins: as many images as the committed shards
have logs. One that is not there, or cannot be looked at, says nothing; one with other bytes ends the run. What is not
seen: an exchange that leaves the first images of its logs as they were, and one of logs whose shard has no receipt
(its driver was killed between record and receipt).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.stores.checksum import crc32c
from pipeline.stores.threads import map_ahead
from pipeline.stores.volume import Volume
from pipeline.writing.images import Seen, read_image
from pipeline.writing.task import ShardTask
from shards_schema import layout
from shards_schema.errors import DatasetError, MismatchError, SampleError, StoreError
from shards_schema.inputs import documents

_THREADS = 16


def of_shard(
    task: ShardTask, paths: Mapping[tuple[str, int], Sequence[str]], seen: Mapping[str, Seen]
) -> dict[str, dict[str, Any]]:
    """The witnesses of a shard: log -> ``{"path": ..., "size": ..., "crc32c": ...}``.

    Args:
        task: the shard.
        paths: (column, row) -> the images that it took.
        seen: path -> what was read.
    """
    found: dict[str, dict[str, Any]] = {}
    for planned in task.scenes:
        for column in task.columns:
            for path in paths.get((column, planned.row), ()):
                if path in seen and planned.ref.log not in found:
                    size, checksum = seen[path]
                    found[planned.ref.log] = {"path": path, "size": size, "crc32c": checksum}
    return found


def refuse_exchanged(volume: Volume, shards: Iterable[int]) -> None:
    """Read one image of each log that has committed shards, and hold it against what they were made of.

    Args:
        volume: the dataset.
        shards: those that are committed, or a column of them.

    Raises:
        MismatchError: one has other bytes; path, log and shard are named.
    """
    logs: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for shard, found in map_ahead(lambda shard: _read(volume, shard), sorted(shards), threads=_THREADS):
        for log, image in found.items():
            logs.setdefault(log, (shard, image))
    told = [line for line in map_ahead(lambda log: _told(log, *logs[log]), sorted(logs), threads=_THREADS) if line]
    if told:
        raise MismatchError(
            f"{told[0]} (and so {len(told)} of the {len(logs)} committed logs): images were exchanged since "
            "then, and shards of both would be mixed. Bring the former images back, or give another out (out=...); "
            f"where the new ones are as good, remove {volume.path(layout.LOGS)}/*.json, and nothing is compared"
        )


def _read(volume: Volume, shard: int) -> tuple[int, Mapping[str, Any]]:
    try:
        found = documents.parse_json(volume.read(layout.shard_log(shard)))["read"]
    except (DatasetError, LookupError, TypeError, ValueError):  # none, or damaged
        found = {}
    return shard, found if isinstance(found, dict) else {}


def _told(log: str, shard: int, image: Mapping[str, Any]) -> str:
    """What is wrong with the witness of a log; "" for nothing."""
    try:
        data = read_image(str(image["path"]))
        size, checksum = int(image["size"]), int(image["crc32c"])
    except (SampleError, StoreError, LookupError, TypeError, ValueError):
        return ""
    if (len(data), crc32c(data)) == (size, checksum):
        return ""
    return (
        f"{image['path']} of log {log} has {len(data)} bytes with CRC-32C {crc32c(data):08x}, and had {size} with "
        f"{checksum:08x} when shard {shard} was committed"
    )
