"""`python -m jobs.probe CONFIG [key=value ...]`: the batch size of each teacher whose config says `batch_size: auto`.

Builds the teacher as a worker would, with the others of the recipe on the same GPU, and doubles its batch until the
rate has stopped growing or the memory is used up. Prints what it found, as a table and as lines for the recipe, and
leaves it in the recipe's OUT, where `python -m jobs.teachers` finds it (see `pipeline.writing.batch_sizes`).

The scenes are synthetic, since a network's speed does not depend on what it sees. The rate is of the device's own clock
on CUDA, of the wall's on the CPU, where memory is not looked at. What neither sees is the rest of the job: a rate is a
ceiling (`make bench` holds the job against it).
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import Field

from jobs import config as job_config
from jobs.recipe import TeachersConfig
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes
from pipeline.writing.device import device_name, refuse_absent, resolved
from reports.tables import bytes_text, table
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from teachers.base import AUTO, Teacher
from teachers.probing import Figure, chosen, forget, measured, room, search
from teachers.registry import build_teacher


class ProbeConfig(StrictModel):
    """The recipe, and how to look."""

    recipe: TeachersConfig
    """Of `jobs.teachers`; its fields are given as there."""
    memory_share: float = Field(default=0.8, gt=0, le=0.95)
    """Of the GPU's memory that is free (all teachers loaded), what a batch may take at its peak."""
    growth: float = Field(default=0.03, ge=0)
    """A doubled batch must be faster by this share, or it is not taken."""
    seconds: float = Field(default=2.0, gt=0)
    """To measure each size for, at least."""
    largest: int | None = Field(default=None, ge=1)
    """Size to stop at; None is the plan's shard_size, which no batch exceeds."""


def main(arguments: list[str]) -> None:
    """Run the job."""
    config: ProbeConfig = job_config.load_around(ProbeConfig, TeachersConfig, arguments)
    recipe, volume = config.recipe, Volume(config.recipe.out)
    refuse_absent(recipe.worker.device)
    wanted = [column for column, fields in recipe.teachers.items() if fields.batch_size == AUTO]
    if not wanted:
        raise ConfigError(
            "no teacher of this config has batch_size: auto; set it for one (teachers.NAME.batch_size=auto)"
        )
    if recipe.worker.torch_threads is not None:
        torch.set_num_threads(recipe.worker.torch_threads)
    device = resolved(recipe.worker.device)
    found: dict[str, int] = {}
    for column in wanted:
        if (size := batch_sizes.recorded(volume, column)) is not None:
            print(f"{column}: the dataset has this column, with batch_size {size}; a run there resumes with it")
            continue
        found[column] = _probe(config, column, device, volume)
    if found:
        print("\nfor the recipe, or as they are (jobs.teachers finds them in the dataset's logs):\nteachers:")
        print("\n".join(f"  {column}: {{batch_size: {size}}}" for column, size in found.items()))


def _probe(config: ProbeConfig, column: str, device: str, volume: Volume) -> int:
    """Measure one column, print the table, write the record; the size."""
    recipe, name = config.recipe, device_name(device)
    # its neighbours take their memory before it is told what is free
    others = (
        [] if device == "cpu" else [_built(recipe, other, 1, device) for other in recipe.teachers if other != column]
    )
    budget = config.memory_share * room(device)
    fields = recipe.teachers[column]
    largest = config.largest or recipe.plan.shard_size

    def measure(size: int) -> Figure:
        return measured(lambda: _built(recipe, column, size, device), size, device, config.seconds)

    figures = search(measure, largest=largest, budget=budget, growth=config.growth)
    size = chosen(figures, budget=budget, growth=config.growth)
    print(f"\n{column} on {name}" + (f", {bytes_text(budget)} to use" if budget < float("inf") else ", rate alone"))
    print(table(["batch", "scenes/s", "peak memory", ""], [_row(figure, size) for figure in figures]), flush=True)
    del others
    forget(device)
    if size is None:
        raise ConfigError(
            f"teachers.{column}: not one scene fits into {bytes_text(budget)} on {name}; take a smaller network or "
            "images, dtype: bfloat16, a larger GPU, or raise memory_share"
        )
    batch_sizes.write(volume, {column: batch_sizes.entry(fields, size, name, [asdict(f) for f in figures])})
    return size


def _row(figure: Figure, size: int | None) -> list[str]:
    return [
        str(figure.batch_size),
        "out of memory" if figure.rate is None else f"{figure.rate:.2f}",
        "-" if figure.peak is None else bytes_text(figure.peak),
        "<- chosen" if figure.batch_size == size else "",
    ]


def _built(recipe: TeachersConfig, column: str, size: int, device: str) -> Teacher:
    """The teacher of `column`, loaded; with `size` in the place of ``auto``."""
    fields = recipe.teachers[column]
    teacher = build_teacher(column, fields.sized(size) if fields.batch_size == AUTO else fields)
    teacher.load(device)
    return teacher


if __name__ == "__main__":
    job_config.run(main)
