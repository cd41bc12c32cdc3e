"""NAVSIM scores: milliseconds a trajectory, batched, beside what the devkit takes for one (30 to 270 ms).

Scenes are those of tests/data/pdm, repeated; candidates are their golden trajectories, slowed and sped up a little.
They are generated ones, with few agents and plain polygons. Where CUDA is there, it is measured too. A context is what
has to be had once a scene: here it is read from the devkit's cache and completed. (Built from log and map by the
teacher `pdm`, its time is what `make teachers` prints.) The devkit's figures are of an earlier run, on a machine of two
cores; they were not measured here, and are the ceiling that is quoted: 30 to 270 ms a trajectory, 0.3 to 1 s for a
metric cache.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import torch
from pydantic import Field

from reports.tables import table
from scoring import ContextBatch, RewardContext, Version, collate, complete, score
from shards_schema.inputs.models import StrictModel
from teachers.pdm import context_from_cache, find_caches

DATA = Path(__file__).parent.parent / "tests" / "data" / "pdm"
DEVKIT_MS = {"v1": "29-110", "v2": "150-270"}
DEVKIT_CACHING_MS = "300-1000"


class Config(StrictModel):
    """Knobs."""

    scenes: int = Field(default=64, ge=1)
    """In a batch."""
    candidates: int = Field(default=16, ge=1)
    """Trajectories a scene."""
    threads: int = Field(default=2, ge=1)
    """That torch may use; the machine's cores at most."""
    repeats: int = Field(default=7, ge=1)
    """Of each measurement, after one that does not count."""
    data: Path = DATA
    """A folder with metric_cache_v1, metric_cache_v2, golden_v1.json, golden_v2.json."""


def run(config: Config) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(min(config.threads, len(os.sched_getaffinity(0))))
    try:
        _run(config)
    finally:
        torch.set_num_threads(before)


def _run(config: Config) -> None:
    rows, read = [], []
    for version in cast(tuple[Version, ...], ("v1", "v2")):
        contexts, trajectories, reading, completing = _load(config, version)
        read.append([version, f"{reading:.1f}", f"{completing:.1f}", DEVKIT_CACHING_MS])
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            batch = collate(contexts, device)
            wall, cpu = _time(lambda b=batch, t=trajectories: _score(b, t), config.repeats)  # type: ignore[misc]
            count = trajectories.shape[0] * trajectories.shape[1]
            sizes = [len(c.agents_pose) for c in contexts], [len(c.map_polygons.xy) for c in contexts]
            rows.append(
                [
                    f"{version}, {device}",
                    *(f"{np.mean(s):.0f}" for s in sizes),
                    f"{median(wall) / count * 1e3:.3f}",
                    f"{min(wall) / count * 1e3:.3f}",
                    f"{min(cpu) / count * 1e3:.3f}",
                    DEVKIT_MS[version],
                ]
            )
    print(
        f"{config.scenes} scenes x {config.candidates} candidates, {torch.get_num_threads()} threads, "
        f"{config.repeats} repeats\n"
    )
    head = ["ms a trajectory", "agents", "map edges", "median", "best", "CPU time", "devkit, reported"]
    print(table(head, rows))
    print()
    print(table(["ms a context", "read the cache", "+ complete it", "devkit, reported"], read))


def _load(config: Config, version: Version) -> tuple[list[RewardContext], torch.Tensor, float, float]:
    """Contexts, trajectories [S, C, 8, 3], and the milliseconds a scene that the contexts took."""
    golden = json.loads((config.data / f"golden_{version}.json").read_text())
    files = find_caches(config.data / f"metric_cache_{version}")
    tokens = sorted(golden)
    reading, _ = _time(lambda: [context_from_cache(files[t], version) for t in tokens], config.repeats)
    few = [context_from_cache(files[t], version) for t in tokens]
    many = [few[s % len(few)] for s in range(config.scenes)]
    completing, _ = _time(lambda: complete(many), config.repeats)
    poses = [[r["poses"] for r in golden[t]["rows"].values()] for t in tokens]
    rng = np.random.default_rng(0)
    own = torch.tensor(poses, dtype=torch.float64)[torch.arange(config.scenes) % len(tokens)]
    own = own[:, torch.arange(config.candidates) % own.shape[1]]
    stretch = torch.from_numpy(rng.uniform(0.9, 1.1, (config.scenes, config.candidates, 1, 1)))
    own = torch.cat((own[..., :2] * stretch, own[..., 2:]), dim=-1)
    return complete(many), own, median(reading) / len(tokens) * 1e3, median(completing) / len(many) * 1e3


def _score(batch: ContextBatch, trajectories: torch.Tensor) -> None:
    score(batch, trajectories)
    if batch.device.type == "cuda":
        torch.cuda.synchronize()


def _time(action: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of wall clock and of CPU time of each repeat."""
    action()
    wall, cpu = [], []
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return wall, cpu
