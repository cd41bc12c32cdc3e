"""What `benchmarks.reading` holds against each other: ours, and webdataset, each in its own files.

What webdataset is asked for is what ours gives: shuffled batches of tokens, parsed JSON, the image's bytes, and latents
in memory of their own, of one copy each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader

from benchmarks import shards
from benchmarks.shards import Members, column
from pipeline.reading.reader import Dataset
from pipeline.stream import ShardStream, StreamConfig
from shards_schema import layout
from shards_schema.codecs import npy_bytes
from shards_schema.inputs.models import StrictModel
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import SceneRef
from shards_schema.specs import TargetSpec

SPEC = TargetSpec(
    name="latents", dims=("view", "patch", "channel"), shape=(2, 196, 1024), dtype="float16", unit="1", meaning="noise"
)
IMAGE = "image.bin"
"""Not ``.jpg``, which our stream and others would decode."""


class Shape(StrictModel):
    """Samples in all and a shard, bytes of the image, batch, DataLoader workers."""

    samples: int = Field(default=400, ge=1)
    shard_size: int = Field(default=50, ge=1)
    image_bytes: int = Field(default=179_000, ge=1)
    batch_size: int = Field(default=8, ge=1)
    workers: tuple[int, ...] = (0, 2)


@dataclass(frozen=True, slots=True)
class Bytes:
    """The samples: tokens, images, latents."""

    tokens: Sequence[str]
    images: Sequence[bytes]
    latents: NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read: the folder of its files, what iterates over batches, and from where a resumed one goes on.

    Attributes:
        folder: whose files are dropped from the page cache.
        open: begins to read; an item is a batch, or one sample where the reader has no batches.
        resume: begins at half of the epoch; None where the library cannot.
    """

    folder: Path
    open: Callable[[], Iterator[Any]]
    resume: Callable[[], Iterator[Any]] | None = None


def made(shape: Shape) -> Bytes:
    """Noise, the same each time."""
    rng = np.random.default_rng(0)
    return Bytes(
        [f"{i:016x}" for i in range(shape.samples)],
        [rng.bytes(shape.image_bytes) for _ in range(shape.samples)],
        rng.standard_normal((shape.samples, *SPEC.fixed_shape), np.float32).astype(np.float16),
    )


def json_of(row: int) -> bytes:
    return json.dumps({"row": row, "future": [[0.1 * i, 0.2 * i, 0.3 * i] for i in range(8)]}).encode()


def stacked(samples: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """(token, json, image, latents) of a batch: one copy of each latent, as our own collate makes it."""
    tokens, _, images, latents = zip(*samples, strict=True)
    return {"token": list(tokens), "image": list(images), "latents": torch.from_numpy(np.stack(latents))}


TARGETS = {"samples": ["json", IMAGE], "latents": ["latents"]}
SHUFFLE_BUFFER = 100
"""Of webdataset: two shards' worth."""
RAW = "raw sequential read (ceiling)"


def readers(root: Path, samples: Bytes, shape: Shape, *, threads: int | None, prefetch: int) -> dict[str, Reader]:
    """The ceiling, which reads our files; ours; webdataset."""
    folder, tars = root / "ours", root / "wds"
    write_dataset(folder, samples, shape.shard_size)
    _write_webdataset(tars, samples, shape)
    made = {
        RAW: Reader(folder, partial(_raw, folder)),
        "ours, random access by token": Reader(folder, partial(_random, folder)),
    }
    config = StreamConfig(batch_size=shape.batch_size, threads=threads, prefetch=prefetch)
    for workers in shape.workers:
        made[f"ours, stream, {workers} workers"] = Reader(
            folder, partial(_stream, folder, config, workers), partial(_stream, folder, config, workers, half=True)
        )
    for workers in shape.workers:
        made[f"webdataset, {workers} workers"] = Reader(tars, partial(_webdataset, tars, shape, workers))
    return made


def write_dataset(out: Path, samples: Bytes, shard_size: int) -> None:
    """A committed dataset with the columns `samples` (JSON, image) and `latents`."""
    refs = [SceneRef(log="log", timestamp=i, token=token, start=i) for i, token in enumerate(samples.tokens)]
    columns: list[tuple[ColumnManifest, Members]] = [
        (column(layout.SAMPLES), lambda ref: {"json": json_of(ref.start), IMAGE: samples.images[ref.start]}),
        (column("latents", (SPEC,)), lambda ref: {SPEC.name: samples.latents[ref.start]}),
    ]
    shards.write_dataset(out, refs, shard_size, columns)


def _raw(folder: Path) -> Iterator[Any]:
    buffer = memoryview(bytearray(1 << 22))
    for path in sorted(folder.glob("*/*.tar")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                yield None


def _random(folder: Path) -> Iterator[Any]:
    dataset = Dataset(str(folder))
    for i in np.random.default_rng(1).permutation(len(tokens := dataset.tokens(*TARGETS))):
        sample = dataset.read(tokens[i], TARGETS, owned=True)
        latents = torch.from_numpy(sample["latents"]["latents"])
        yield {"token": tokens[i], "latents": latents, "image": sample["samples"][IMAGE]}


def _stream(folder: Path, config: StreamConfig, workers: int, *, half: bool = False) -> Iterator[Any]:
    stream = ShardStream(Dataset(str(folder)), TARGETS, config, rank=0, world_size=1)
    if half:
        stream.seek(0, stream.size // 2)
    batches = stream.batches()
    for batch in DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches:
        yield {"token": batch["token"], "latents": batch["latents"]["latents"], "image": batch["samples"][IMAGE]}


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
