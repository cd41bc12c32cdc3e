"""`python -m jobs.plan CONFIG [scenes=N] [devices=M] [key=value ...]`: what a run finds and takes, and what forbids it.

Reads every log and lists every folder of images that a column asks for, once; no weights, no GPU, no Ray, and nothing
is written. Exit code as the run's would be: 0, 1 where more would be left out than `max_quarantined` allows, 2 where
the config asks for what no scene can have. CONFIG and keys are those of `jobs.teachers`. `last_shards.plan` gives the
same to a program.
"""

from __future__ import annotations

from pydantic import Field

from jobs import config as job_config
from jobs.recipe import TeachersConfig
from pipeline.sources import registry as sources
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes
from pipeline.writing.plan import make_plan
from pipeline.writing.samples import SamplesColumn
from reports import forecast
from reports.progress import lines
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from teachers.base import ColumnConfig
from teachers.registry import build_teacher


class PlanJobConfig(StrictModel):
    """The recipe, and for what else its bytes and hours are told."""

    recipe: TeachersConfig
    """Of `jobs.teachers`; its fields are given as there."""
    scenes: int | None = Field(default=None, ge=1, le=1 << 40)
    """Tell bytes and hours for so many scenes too; null is as many as there are."""
    devices: int = Field(default=1, ge=1, le=1 << 20)
    """GPUs (or CPU workers, where `rate` is of one) that work at it."""


def main(arguments: list[str]) -> None:
    """Run the job.

    Raises:
        ConfigError, IncompleteError: see `reports.forecast.prepare`.
    """
    asked: PlanJobConfig = job_config.load_around(PlanJobConfig, TeachersConfig, arguments)
    config = asked.recipe
    volume = Volume(config.out)
    sized = {column: _sized(volume, column, fields) for column, fields in config.teachers.items()}
    config = config.model_copy(update={"teachers": sized})
    teachers = [build_teacher(column, fields) for column, fields in config.teachers.items()]
    source = sources.build(config.source, progress=lines(lambda line: print(f"data: {line}", flush=True)))
    samples = SamplesColumn(config.samples, num_history=source.num_history, num_future=source.num_future)
    found = forecast.prepare(config, source, volume, samples, teachers)
    plan = make_plan(found.scan.refs, config.plan)
    print(
        f"{plan.samples} scenes in {plan.shards} shards of at most {config.plan.shard_size} (plan {plan.digest[:12]})"
    )
    if asked.scenes is not None or asked.devices > 1:
        print(forecast.scaled(found, asked.scenes or plan.samples, asked.devices))


def _sized(volume: Volume, column: str, fields: ColumnConfig) -> ColumnConfig:
    """A teacher's config; a batch size that nobody has measured yet decides nothing that is told here."""
    try:
        return batch_sizes.resolve({column: fields}, volume)[column]
    except ConfigError as error:
        print(f"NOTE: {error}")
        return fields.sized(None)


if __name__ == "__main__":
    job_config.run(main)
