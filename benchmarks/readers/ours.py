"""Ours: two columns joined by token, read by token and as a stream; and the same tars as nothing but bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.readers.base import IMAGE, SPEC, Bytes, Reader, Shape, json_of
from pipeline.reading.reader import Dataset
from pipeline.stores.tar import TarWriter
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream, StreamConfig
from pipeline.writing.plan import make_plan
from shards_schema import layout
from shards_schema.codecs import npy_bytes, seal_of
from shards_schema.commit import CommitRecord
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.plan import PlanConfig, SceneRef

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
    """A committed dataset with the columns `samples` (JSON, image) and `latents`, without a pipeline to make it."""
    volume = Volume(str(out))
    refs = [SceneRef(log="log", timestamp=i, token=token, start=i) for i, token in enumerate(samples.tokens)]
    plan_config = PlanConfig(shard_size=shard_size)
    plan = make_plan(refs, plan_config)
    recorded = {"digest": plan.digest, "samples": plan.samples, "shards": plan.shards} | plan_config.model_dump()
    manifest = DatasetManifest(
        source={"kind": "noise"}, plan=recorded, zarr=False, synthetic=True, notices=(), code_version="benchmark"
    )
    volume.put(layout.PLAN, plan.to_parquet())
    volume.put(layout.DATASET, manifest.to_bytes())
    row_of = {token: i for i, token in enumerate(samples.tokens)}

    def members(column: str, token: str) -> dict[str, bytes]:
        row = row_of[token]
        if column == layout.SAMPLES:
            return {"json": json_of(row), IMAGE: samples.images[row]}
        return {"latents.npy": npy_bytes(samples.latents[row])}

    for column, targets in ((layout.SAMPLES, ()), ("latents", (SPEC,))):
        described = ColumnManifest(
            column=column, targets=targets, provenance={}, random_weights=True, config={}, environment={}
        )
        volume.put(layout.column_json(column), described.to_bytes())
        for shard in range(plan.shards):
            scenes = plan.shard(shard).scenes
            with volume.create(layout.tar(column, shard)) as file:
                tar = TarWriter(file)
                for scene in scenes:
                    tar.add(scene.ref.token, members(column, scene.ref.token))
                tar.finish()
            record = CommitRecord(
                column=column,
                shard=shard,
                dataset=seal_of(manifest.to_bytes()),
                fingerprint=described.fingerprint,
                planned=len(scenes),
                quarantined=(),
                files={layout.tar(column, shard): file.finish()},
                tokens=tuple(scene.ref.token for scene in scenes),
                rows=tuple(scene.row for scene in scenes),
                members={name: tuple(places) for name, places in tar.members.items()},
            )
            volume.put(layout.record(column, shard), record.to_bytes())


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
