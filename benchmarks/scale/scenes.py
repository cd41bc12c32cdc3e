"""Made up: scenes in logs as long as nuPlan's, a source that has them and nothing in them, three columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sources.base import Scan
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from shards_schema.specs import TargetSpec

MEAN_LOG, LOG_SPREAD = 540, 0.7
"""Scenes of a log: nuPlan's are some minutes long, every frame at 2 Hz is a scene; the spread is assumed."""
MEMBERS = {
    "samples": ("cam_f0.jpg", "json"),
    "vggt": ("l23_grid.npy", "mean.npy", "pose.npy"),
    "cosmos": ("latent.npy", "mask.npy"),
}


def scene_refs(scenes: int) -> Iterator[SceneRef]:
    """`scenes` scenes of logs with lognormal lengths, one scene a frame at 2 Hz."""
    rng = np.random.default_rng(0)
    made = 0
    log = 0
    while made < scenes:
        length = min(max(1, int(rng.lognormal(np.log(MEAN_LOG) - LOG_SPREAD**2 / 2, LOG_SPREAD))), scenes - made)
        name = f"2021.05.12.22.00.38_veh-{log % 40:02d}_{log:05d}_{log + length:05d}"
        tokens = rng.bytes(8 * length).hex()
        for i in range(length):
            yield SceneRef(name, 1_620_000_000_000_000 + 500_000 * i, tokens[16 * i : 16 * i + 16], i)
        made += length
        log += 1


@dataclass(frozen=True)
class ListSource:
    """A source that has scenes and nothing in them."""

    count: int
    synthetic: bool = True
    num_history: int = 4
    num_future: int = 8

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {"kind": "list", "scenes": self.count}

    def scan(self, *, processes: int = 1) -> Scan:
        """See `Source`."""
        return Scan(tuple(scene_refs(self.count)))

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | Any]:
        """See `Source`; never asked."""
        raise NotImplementedError


def manifests() -> list[ColumnManifest]:
    """Of `MEMBERS`."""
    return [
        ColumnManifest(
            column=column,
            targets=tuple(
                TargetSpec(name=m[:-4], dims=("c",), shape=(8,), dtype="float32", unit="1", meaning="nothing")
                for m in members
                if m.endswith(".npy")
            ),
            provenance={},
            random_weights=True,
            config={},
            environment={},
        )
        for column, members in MEMBERS.items()
    ]
