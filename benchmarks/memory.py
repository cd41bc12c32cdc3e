"""Peak memory of a worker process: flat in the size of the dataset, linear in the shards in flight.

Each figure is a process of its own that makes a dataset with a plain worker; its peak is the kernel's (VmHWM), less
what it held with the teacher loaded and nothing begun. glibc's malloc keeps freed images in its arenas, as chance has
it; a fixed mmap threshold gives each back at once and shows what the worker itself holds. The bound, from the config:

    in flight x ( images of the shard, resized + its JPEGs + 2 batches in + 2 batches out + write buffers )
    + decode threads x ( one image at full size, twice )
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from pydantic import Field

from benchmarks.measure import ROOT, spread, status, temporary
from benchmarks.workload import (
    CLIP,
    FUTURE,
    HEIGHT,
    HISTORY,
    LATENT_BYTES,
    WIDTH,
    FixedTeacher,
    WindowSource,
    begin,
    write_logs,
)
from pipeline.writing.worker import WorkerConfig
from reports.tables import table
from shards_schema.inputs.models import StrictModel

FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "262144"}
WRITE_BUFFERS = 4 << 20
"""Of one open file: a block that is written, one that is hashed, one that is filled, and a sample's `.npy`."""


class Config(StrictModel):
    """Knobs: (shards of the dataset, shards in flight) of each row, and the load."""

    rows: tuple[tuple[int, int], ...] = ((4, 2), (16, 2), (4, 1), (4, 3))
    size: tuple[int, int] = (960, 540)
    shard_size: int = Field(default=96, ge=1)
    batch_size: int = Field(default=8, ge=1)
    batch_ms: float = 20
    decode_threads: int = Field(default=4, ge=1)
    repeats: int = Field(default=3, ge=1)


def run(config: Config) -> None:
    rows = []
    with temporary() as root:
        most = max(shards for shards, _ in config.rows)
        write_logs(root / "data", (config.shard_size + HISTORY + FUTURE - 1,) * most, config.size)
        jpeg = (root / "data/base/0.jpg").stat().st_size
        for shards, in_flight in config.rows:
            expected = bound(config, jpeg, in_flight) / 1e6
            row = [str(shards), str(in_flight), f"{expected:.0f}"]
            for environment in ({}, FIXED_THRESHOLD):
                peaks = [_peak(config, root, shards, in_flight, environment) for _ in range(config.repeats)]
                row += [spread(peaks), f"{median(peaks) / expected:.2f}"]
            rows.append(row)
    print(
        f"{config.size[0]} x {config.size[1]} JPEGs of {jpeg / 1e3:.0f} kB; {config.shard_size} scenes a shard, clips "
        f"of {CLIP}, batches of {config.batch_size}, {config.decode_threads} decode threads; peak less idle in "
        f"MB, {config.repeats} processes each\n"
    )
    print(table(["shards", "in flight", "bound", "as installed", "/ bound", "fixed threshold", "/ bound"], rows))
    print(f"\nfixed threshold: {' '.join(f'{k}={v}' for k, v in FIXED_THRESHOLD.items())} in the environment")


def _peak(config: Config, root: Path, shards: int, in_flight: int, environment: Mapping[str, str]) -> float:
    """Run the child; its peak above idle, in MB."""
    ask = {"root": str(root), "shards": shards, "in_flight": in_flight, "config": config.model_dump()}
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(ask)]
    answer = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"the measured process failed:\n{answer.stderr}")
    idle, peak = json.loads(answer.stdout.splitlines()[-1])
    return float(peak - idle)


def bound(config: Config, jpeg: int, in_flight: int) -> float:
    """Bytes that a worker may hold beyond its idle state."""
    image = WIDTH * HEIGHT * 3
    shard = (config.shard_size + CLIP - 1) * image + config.shard_size * jpeg
    batches = 2 * config.batch_size * (CLIP * image + LATENT_BYTES)
    return in_flight * (shard + batches + 3 * WRITE_BUFFERS) + config.decode_threads * 2 * 3 * (
        config.size[0] * config.size[1]
    )


def _measured(root: Path, shards: int, in_flight: int, config: Config) -> None:
    """The child: make a dataset, print [idle, peak] in MB."""
    frames = (config.shard_size + HISTORY + FUTURE - 1,) * shards
    teacher = FixedTeacher(seconds=config.batch_ms / 1e3, batch_size=config.batch_size)
    worker_config = WorkerConfig(device="cpu", decode_threads=config.decode_threads, shards_in_flight=in_flight)
    source = WindowSource(str(root / "data"), frames)
    with temporary() as out:
        run, make = begin(source, out, [teacher], shard_size=config.shard_size, worker=worker_config)
        worker = make()
        worker.load()
        idle = status("VmRSS")
        with ThreadPoolExecutor(in_flight) as pool:
            for _ in pool.map(worker.process, run.todo()):
                pass
        worker.close()
        print(json.dumps([idle, status("VmHWM")]))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    _measured(Path(asked["root"]), asked["shards"], asked["in_flight"], Config.model_validate(asked["config"]))
