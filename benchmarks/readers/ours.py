"""Ours: two columns joined by token, read by token and as a stream; and the same tars as nothing but bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import shards
from benchmarks.readers.base import IMAGE, SPEC, Bytes, Reader, Shape, json_of
from benchmarks.shards import Members, column
from pipeline.reading.reader import Dataset
from pipeline.stream import ShardStream, StreamConfig
from shards_schema import layout
from shards_schema.codecs import npy_bytes
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import SceneRef

TARGETS = {"samples": ["json", IMAGE], "latents": ["latents"]}
RAW = "raw sequential read (ceiling)"


def readers(folder: Path, samples: Bytes, shape: Shape, *, threads: int | None, prefetch: int) -> dict[str, Reader]:
    """Ours, and the ceiling, which reads the same files."""
    write_dataset(folder, samples, shape.shard_size)
    made = {
        RAW: Reader(folder, partial(_raw, folder)),
        "ours, random access by token": Reader(folder, partial(_random, folder)),
    }
    config = StreamConfig(batch_size=shape.batch_size, threads=threads, prefetch=prefetch)
    for workers in shape.workers:
        made[f"ours, stream, {workers} workers"] = Reader(
            folder, partial(_stream, folder, config, workers), partial(_stream, folder, config, workers, half=True)
        )
    return made


def write_dataset(out: Path, samples: Bytes, shard_size: int) -> None:
    """A committed dataset with the columns `samples` (JSON, image) and `latents`."""
    refs = [SceneRef(log="log", timestamp=i, token=token, start=i) for i, token in enumerate(samples.tokens)]
    columns: list[tuple[ColumnManifest, Members]] = [
        (column(layout.SAMPLES), lambda ref: {"json": json_of(ref.start), IMAGE: samples.images[ref.start]}),
        (column("latents", (SPEC,)), lambda ref: {"latents.npy": npy_bytes(samples.latents[ref.start])}),
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
