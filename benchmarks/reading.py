"""Readers of shards, in random order: ours against webdataset and a raw read.

The same samples (a JPEG's bytes, a float16 latent, a little JSON) in each library's own files; ours in two tars that
are joined by token. Each run reads every sample once, in shuffled batches with latents in memory of their own, and
nobody decodes the image: that costs all of them the same. Each run has a process of its own. "cold": the files are
dropped from the page cache before it, so the disk limits; "warm": the second epoch of the process, so the reader does.
Opening the dataset and starting workers is in the time, imports are not.

What webdataset is asked for is what ours gives: shuffled batches of tokens, parsed JSON, the image's bytes, and latents
in memory of their own, of one copy each.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow.dataset  # noqa: F401 (pyarrow imports it when a table is read)
import torch
import webdataset
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader

from benchmarks import shards
from benchmarks.measure import apart, drop, interleaved, spread, temporary
from benchmarks.shards import SPEC, Members, column
from pipeline.reading.reader import Dataset
from pipeline.stream import ShardStream, StreamConfig
from reports.tables import table
from shards_schema import layout
from shards_schema.codecs import npy_bytes
from shards_schema.inputs.models import StrictModel
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import SceneRef

IMAGE = "image.bin"
"""Not ``.jpg``, which our stream and others would decode."""


class Config(StrictModel):
    """Knobs: samples in all and a shard, bytes of the image, batch, DataLoader workers; threads (None: as the stream
    decides) and read-ahead of our stream; runs of each reader."""

    samples: int = Field(default=400, ge=1)
    shard_size: int = Field(default=50, ge=1)
    image_bytes: int = Field(default=179_000, ge=1)
    batch_size: int = Field(default=8, ge=1)
    workers: tuple[int, ...] = (0, 2)
    threads: int | None = Field(default=None, ge=0)
    prefetch: int = Field(default=32, ge=1)
    repeats: int = Field(default=5, ge=1)


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


def made(config: Config) -> Bytes:
    """Noise, the same each time."""
    rng = np.random.default_rng(0)
    return Bytes(
        [f"{i:016x}" for i in range(config.samples)],
        [rng.bytes(config.image_bytes) for _ in range(config.samples)],
        rng.standard_normal((config.samples, *SPEC.fixed_shape), np.float32).astype(np.float16),
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


def readers(root: Path, samples: Bytes, config: Config) -> dict[str, Reader]:
    """The ceiling, which reads our files; ours; webdataset."""
    folder, tars = root / "ours", root / "wds"
    write_dataset(folder, samples, config.shard_size)
    _write_webdataset(tars, samples, config)
    made = {
        RAW: Reader(folder, partial(_raw, folder)),
        "ours, random access by token": Reader(folder, partial(_random, folder)),
    }
    streamed = StreamConfig(batch_size=config.batch_size, threads=config.threads, prefetch=config.prefetch)
    for workers in config.workers:
        made[f"ours, stream, {workers} workers"] = Reader(
            folder, partial(_stream, folder, streamed, workers), partial(_stream, folder, streamed, workers, half=True)
        )
    for workers in config.workers:
        made[f"webdataset, {workers} workers"] = Reader(tars, partial(_webdataset, tars, config, workers))
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


def _write_webdataset(folder: Path, samples: Bytes, config: Config) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=config.shard_size, verbose=0) as writer:
        for i, token in enumerate(samples.tokens):
            writer.write(
                {"__key__": token, "json": json_of(i), IMAGE: samples.images[i], "npy": npy_bytes(samples.latents[i])}
            )


def _webdataset(folder: Path, config: Config, workers: int) -> Iterator[Any]:
    dataset = (
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=100)
        .shuffle(SHUFFLE_BUFFER)
        .decode()
        .to_tuple("__key__", "json", IMAGE, "npy")
        .batched(config.batch_size, collation_fn=stacked)
    )
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))


def run(config: Config) -> None:
    samples = made(config)
    size = sum(map(len, samples.images)) + samples.latents.nbytes
    with temporary() as root:
        ways = readers(root, samples, config)
        del samples
        gc.collect()
        os.sync()
        threads = "its own choice of" if config.threads is None else config.threads
        print(
            f"{config.samples} samples, {size / 1e6:.0f} MB; batches of {config.batch_size}; {threads} "
            f"threads of ours; {config.repeats} runs of each, taken in turn\n"
        )
        for name, reader in ways.items():
            if name != RAW:
                apart(partial(_check, name, reader, config))

        def measured(make: Callable[[Reader], Callable[[], float]]) -> dict[str, list[float]]:
            wanted = {name: make(reader) for name, reader in ways.items()}
            return interleaved({name: partial(apart, measure) for name, measure in wanted.items()}, config.repeats)

        cold = measured(lambda reader: partial(_rate, reader, config, cold=True))
        warm = measured(lambda reader: partial(_rate, reader, config, cold=False))
        _print_rates(cold, warm)
        first = measured(lambda reader: partial(_first, reader, reader.open))
        ways = {name: reader for name, reader in ways.items() if reader.resume is not None}
        resumed = measured(lambda reader: partial(_first, reader, reader.resume))
        rows = [[n, spread(first[n], 0), spread(resumed[n], 0) if n in resumed else "cannot"] for n in first]
        print("\n\nms from opening to the first batch, cold\n")
        print(table(["", "from the start", "resumed at 50 %"], rows))


def _print_rates(cold: dict[str, list[float]], warm: dict[str, list[float]]) -> None:
    peers = [name for name in cold if name.startswith("webdataset")]
    best = {id(rates): max(peers, key=lambda n: median(rates[n])) for rates in (cold, warm)}
    rows = []
    for name in cold:
        cells = [name]
        for rates in (cold, warm):
            ceiling = median(rates[RAW])
            ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[best[id(rates)]], strict=True)]
            cells += [spread(rates[name]), f"{median(rates[name]) / ceiling:.2f}", spread(ratios, 2)]
        rows.append(cells)
    print(table(["", "cold samples/s", "/ raw", "/ wds", "warm samples/s", "/ raw", "/ wds"], rows), flush=True)
    print(f"\n/ wds: pairwise against the faster of webdataset's rows: cold {best[id(cold)]}, warm {best[id(warm)]}")


def _rate(reader: Reader, config: Config, *, cold: bool) -> float:
    if cold:
        drop(reader.folder)
    else:
        _read_all(reader)  # memory and imports of this process warm up in it as well
    began = perf_counter()
    _read_all(reader)
    return config.samples / (perf_counter() - began)


def _read_all(reader: Reader) -> None:
    for batch in reader.open():
        del batch


def _first(reader: Reader, start: Callable[[], Iterator[Any]] | None) -> float:
    assert start is not None
    drop(reader.folder)
    began = perf_counter()
    batches = start()
    next(batches)
    seconds = perf_counter() - began
    del batches
    return 1e3 * seconds


def _check(name: str, reader: Reader, config: Config) -> None:
    """Each reader gives every sample once, and owned latents; else its rate would mean nothing."""
    tokens: list[str] = []
    for batch in reader.open():
        got, latents = batch["token"], batch["latents"]
        tokens += [got] if isinstance(got, str) else list(got)
        assert isinstance(latents, torch.Tensor)
        assert tuple(latents.shape[-3:]) == SPEC.shape
        latents[:] = 0  # memory of its own: a mapped file would not be written to
    assert sorted(tokens) == [f"{i:016x}" for i in range(config.samples)], f"{name}: {len(tokens)} tokens"
