"""Readers of shards, in random order: ours against webdataset, litdata, MosaicML Streaming and a raw read.

The same samples (a JPEG's bytes, a float16 latent, a little JSON) in each library's own files; ours in two tars that
are joined by token. Each run reads every sample once, in shuffled batches with latents in memory of their own, and
nobody decodes the image: that costs all of them the same. Each run has a process of its own. "cold": the files are
dropped from the page cache before it, so the disk limits; "warm": the second epoch of the process, so the reader does.
Opening the dataset and starting workers is in the time, imports are not. Libraries that are not installed are left out.

`python -m benchmarks.reading [repeats=5 ...]` runs this one alone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow.dataset  # noqa: F401 (pyarrow imports it when a table is read)
import torch
import webdataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.data import DataLoader

from benchmarks.measure import interleaved, print_machine, spread, temporary
from jobs import config as job_config
from jobs.report import table
from pipeline.plan import PlanConfig, make_plan
from pipeline.reader import Dataset
from pipeline.sources.base import SceneRef
from pipeline.stores.tar import TarWriter
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream, StreamConfig
from shards_schema import layout
from shards_schema.codecs import npy_bytes, seal_of
from shards_schema.commit import CommitRecord
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.specs import TargetSpec

SPEC = TargetSpec(
    name="latents", dims=("view", "patch", "channel"), shape=(2, 196, 1024), dtype="float16", unit="1", meaning="noise"
)
IMAGE = "image.bin"
"""Not ``.jpg``, which our stream and others would decode."""
TARGETS = {"samples": ["json", IMAGE], "latents": ["latents"]}
RAW = "raw sequential read (ceiling)"
SHUFFLE_BUFFER = 100
"""Of webdataset: two shards' worth."""


Value = TypeVar("Value")


class Config(BaseModel):
    """Knobs: samples in all and a shard, bytes of the image, batch, worker counts, runs of each reader."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=400, ge=1)
    shard_size: int = Field(default=50, ge=1)
    image_bytes: int = Field(default=179_000, ge=1)
    batch_size: int = Field(default=8, ge=1)
    workers: tuple[int, ...] = (0, 2)
    threads: int = Field(default=2, ge=0)
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


def run(config: Config) -> None:
    rng = np.random.default_rng(0)
    samples = Bytes(
        [f"{i:016x}" for i in range(config.samples)],
        [rng.bytes(config.image_bytes) for _ in range(config.samples)],
        rng.standard_normal((config.samples, *SPEC.fixed_shape), np.float32).astype(np.float16),
    )
    size = sum(map(len, samples.images)) + samples.latents.nbytes
    with temporary() as root:
        readers = _readers(samples, config, root)
        del samples
        gc.collect()
        os.sync()
        print(
            f"{config.samples} samples, {size / 1e6:.0f} MB; batches of {config.batch_size}; {config.threads} threads "
            f"of ours; {config.repeats} runs of each, taken in turn\n"
        )
        for name, reader in readers.items():
            if name != RAW:
                _apart(partial(_check, name, reader, config))

        def measured(make: Callable[[Reader], Callable[[], float]]) -> dict[str, list[float]]:
            wanted = {name: make(reader) for name, reader in readers.items()}
            return interleaved({name: partial(_apart, measure) for name, measure in wanted.items()}, config.repeats)

        cold = measured(lambda reader: partial(_rate, reader, config, cold=True))
        warm = measured(lambda reader: partial(_rate, reader, config, cold=False))
        _print_rates(cold, warm)
        first = measured(lambda reader: partial(_first, reader, reader.open))
        readers = {name: reader for name, reader in readers.items() if reader.resume is not None}
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


def _apart(measure: Callable[[], Value]) -> Value:
    """The result of a forked process: what a library keeps mapped, running or allocated ends with it."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        there.send(measure())

    process = context.Process(target=child)
    process.start()
    there.close()
    try:
        return cast(Value, here.recv())
    except EOFError as error:
        raise RuntimeError("the measured process failed; its traceback stands above") from error
    finally:
        process.join()


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


