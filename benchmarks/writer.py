"""Tar and Zarr writers against webdataset's, zarr-python's and a raw write() of the same bytes.

"durable" waits until every file, and its name, is on the disk; that is what the pipeline always does. "buffered" leaves
the bytes to the page cache. The bytes are made before the clock starts; the writers take turns within one run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import webdataset
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.storage import LocalStore

from benchmarks.measure import interleaved, spread, temporary
from benchmarks.shards import SPEC, column
from pipeline.stores import view
from pipeline.stores.column import ColumnShardWriter
from pipeline.stores.disk import fsync
from pipeline.stores.tar import TarWriter
from pipeline.stores.volume import FileWriter, Volume
from pipeline.stores.zarr import ZarrShardWriter, create_array
from pipeline.writing.plan import make_plan
from reports.tables import table
from shards_schema import layout
from shards_schema.codecs import npy_bytes
from shards_schema.inputs.models import StrictModel
from shards_schema.manifests import ZarrMode
from shards_schema.plan import Plan, PlanConfig, SceneRef


class Config(StrictModel):
    """Knobs: samples in all, samples a shard, bytes of the JPEG-like member, runs of each writer."""

    samples: int = Field(default=400, ge=1)
    shard_size: int = Field(default=50, ge=1)
    jpeg_bytes: int = Field(default=179_000, ge=1)
    repeats: int = Field(default=7, ge=1)


@dataclass(frozen=True, slots=True)
class Bytes:
    """The samples: tokens, tar members, arrays."""

    tokens: Sequence[str]
    members: Sequence[dict[str, bytes]]
    arrays: NDArray[np.float16]


def run(config: Config) -> None:
    rng = np.random.default_rng(0)
    arrays = np.stack([rng.standard_normal(SPEC.fixed_shape).astype(np.float16) for _ in range(config.samples)])
    members = [
        {"json": b'{"row": %06d}' % i + b" " * 1000, "cam_f0.jpg": rng.bytes(config.jpeg_bytes), "l.npy": npy_bytes(a)}
        for i, a in enumerate(arrays)
    ]
    samples = Bytes([f"{i:016x}" for i in range(config.samples)], members, arrays)
    with temporary() as root:
        shards = -(-config.samples // config.shard_size)
        size = sum(len(data) for sample in members for data in sample.values())
        print(
            f"tar: {config.samples} samples, {size / 1e6:.0f} MB of members in {shards} files; {config.repeats} runs\n"
        )
        _compare(_tar_writers(samples, config, root), "webdataset ShardWriter", size, config, root)
        size = arrays.nbytes
        print(
            f"\n\nZarr: {config.samples} arrays, {size / 1e6:.0f} MB in {shards} shards, one inner chunk each, crc32c\n"
        )
        _compare(_zarr_writers(samples, config, root), "zarr-python, whole shards", size, config, root)
        print(
            f"\n\nA column, committed shard by shard, durable: {size / 1e6:.0f} MB of targets; {config.repeats} runs\n"
        )
        _columns(samples, config, root)


Write = Callable[[bool], None]
"""Writes everything under the folder `files`; with True, waits for the disk."""


def _compare(writers: dict[str, Write], peer: str, size: int, config: Config, root: Path) -> None:
    spent: dict[str, list[float]] = {}

    def timed(name: str, durable: bool) -> float:
        shutil.rmtree(root / "files", ignore_errors=True)
        (root / "files").mkdir()
        os.sync()  # what the writer before left in the page cache is not this one's to wait for
        began, cpu = perf_counter(), process_time()
        writers[name](durable)
        seconds = perf_counter() - began
        spent.setdefault(name, []).append(process_time() - cpu)
        return size / seconds / 1e6

    actions = {(n, d): (lambda n=n, d=d: timed(n, d)) for n in writers for d in (True, False)}
    rates = interleaved({f"{n}/{d}": action for (n, d), action in actions.items()}, config.repeats)
    rows = []
    for name in writers:
        cells = [name]
        for durable in (True, False):
            mine, theirs = rates[f"{name}/{durable}"], rates[f"{peer}/{durable}"]
            ratios = [m / t for m, t in zip(mine, theirs, strict=True)]
            cells += [spread(mine), spread(ratios, 2)]
        rows.append([*cells, f"{median(spent[name]) / size * 1e9:.2f}"])
    shutil.rmtree(root / "files")
    print(table(["", "durable MB/s", "/ peer", "buffered MB/s", "/ peer", "CPU s/GB"], rows), flush=True)
    print(f"\n/ peer: against {peer}, pairwise within a round; median (lowest to highest)")


def _tar_writers(samples: Bytes, config: Config, root: Path) -> dict[str, Write]:
    return {
        "one file, raw write() (ceiling)": lambda durable: _raw(
            [d for m in samples.members for d in m.values()], root, durable
        ),
        "webdataset ShardWriter": lambda durable: _webdataset(samples, config, root, durable),
        "ours, with sha256": lambda durable: _ours(samples, config, root, durable),
    }


def _zarr_writers(samples: Bytes, config: Config, root: Path) -> dict[str, Write]:
    return {
        "one file, raw write() (ceiling)": lambda durable: _raw(
            [a.data.cast("B") for a in samples.arrays], root, durable
        ),
        "zarr-python, whole shards": lambda durable: _zarr_python(samples, config, root, durable),
        "ours, with sha256": lambda durable: _our_zarr(samples, config, root, durable),
    }


MODES: dict[str, ZarrMode] = {"tars": False, "tars and targets.zarr": True, "tars and a view": "view"}


def _columns(samples: Bytes, config: Config, root: Path) -> None:
    """A whole column each way: the rate, the bytes on the disk, and what of the time is the view's own."""
    refs = [SceneRef(log="log", timestamp=i, token=token, start=i) for i, token in enumerate(samples.tokens)]
    plan = make_plan(refs, PlanConfig(shard_size=config.shard_size))
    sizes: dict[str, int] = {}
    spent: dict[str, list[float]] = {name: [] for name in MODES}
    viewing: list[float] = []

    def timed(name: str) -> float:
        shutil.rmtree(root / "files", ignore_errors=True)
        os.sync()
        began, cpu = perf_counter(), process_time()
        _column(samples, plan, root / "files", MODES[name])
        if MODES[name] == "view":
            before = perf_counter()
            view.write(Volume(str(root / "files")), plan)
            viewing.append(perf_counter() - before)
        seconds = perf_counter() - began
        spent[name].append(process_time() - cpu)
        sizes[name] = sum(path.stat().st_size for path in (root / "files").rglob("*") if path.is_file())
        return samples.arrays.nbytes / seconds / 1e6

    rates = interleaved({name: partial(timed, name) for name in MODES}, config.repeats)
    size = samples.arrays.nbytes
    rows = [
        [name, spread(rates[name]), f"{median(spent[name]) / size * 1e9:.2f}", f"{sizes[name] / size:.2f}"]
        for name in MODES
    ]
    print(table(["", "MB/s of targets", "CPU s/GB", "bytes on the disk / targets"], rows))
    print(f"\nof it the view itself: {spread([1e3 * s for s in viewing])} ms")


