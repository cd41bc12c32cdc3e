"""A dataset as a `webdataset` pipeline, for trainers that are built on one.

    pipe = webdataset("out/demo", ["samples", "vggt"], {"vggt": ["l3_grid"]}, shardshuffle=100)
    loader = wds.WebLoader(pipe.shuffle(1000).batched(8), batch_size=None, num_workers=4)

Shards come from the commit records and are dealt to nodes and workers by webdataset's own splitters; every later stage
(`shuffle`, `map`, `to_tuple`, `batched`) is webdataset's. What webdataset does not do is done here: columns are joined
by key, each member is held against its checksum, encoded targets are decoded, and a damaged, missing or unfinished
shard is an error and not a shorter epoch. For an order that resumes in the middle of an epoch see `ShardStream`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import webdataset as wds

from pipeline.reading.opened import Sample
from pipeline.reading.reader import Dataset
from pipeline.stores.cache import CacheConfig
from pipeline.stream.shards import SampleTable
from shards_schema import layout


class _Pipeline(wds.DataPipeline, wds.compat.FluidInterface):  # type: ignore[misc]
    """Stages, and webdataset's methods that add one."""


def webdataset(
    url: str | os.PathLike[str],
    columns: Iterable[str] | None = None,
    targets: Mapping[str, Sequence[str] | None] | None = None,
    *,
    shardshuffle: int = 0,
    allow_incomplete: bool = False,
    cache: CacheConfig | None = None,
) -> Any:
    """A webdataset pipeline over the samples that are written in every one of `columns`.

    Samples are flat, as webdataset's are: ``{"__key__": token, "__url__": path of the first column's tar,
    "samples.json": dict, "samples.cam_f0.jpg": uint8 [H, W, 3], "vggt.l3_grid": array, ...}``; arrays are NumPy's.

    Args:
        url: a local path or any fsspec URL.
        columns: to be joined, the first gives the order; None is those of `targets`, or all.
        targets: column -> what is wanted of it (targets, or members such as ``json``); of a column that is not named,
            everything.
        shardshuffle: shards that are shuffled among each other; 0 is plan order.
        allow_incomplete: take what is committed of a dataset that is not finished.
        cache: for a remote dataset, see `pipeline.stores.cache`.

    Raises:
        MissingFileError, AbsentError: no such dataset, column or target.
        IncompleteError: shards that are planned are not committed.
        ConfigError: there are no samples.
    """
    names = tuple(columns if columns is not None else targets or ()) or None
    dataset = Dataset(url, columns=names, cache=cache)
    wanted = {name: (targets or {}).get(name) for name in dataset.columns}
    table = SampleTable(dataset, wanted, allow_incomplete=allow_incomplete)
    base = next(iter(wanted))
    shards = [
        {"url": f"{dataset.url.rstrip('/')}/{layout.tar(base, int(shard))}", "first": int(first), "last": int(last)}
        for shard, first, last in zip(*_bounds(table.shards), strict=True)
    ]

    return _Pipeline(
        [shards],  # a list of stages, of which the list of shards is the first
        wds.split_by_node,  # before any shuffle, or nodes would deal different orders
        wds.split_by_worker,
        wds.filters.shuffle(shardshuffle) if shardshuffle else None,
        partial(_samples, table),
    )


def _samples(table: SampleTable, shards: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for index in range(shard["first"], shard["last"]):
            yield _flat(table[index], shard["url"])


def _bounds(shards: Any) -> tuple[Any, Any, Any]:
    """The shards of samples in plan order, and the first and the end of each among them."""
    numbers, first = np.unique(shards, return_index=True)
    return numbers, first, np.append(first[1:], len(shards))


def _flat(sample: Sample, url: str) -> dict[str, Any]:
    flat: dict[str, Any] = {"__key__": sample["token"], "__url__": url}
    for column, values in sample.items():
        if column != "token":
            plain = {name: value.numpy() if hasattr(value, "numpy") else value for name, value in values.items()}
            flat |= {f"{column}.{name}": value for name, value in plain.items()}
    return flat
