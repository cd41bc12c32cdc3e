"""A committed dataset, written without a pipeline to make it: what a measurement of readers or of training needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.stores.column import ColumnShardWriter
from pipeline.stores.volume import Volume
from pipeline.writing.plan import make_plan
from shards_schema import layout
from shards_schema.codecs import seal_of
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.plan import PlanConfig, SceneRef
from shards_schema.specs import TargetSpec

SPEC = TargetSpec.of("latents", "view patch channel", (2, 196, 1024), "float16", "1", "noise")
Members = Callable[[SceneRef], Mapping[str, Any]]
"""What a scene has in a column: the arrays of its targets, by name; else tar members, bytes by extension."""


def column(name: str, targets: tuple[TargetSpec, ...] = (), **provenance: object) -> ColumnManifest:
    """What is said of a column whose values are noise."""
    return ColumnManifest(
        column=name, targets=targets, provenance=provenance, random_weights=True, config={}, environment={}
    )


def write_dataset(
    out: Path, refs: Sequence[SceneRef], shard_size: int, columns: Sequence[tuple[ColumnManifest, Members]]
) -> None:
    """Plan the scenes, and commit every shard of every column; without Zarr and index."""
    volume = Volume(str(out))
    plan_config = PlanConfig(shard_size=shard_size)
    plan = make_plan(refs, plan_config)
    recorded = {"digest": plan.digest, "samples": plan.samples, "shards": plan.shards} | plan_config.model_dump()
    manifest = DatasetManifest(
        source={"kind": "noise"}, plan=recorded, zarr=False, synthetic=True, notices=(), code_version="benchmark"
    )
    volume.put(layout.PLAN, plan.to_parquet())
    volume.put(layout.DATASET, manifest.to_bytes())
    seal = seal_of(manifest.to_bytes())
    for described, members in columns:
        volume.put(layout.column_json(described.column), described.to_bytes())
        for shard in range(plan.shards):
            scenes = plan.shard(shard).scenes
            with ColumnShardWriter(
                volume, described, dataset=seal, shard=shard, shard_size=shard_size, zarr=False
            ) as writer:
                for scene in scenes:
                    if described.targets:
                        writer.add_targets(scene.ref.token, scene.row, members(scene.ref))
                    else:
                        writer.add(scene.ref.token, scene.row, members(scene.ref), {})
                writer.commit([scene.ref.token for scene in scenes])
