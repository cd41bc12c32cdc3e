"""NAVSIM scores: milliseconds a trajectory, batched, beside what the devkit takes for one (30 to 270 ms).

Scenes are those of tests/data/pdm, repeated; candidates are their golden trajectories, slowed and sped up a little.
They are generated ones, with few agents and plain polygons, so a second line scores the same world made as dense as a
real one may be: every map edge cut into four, every agent five times over. Where several devices are there, CUDA is
measured too. A context is what has to be had once a scene: built from log and map by the teacher `pdm` (route, map,
agents, PDM-Closed, and its and the human's scores), or read from the devkit's cache and completed (scores alone).
The devkit's figures are of an earlier run, on a machine of two cores; they were not measured here, and are
the ceiling that is quoted: 30 to 270 ms a trajectory, 0.3 to 1 s for a metric cache.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from maps.folder import INDEX
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from reports.tables import table
from scoring import ContextBatch, Polygons, RewardContext, Version, collate, complete, score
from shards_schema.inputs.models import StrictModel
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from teachers.base import TeacherInput
from teachers.pdm import build, context_from_cache, find_caches

DATA = Path(__file__).parent.parent / "tests" / "data" / "pdm"
DEVKIT_MS = {"v1": "29-110", "v2": "150-270"}
DEVKIT_CACHING_MS = "300-1000"
LOCATION = "us-ma-boston"


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
    """A folder with metric_cache_v1, metric_cache_v2, golden_v1.json, golden_v2.json, logs and maps."""
    built: int = Field(default=32, ge=1)
    """Scenes that the teacher builds contexts of, in batches of 16."""


def run(config: Config) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(min(config.threads, len(os.sched_getaffinity(0))))
    try:
        _run(config)
    finally:
        torch.set_num_threads(before)


def _run(config: Config) -> None:
    rows, built = [], []
    for version in cast(tuple[Version, ...], ("v1", "v2")):
        contexts, trajectories, reading, completing = _load(config, version)
        building = _teacher(config, [version])
        built.append([version, f"{building:.1f}", f"{reading:.1f}", f"{completing:.1f}", DEVKIT_CACHING_MS])
        for world, some in (("as generated", contexts), ("dense", [_dense(c) for c in contexts])):
            some = complete(some)
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                batch = collate(some, device)
                wall, cpu = _time(lambda b=batch, t=trajectories: _score(b, t), config.repeats)  # type: ignore[misc]
                count = trajectories.shape[0] * trajectories.shape[1]
                sizes = [len(c.agents_pose) for c in some], [len(c.map_polygons.xy) for c in some]
                rows.append(
                    [
                        f"{version}, {world}, {device}",
                        *(f"{np.mean(s):.0f}" for s in sizes),
                        f"{median(wall) / count * 1e3:.3f}",
                        f"{min(wall) / count * 1e3:.3f}",
                        f"{min(cpu) / count * 1e3:.3f}",
                        DEVKIT_MS[version],
                    ]
                )
    built.append(["v1 and v2 at once", f"{_teacher(config, ['v1', 'v2']):.1f}", "-", "-", f"2 x {DEVKIT_CACHING_MS}"])
    print(
        f"{config.scenes} scenes x {config.candidates} candidates, {torch.get_num_threads()} threads, "
        f"{config.repeats} repeats\n"
    )
    head = ["ms a trajectory", "agents", "map edges", "median", "best", "CPU time", "devkit, reported"]
    print(table(head, rows))
    print()
    print(table(["ms a context", "from log and map", "or read the cache", "+ complete it", "devkit, reported"], built))


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


def _teacher(config: Config, versions: list[str]) -> float:
    """Milliseconds a scene of the teacher `pdm` on the logs of `data`; the map is read before."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        logs, maps = root / "navsim_logs" / "mini", root / "maps" / LOCATION / "1"
        logs.mkdir(parents=True)
        maps.mkdir(parents=True)
        for packed in (config.data / "logs").glob("*.pkl.gz"):
            (logs / packed.name.removesuffix(".gz")).write_bytes(gzip.decompress(packed.read_bytes()))
        packed_map = config.data / "maps" / "two_logs.gpkg.gz"
        (maps / "map.gpkg").write_bytes(gzip.decompress(packed_map.read_bytes()))
        (root / "maps" / INDEX).write_text(json.dumps({LOCATION: {"version": "1"}}))
        scenes = _scenes(NavsimSource(NavsimConfig(root=folder, split="mini", filter={"frame_interval": 1})))
        teacher = build({"maps_root": str(root / "maps"), "versions": versions})
        teacher.load("cpu")
        none = np.zeros((0, 0, 0, 3), np.uint8)
        inputs = [TeacherInput(scenes[i % len(scenes)], none) for i in range(config.built)]
        batches = [inputs[i : i + 16] for i in range(0, len(inputs), 16)]
        wall, _ = _time(lambda: [teacher.compute(batch) for batch in batches], max(1, config.repeats // 2))
        return median(wall) / len(inputs) * 1e3


def _scenes(source: NavsimSource) -> list[Scene]:
    by_log: dict[str, list[SceneRef]] = {}
    for ref in source.scan().refs:
        by_log.setdefault(ref.log, []).append(ref)
    found = [scene for log, refs in by_log.items() for scene in source.scenes(log, refs)]
    return [scene for scene in found if isinstance(scene, Scene)]


def _dense(context: RewardContext) -> RewardContext:
    """The same map with every edge in four pieces, and every agent five times, 4 m apart."""
    p = context.map_polygons
    rings = [p.xy[a:b] for a, b in zip(p.rings, p.rings[1:], strict=False)]
    cut = [_subdivide(np.asarray(r, dtype=np.float64)) for r in rings]
    polygons = Polygons.of([cut[a:b] for a, b in zip(p.polygons, p.polygons[1:], strict=False)])
    shifts = np.array([[0, 0], [0, 8], [0, -8], [8, 4], [-8, -4]]) * 1.0
    pose = np.concatenate([context.agents_pose + np.array([*s, 0.0]) for s in shifts])
    return replace(
        context,
        map_polygons=polygons,
        agents_pose=pose,
        agents_valid=np.concatenate([context.agents_valid] * len(shifts)),
        agents_size=np.concatenate([context.agents_size] * len(shifts)),
        agents_is_agent=np.concatenate([context.agents_is_agent] * len(shifts)),
        agents_stopped=np.concatenate([context.agents_stopped] * len(shifts)),
    )


def _subdivide(ring: NDArray[np.float64], pieces: int = 4) -> NDArray[np.float64]:
    following = np.roll(ring, -1, axis=0)
    share = np.arange(pieces)[:, None] / pieces
    return (ring[:, None] + share * (following - ring)[:, None]).reshape(-1, 2)


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