def drop(folder: Path) -> None:
    """Drop a folder's files from the page cache.

    Raises:
        RuntimeError: they stayed, so that a cold rate would be a lie.
    """
    stayed = total = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                cached = _cached(file.fileno())
            stayed, total = stayed + int(cached.sum()), total + len(cached)
    if stayed > 0.02 * total:
        raise RuntimeError(f"{folder}: {stayed} of {total} pages are still in the page cache")


def _cached(descriptor: int) -> NDArray[np.bool_]:
    """Which pages of a file are in the page cache (mincore)."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        arguments = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)
        failed = ctypes.CDLL(None, use_errno=True).mincore(*arguments)
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return (pages & 1).astype(bool)


def _readers(samples: Bytes, config: Config, root: Path) -> dict[str, Reader]:
    ours = root / "ours"
    write_dataset(ours, samples, config)
    _write_webdataset(root / "wds", samples, config)
    readers = {
        RAW: Reader(ours, partial(_raw, ours)),
        "ours, random access by token": Reader(ours, partial(_random, ours)),
    }
    for workers in config.workers:
        readers[f"ours, stream, {workers} workers"] = Reader(
            ours, partial(_stream, ours, config, workers), partial(_stream, ours, config, workers, half=True)
        )
    for workers in config.workers:
        readers[f"webdataset, {workers} workers"] = Reader(
            root / "wds", partial(_webdataset, root / "wds", config, workers)
        )
    for name, module in (("litdata", "_litdata"), ("streaming", "_mosaic")):
        if importlib.util.find_spec(name) is not None:
            readers |= globals()[module](root / name, samples, config)
    return readers


def write_dataset(out: Path, samples: Bytes, config: Config) -> None:
    """A committed dataset with the columns `samples` (JSON, image) and `latents`, without a pipeline to make it."""
    volume = Volume(str(out))
    refs = [SceneRef(log="log", timestamp=i, token=token, start=i) for i, token in enumerate(samples.tokens)]
    plan_config = PlanConfig(shard_size=config.shard_size)
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
            return {"json": _json(row), IMAGE: samples.images[row]}
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


def _json(row: int) -> bytes:
    return json.dumps({"row": row, "future": [[0.1 * i, 0.2 * i, 0.3 * i] for i in range(8)]}).encode()


def _raw(folder: Path) -> Iterator[Any]:
    buffer = memoryview(bytearray(1 << 22))
    for path in sorted(folder.glob("*/*.tar")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                yield None


def _random(folder: Path) -> Iterator[Any]:
    dataset = Dataset(str(folder))
    for i in np.random.default_rng(1).permutation(len(tokens := dataset.tokens(*TARGETS))):
        sample = dataset.read(tokens[i], TARGETS)
        latents = torch.from_numpy(sample["latents"]["latents"].copy())
        yield {"token": tokens[i], "latents": latents, "image": bytes(sample["samples"][IMAGE])}


def _stream(folder: Path, config: Config, workers: int, *, half: bool = False) -> Iterator[Any]:
    stream = ShardStream(
        Dataset(str(folder)),
        TARGETS,
        StreamConfig(batch_size=config.batch_size, threads=config.threads, prefetch=config.prefetch),
        rank=0,
        world_size=1,
    )
    if half:
        stream.seek(0, stream.size // 2)
    batches = stream.batches()
    for batch in DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches:
        yield {"token": batch["token"], "latents": batch["latents"]["latents"], "image": batch["samples"][IMAGE]}


def _stack(samples: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """(token, json, image, latents) of a batch: one copy of each latent, as our own collate makes it."""
    tokens, _, images, latents = zip(*samples, strict=True)
    return {"token": list(tokens), "image": list(images), "latents": torch.from_numpy(np.stack(latents))}


def _write_webdataset(folder: Path, samples: Bytes, config: Config) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=config.shard_size, verbose=0) as writer:
        for i, token in enumerate(samples.tokens):
            writer.write(
                {"__key__": token, "json": _json(i), IMAGE: samples.images[i], "npy": npy_bytes(samples.latents[i])}
            )


def _webdataset(folder: Path, config: Config, workers: int) -> Iterator[Any]:
    dataset = (
        webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=100)
        .shuffle(SHUFFLE_BUFFER)
        .decode()
        .to_tuple("__key__", "json", IMAGE, "npy")
        .batched(config.batch_size, collation_fn=_stack)
    )
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers))


def _litdata(folder: Path, samples: Bytes, config: Config) -> dict[str, Reader]:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=config.shard_size)
    for i, token in enumerate(samples.tokens):
        latents = torch.from_numpy(samples.latents[i])
        writer[i] = {"token": token, "json": _json(i), "image": samples.images[i], "latents": latents}
    writer.done()
    writer.merge()

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return _stack(
            [(s["token"], json.loads(bytes(s["json"])), bytes(s["image"]), s["latents"].numpy()) for s in items]
        )

    def loader(workers: int) -> Any:
        dataset = litdata.StreamingDataset(str(folder), shuffle=True)
        return litdata.StreamingDataLoader(
            dataset, batch_size=config.batch_size, num_workers=workers, collate_fn=collate
        )

    def state_at_half(workers: int) -> Any:
        begun = loader(workers)
        for number, _ in enumerate(begun, 1):
            if number * config.batch_size >= config.samples // 2:
                return begun.state_dict()
        raise RuntimeError("the epoch ended before its half")

    def resumed(workers: int, state: Any) -> Iterator[Any]:
        begun = loader(workers)
        begun.load_state_dict(state)
        return iter(begun)

    halves = {workers: _apart(partial(state_at_half, workers)) for workers in config.workers}
    return {
        f"litdata, {w} workers": Reader(folder, partial(_iterate, loader, w), partial(resumed, w, halves[w]))
        for w in config.workers
    }


def _iterate(loader: Callable[[int], Any], workers: int) -> Iterator[Any]:
    return iter(loader(workers))


def _mosaic(folder: Path, samples: Bytes, config: Config) -> dict[str, Reader]:
    streaming = _import_streaming()
    columns = {"token": "str", "json": "json", "image": "bytes", "latents": "ndarray:float16:2,196,1024"}
    limit = config.shard_size * (config.image_bytes + samples.latents[0].nbytes)
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=limit, progress_bar=False) as writer:
        for i, token in enumerate(samples.tokens):
            row = json.loads(_json(i))
            writer.write({"token": token, "json": row, "image": samples.images[i], "latents": samples.latents[i]})

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return _stack([(s["token"], s["json"], s["image"], s["latents"]) for s in items])

    def read(workers: int, half: bool) -> Iterator[Any]:
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(
            local=str(folder), shuffle=True, batch_size=config.batch_size, num_canonical_nodes=1
        )
        if half:
            dataset.load_state_dict(dataset.state_dict(config.samples // 2, from_beginning=True))
        loader = DataLoader(dataset, batch_size=config.batch_size, num_workers=workers, collate_fn=collate)
        return iter(loader)

    return {
        f"MosaicML Streaming, {w} workers": Reader(folder, partial(read, w, False), partial(read, w, True))
        for w in config.workers
    }


class _StandIn(ModuleType):
    """A package with every name in it, none of which does anything."""

    __path__ = []  # noqa: RUF012 (what makes a module a package)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def _import_streaming() -> Any:
    """MosaicML Streaming imports torchvision for classes that nothing here uses; the project never installs it."""
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("streaming")
    if importlib.util.find_spec("transformers") is not None:
        importlib.import_module("transformers")  # before the stand-in, which it would take for the real one
    parts = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules |= {name: _StandIn(name) for name in parts}
    try:
        return importlib.import_module("streaming")
    finally:
        for name in parts:
            del sys.modules[name]


def main(arguments: list[str]) -> None:
    """Run it alone."""
    settings = job_config.load(Config, arguments)
    print_machine()
    run(settings)


if __name__ == "__main__":
    job_config.run(main)
