"""A recipe, `configs/*.yaml`: what `jobs.teachers`, `jobs.plan` and `jobs.probe` are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from cluster.session import ClusterConfig
from pipeline.stores.places import Place
from pipeline.writing.samples import SamplesConfig
from pipeline.writing.worker import WorkerConfig
from shards_schema.plan import PlanConfig
from shards_schema.storage import stored_specs
from teachers import registry
from teachers.base import Teacher


class TeachersConfig(BaseModel):
    """`configs/*.yaml`.

    Attributes:
        out: where the dataset goes: a path or an fsspec URL.
        source: `kind` (navsim, nuplan, synthetic) and that source's own config.
        teachers: column name -> that teacher's config; `kind` names the teacher where it is not the column's name, and
            `storage` how a target is kept where not as it is computed ({l23_grid: int8}; `shards_schema.storage`).
            `batch_size: auto` is the dataset's own, or what `jobs.probe` measured (`pipeline.writing.batch_sizes`).
        plan: how scenes become shards.
        samples: what the `samples` column carries.
        zarr: whether targets also stand in `targets.zarr`, beside the tars.
        worker: threads and device.
        cluster: workers and Ray.
        scan_processes: processes that read logs while planning.
        retry: codes of quarantined samples (image_damaged, ...) whose shards are made again. null is what a file's
            arrival changes: images that were missing and are there now, logs that can be read now; [] is nothing.
        max_quarantined: largest share of the planned samples (and of the logs) that may be quarantined.
        rate: scenes a second of one device, for the hours that are told beforehand: of all teachers together, or by
            column; where it is not stated, what `jobs.probe` measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Place
    source: Mapping[str, Any]
    teachers: Mapping[str, Mapping[str, Any]]
    plan: PlanConfig = PlanConfig()
    samples: SamplesConfig = SamplesConfig()
    zarr: bool = True
    worker: WorkerConfig = WorkerConfig()
    cluster: ClusterConfig = ClusterConfig()
    scan_processes: int = Field(default=2, ge=1, le=1024)
    retry: tuple[str, ...] | None = None
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    rate: PositiveFloat | Mapping[str, PositiveFloat] | None = None


def build_teacher(column: str, fields: Mapping[str, Any]) -> Teacher:
    """Not loaded; all that can be said against its config without its weights is said."""
    given = {key: value for key, value in fields.items() if key not in ("kind", "storage")}
    teacher = registry.build(str(fields.get("kind", column)), given, column=column)
    stored_specs(teacher.specs, fields.get("storage") or {})
    return teacher
