"""`python -m jobs.plan CONFIG [key=value ...]`: what a run would find, write and take, and what forbids it.

Reads every log and lists every folder of images that a column asks for, once; no weights, no GPU, no Ray, and nothing
is written. Exit code as the run's would be: 0, 1 where more would be left out than `max_quarantined` allows, 2 where
the config asks for what no scene can have. CONFIG and keys are those of `jobs.teachers`.
"""

from __future__ import annotations

from typing import Any

from jobs import config as job_config
from jobs import forecast
from jobs.progress import lines
from jobs.recipe import TeachersConfig, build_teacher
from pipeline.sources import registry as sources
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes
from pipeline.writing.plan import make_plan
from pipeline.writing.samples import SamplesColumn
from shards_schema.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Run the job.

    Raises:
        ConfigError, IncompleteError: see `jobs.forecast.prepare`.
    """
    config = job_config.load(TeachersConfig, arguments)
    volume = Volume(config.out)
    sized = {column: _sized(volume, column, fields) for column, fields in config.teachers.items()}
    config = config.model_copy(update={"teachers": sized})
    teachers = [build_teacher(column, fields) for column, fields in config.teachers.items()]
    source = sources.build(config.source, progress=lines(lambda line: print(f"data: {line}", flush=True)))
    samples = SamplesColumn(config.samples, num_history=source.num_history, num_future=source.num_future)
    scan = forecast.prepare(config, source, volume, samples, teachers)
    plan = make_plan(scan.refs, config.plan)
    print(
        f"{plan.samples} scenes in {plan.shards} shards of at most {config.plan.shard_size} (plan {plan.digest[:12]})"
    )


def _sized(volume: Volume, column: str, fields: Any) -> dict[str, Any]:
    """A teacher's config; a batch size that nobody has measured yet decides nothing that is told here."""
    try:
        return batch_sizes.resolve({column: fields}, volume)[column]
    except ConfigError as error:
        print(f"NOTE: {error}")
        return {key: value for key, value in fields.items() if key != "batch_size"}


if __name__ == "__main__":
    job_config.run(main)
