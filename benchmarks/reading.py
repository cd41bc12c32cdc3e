"""Readers of shards, in random order: ours against webdataset and a raw read.

The same samples (a JPEG's bytes, a float16 latent, a little JSON) in each library's own files; ours in two tars that
are joined by token. Each run reads every sample once, in shuffled batches with latents in memory of their own, and
nobody decodes the image: that costs all of them the same. Each run has a process of its own. "cold": the files are
dropped from the page cache before it, so the disk limits; "warm": the second epoch of the process, so the reader does.
Opening the dataset and starting workers is in the time, imports are not.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import pyarrow.dataset  # noqa: F401 (pyarrow imports it when a table is read)
import torch
from pydantic import Field

from benchmarks.apart import apart
from benchmarks.measure import interleaved, spread, temporary
from benchmarks.page_cache import drop
from benchmarks.readers import RAW, SPEC, Reader, Shape, made, readers
from reports.tables import table


class Config(Shape):
    """The samples; threads (None: as the stream decides) and read-ahead of our stream; runs of each reader."""

    threads: int | None = Field(default=None, ge=0)
    prefetch: int = Field(default=32, ge=1)
    repeats: int = Field(default=5, ge=1)


def run(config: Config) -> None:
    samples = made(config)
    size = sum(map(len, samples.images)) + samples.latents.nbytes
    with temporary() as root:
        ways = readers(root, samples, config, threads=config.threads, prefetch=config.prefetch)
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
