"""A dataset grows: what its source has more when the command is given again is a generation of the plan.

Only more scenes are a growth. Scenes that are gone or stand elsewhere, or a source that makes others of the same logs,
are refused, and what differs is named. `pipeline.stores.generations` says what is written, and reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.base import Scan
from pipeline.stores import zarr
from pipeline.stores.column import zarr_specs
from pipeline.stores.generations import Generations
from pipeline.stores.records import columns_of
from pipeline.stores.volume import Volume
from pipeline.writing.plan import compared, extended
from shards_schema import layout
from shards_schema.errors import MismatchError
from shards_schema.manifests import ABSENT, ColumnManifest, DatasetManifest, GenerationManifest, ZarrMode, differing
from shards_schema.plan import Plan, joined

_WHERE = ("root", "sensor_root", "split", "synthetic", "filter.data_split")
"""What a source says of where its files are; they may be moved."""
_WHICH = ("logs", "filter.log_names", "filter.tokens", "filter.max_scenes")
"""What it says of which logs and scenes are wanted: more of them are a growth."""
_AROUND = ("context_frames", "channels")
"""What it says of how much a scene has around what columns ask for; a column that comes later may ask for more."""
_RECORDS = ("kind", "rate", "camera_frame", "extrinsics")
"""What decides the records of a scene, and so the bits of what was made of it."""


def go_on(volume: Volume, known: Generations, here: DatasetManifest, planned: Plan, refs: pa.Table, scan: Scan) -> Plan:
    """The plan of a dataset that was begun, and what its source has more by now as a new generation of it.

    Args:
        volume: the dataset.
        known: what its documents say.
        here: what a dataset that is begun now would say.
        planned: and its plan.
        refs: the scenes of the source.
        scan: what else it has.

    Raises:
        MismatchError: the source, its filter, or shard size and seed are not those of the dataset; what differs is
            named.
        DatasetError: a document or table of the dataset is damaged.
    """
    where = volume.path(layout.DATASET)
    before = known.manifest
    same = not known.later and planned.digest == before.plan["digest"]
    replace(here, plan={**here.plan, "digest": before.plan["digest"]}).refuse_other(before, where)
    plan = planned if same else known.plan(volume)
    gone, new = (refs.slice(0, 0), refs.slice(0, 0)) if same else compared(plan, refs)
    changes = [
        (path, a, b)
        for path, a, b in differing(known.now.source, json.loads(json.dumps(here.source)))
        if not _under(path, (*_WHERE, *_AROUND)) and ABSENT not in (a, b)
    ]
    if gone.num_rows:
        raise MismatchError(f"{where}: {_gone(plan, gone, new, scan)}{_told(changes)}; {_WAYS_OUT}")
    # another filter that finds the same scenes is as good; one that finds more must be the same but for what is wanted
    others = [c for c in changes if (not _under(c[0], _WHICH) if new.num_rows else _under(c[0], _RECORDS))]
    if others:
        more = f" would add {new.num_rows} scenes, and" if new.num_rows else ""
        raise MismatchError(f"{where}: the source{more} is another one than the dataset's{_told(others)}; {_WAYS_OUT}")
    if not new.num_rows:
        return plan
    part = extended(plan, new)
    number = len(known.later) + 1
    document = GenerationManifest(
        number=number,
        dataset=known.seal,
        before=known.seals[-1] if known.seals else known.seal,
        source=here.source,
        plan={
            **here.plan,
            "digest": part.digest,
            "samples": part.samples,
            "shards": part.shards - plan.shards,
            "first_shard": plan.shards,
        },
        code_version=metadata.version("last-shards"),
    )
    volume.put(layout.generation_plan(number), part.to_parquet())
    volume.put(layout.generation(number), document.to_bytes())
    return joined([plan, part])


def reshape(volume: Volume, plan: Plan, mode: ZarrMode) -> None:
    """Give the Zarr arrays of every begun column the rows of a plan that grew; no chunk is touched.

    Raises:
        DatasetError: a `column.json` is damaged.
    """
    for column in columns_of(volume):
        name = layout.column_json(column)
        manifest = ColumnManifest.from_bytes(volume.read(name), volume.path(name))
        documents = zarr.array_documents(column, zarr_specs(manifest, mode), plan.shards, plan.config.shard_size)
        for path, document in documents.items():
            if not volume.exists(path) or volume.read(path) != document:
                volume.put(path, document)


_WAYS_OUT = (
    "a dataset only grows: give it all the scenes that it has, and more if there are; or give another out (out=...)"
)


def _under(path: str, keys: Sequence[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _told(changes: Sequence[tuple[str, Any, Any]]) -> str:
    """The fields of a source that differ, with both values."""
    told = [f"source.{path}: {_short(a)} on disk, {_short(b)} here" for path, a, b in changes]
    return f" ({'; '.join(told[:4])}{f'; and {len(told) - 4} more' if len(told) > 4 else ''})" if told else ""


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _gone(plan: Plan, gone: pa.Table, new: pa.Table, scan: Scan) -> str:
    """In words: how many planned scenes the source does not have any more, and of which logs."""
    moved = pc.sum(pc.is_in(gone["token"], new["token"].combine_chunks())).as_py() or 0
    logs = sorted(set(gone["log"].cast(pa.string()).to_pylist()))
    named = [log + (f" ({scan.unreadable[log]})" if log in scan.unreadable else "") for log in logs[:3]]
    more = f" and {len(logs) - 3} more" if len(logs) > 3 else ""
    return (
        f"{gone.num_rows} of the {plan.samples} planned scenes are not in the source as it is here"
        + (f", {moved} of them in another place of a log" if moved else "")
        + f": those of log{'s' * (len(logs) != 1)} {', '.join(named)}{more}"
    )
