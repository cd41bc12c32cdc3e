"""The others: webdataset, litdata, MosaicML Streaming, each in its own files and with its own loader.

What each is asked for is what ours gives: shuffled batches of tokens, parsed JSON, the image's bytes, and latents in
memory of their own, of one copy each where the library leaves that to us.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.apart import apart
from benchmarks.readers.base import IMAGE, Bytes, Reader, Shape, json_of, stacked
from benchmarks.readers.mosaic import import_streaming
from shards_schema.codecs import npy_bytes

SHUFFLE_BUFFER = 100
"""Of webdataset: two shards' worth."""


def readers(root: Path, samples: Bytes, shape: Shape) -> dict[str, Reader]:
    """Those that are installed, with their files below `root`."""
    folder = root / "wds"
    _write_webdataset(folder, samples, shape)
    made = {
        f"webdataset, {workers} workers": Reader(folder, partial(_webdataset, folder, shape, workers))
        for workers in shape.workers
    }
    for name, of in (("litdata", _litdata), ("streaming", _mosaic)):
        if importlib.util.find_spec(name) is not None:
            made |= of(root / name, samples, shape)
    return made


def _write_webdataset(folder: Path, samples: Bytes, shape: Shape) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=shape.shard_size, verbose=0) as writer:
        for i, token in enumerate(samples.tokens):
            writer.write(
                {"__key__": token, "json": json_of(i), IMAGE: samples.images[i], "npy": npy_bytes(samples.latents[i])}
            )


def _webdataset(folder: Path, shape: Shape, workers: int) -> Iterator[Any]:
    dataset = (
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=100)
        .shuffle(SHUFFLE_BUFFER)
        .decode()
        .to_tuple("__key__", "json", IMAGE, "npy")
        .batched(shape.batch_size, collation_fn=stacked)
    )
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))


def _litdata(folder: Path, samples: Bytes, shape: Shape) -> dict[str, Reader]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=shape.shard_size)
    for i, token in enumerate(samples.tokens):
        latents = torch.from_numpy(samples.latents[i])
        writer[i] = {"token": token, "json": json_of(i), "image": samples.images[i], "latents": latents}
    writer.done()
    writer.merge()

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return stacked(
            [(s["token"], json.loads(bytes(s["json"])), bytes(s["image"]), s["latents"].numpy()) for s in items]
        )

    def loader(workers: int) -> Any:
        dataset = litdata.StreamingDataset(str(folder), shuffle=True)
        return litdata.StreamingDataLoader(
            dataset, batch_size=shape.batch_size, num_workers=workers, collate_fn=collate
        )

    def state_at_half(workers: int) -> Any:
        begun = loader(workers)
        for number, _ in enumerate(begun, 1):
            if number * shape.batch_size >= shape.samples // 2:
                return begun.state_dict()
        raise RuntimeError("the epoch ended before its half")

    def resumed(workers: int, state: Any) -> Iterator[Any]:
        begun = loader(workers)
        begun.load_state_dict(state)
        return iter(begun)

    halves = {workers: apart(partial(state_at_half, workers)) for workers in shape.workers}
    return {
        f"litdata, {w} workers": Reader(folder, partial(_iterate, loader, w), partial(resumed, w, halves[w]))
        for w in shape.workers
    }


def _iterate(loader: Callable[[int], Any], workers: int) -> Iterator[Any]:
    return iter(loader(workers))


def _mosaic(folder: Path, samples: Bytes, shape: Shape) -> dict[str, Reader]:
    streaming = import_streaming()
    columns = {"token": "str", "json": "json", "image": "bytes", "latents": "ndarray:float16:2,196,1024"}
    limit = shape.shard_size * (shape.image_bytes + samples.latents[0].nbytes)
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=limit, progress_bar=False) as writer:
        for i, token in enumerate(samples.tokens):
            row = json.loads(json_of(i))
            writer.write({"token": token, "json": row, "image": samples.images[i], "latents": samples.latents[i]})

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return stacked([(s["token"], s["json"], s["image"], s["latents"]) for s in items])

    def read(workers: int, half: bool) -> Iterator[Any]:
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(
            local=str(folder), shuffle=True, batch_size=shape.batch_size, num_canonical_nodes=1
        )
        if half:
            dataset.load_state_dict(dataset.state_dict(shape.samples // 2, from_beginning=True))
        loader = DataLoader(dataset, batch_size=shape.batch_size, num_workers=workers, collate_fn=collate)
        return iter(loader)

    return {
        f"MosaicML Streaming, {w} workers": Reader(folder, partial(read, w, False), partial(read, w, True))
        for w in shape.workers
    }
