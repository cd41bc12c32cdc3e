"""What of a recipe, `configs/*.yaml`, decides what is made, and how one process makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from pipeline.stores.places import Place
from pipeline.writing.samples import SamplesConfig
from pipeline.writing.worker import WorkerConfig
from shards_schema.inputs import documents
from shards_schema.inputs.models import StrictModel, validated
from shards_schema.manifests import ZarrMode
from shards_schema.plan import PlanConfig
from teachers.base import ColumnConfig

Log = Literal["text", "json"]


class Recipe(StrictModel):
    """A recipe, but for the machines that it runs on."""

    out: Place
    """Where the dataset goes: a path or an fsspec URL."""
    source: Mapping[str, Any]
    """`kind` (navsim, nuplan, synthetic) and that source's own config."""
    teachers: Mapping[str, ColumnConfig]
    """Column name -> that teacher's config. `batch_size: auto` is the dataset's own, or what `jobs.probe` measured."""
    plan: PlanConfig = PlanConfig()
    """How scenes become shards."""
    samples: SamplesConfig = SamplesConfig()
    """What the `samples` column carries."""
    zarr: ZarrMode = True
    """Whether targets also stand in `targets.zarr`, beside the tars. `view`: they do not, and `targets.view` has
    references to them, which zarr and xarray read as the same arrays."""
    worker: WorkerConfig = WorkerConfig()
    """Threads and device."""
    cluster: Any = None
    """Workers and Ray; nothing is asked of it here."""
    scan_processes: int = Field(default=2, ge=1, le=1024)
    """Processes that read logs while planning."""
    retry: tuple[str, ...] | None = None
    """Codes of quarantined samples (image_damaged, ...) whose shards are made again. null is what a file's arrival
    changes: images that were missing and are there now, logs that can be read now; [] is nothing."""
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """Largest share of the planned samples (and of the logs) that may be quarantined."""
    rate: PositiveFloat | Mapping[str, PositiveFloat] | None = None
    """Scenes a second of one device, for the hours that are told beforehand: of all teachers together, or by column;
    where it is not stated, what `jobs.probe` measured."""
    log: Log = "text"
    """json: stdout gets a line of JSON a minute, one at the start and one at the end, and all else goes to stderr."""

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> Recipe:
        """From what a file or a caller says; ``${VAR}`` is taken from the environment.

        Args:
            values: key -> value.
            name: what to call it in an error.

        Raises:
            ConfigError: each key that is unknown, missing or impossible.
        """
        return validated(cls, documents.expanded(dict(values)), f"{name}: ")