def _column(samples: Bytes, plan: Plan, folder: Path, mode: ZarrMode) -> None:
    volume, described = Volume(str(folder)), column("latents", (SPEC,))
    volume.put(layout.column_json("latents"), described.to_bytes())
    for shard in range(plan.shards):
        scenes = plan.shard(shard).scenes
        with ColumnShardWriter(
            volume, described, dataset="", shard=shard, shard_size=plan.config.shard_size, zarr=mode
        ) as writer:
            for scene in scenes:
                writer.add_targets(scene.ref.token, scene.row, {SPEC.name: samples.arrays[scene.ref.start]})
            writer.commit([scene.ref.token for scene in scenes])


def _raw(buffers: Sequence[bytes | memoryview], root: Path, durable: bool) -> None:
    descriptor = os.open(root / "files/raw", os.O_WRONLY | os.O_CREAT)
    for buffer in buffers:
        os.write(descriptor, buffer)
    if durable:
        os.fsync(descriptor)
    os.close(descriptor)
    if durable:
        fsync(root / "files")


def _webdataset(samples: Bytes, config: Config, root: Path, durable: bool) -> None:
    writer = webdataset.ShardWriter(
        str(root / "files/%06d.tar"), maxcount=config.shard_size, verbose=0, post=fsync if durable else None
    )
    with writer:
        for token, members in zip(samples.tokens, samples.members, strict=True):
            writer.write({"__key__": token, **members})
    if durable:
        fsync(root / "files")


def _files(root: Path, name: str, durable: bool, fill: Callable[[FileWriter], None]) -> None:
    """One of our files: durable as the pipeline writes it, or its bare writer on an open file."""
    if durable:
        with Volume(str(root / "files")).create(name) as file:
            fill(file)
        return
    path = root / "files" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    file = FileWriter(descriptor)
    fill(file)
    file.finish()
    file.close()
    os.close(descriptor)


def _shards(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _ours(samples: Bytes, config: Config, root: Path, durable: bool) -> None:
    for shard, rows in enumerate(_shards(config.samples, config.shard_size)):

        def fill(file: FileWriter, rows: range = rows) -> None:
            tar = TarWriter(file)
            for row in rows:
                tar.add(samples.tokens[row], samples.members[row])
            tar.finish()

        _files(root, layout.tar("c", shard), durable, fill)


def _our_zarr(samples: Bytes, config: Config, root: Path, durable: bool) -> None:
    for shard, rows in enumerate(_shards(config.samples, config.shard_size)):

        def fill(file: FileWriter, rows: range = rows) -> None:
            writer = ZarrShardWriter(file, SPEC, config.shard_size)
            for slot, row in enumerate(rows):
                writer.add(slot, samples.arrays[row])
            writer.finish()

        _files(root, layout.zarr_chunk("c", SPEC.name, shard, 1 + len(SPEC.shape)), durable, fill)


def _zarr_python(samples: Bytes, config: Config, root: Path, durable: bool) -> None:
    shards = _shards(config.samples, config.shard_size)
    array = create_array(zarr.create_group(LocalStore(root / "files/z")), SPEC, len(shards), config.shard_size)
    for rows in shards:
        array[rows.start : rows.stop] = samples.arrays[rows.start : rows.stop]
    if durable:
        for path in sorted((root / "files").rglob("*")):
            fsync(path)
        fsync(root / "files")
