"""`python -m jobs.probe CONFIG [key=value ...]`: the batch size of each teacher whose config says `batch_size: auto`.

Builds the teacher as a worker would, with the others of the recipe on the same GPU, and doubles its batch until the
rate has stopped growing or the memory is used up. Prints what it found, as a table and as lines for the recipe, and
leaves it in the recipe's OUT, where `python -m jobs.teachers` finds it (see `pipeline.writing.batch_sizes`).

The scenes are synthetic, since a network's speed does not depend on what it sees. The rate is of the device's own clock
on CUDA, of the wall's on the CPU, where memory is not looked at. What neither sees is the rest of the job: a rate is a
ceiling (`make bench` holds the job against it).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from pydantic import Field

from jobs import config as job_config
from jobs.recipe import TeachersConfig
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes
from pipeline.writing.device import device_name, refuse_absent, resolved
from reports.tables import bytes_text, table
from shards_schema.errors import ConfigError, SampleError
from shards_schema.inputs.models import StrictModel
from teachers.base import AUTO, PhasedTeacher, Teacher, TeacherInput
from teachers.registry import build_teacher
from teachers.testing import synthetic_image, synthetic_scene

_SCENES = 4
"""Different scenes of a batch; a larger one repeats them."""
_IMAGE = (480, 270)
"""Width and height of their images [px], of nuPlan's aspect; `preprocess` makes them what the network wants."""


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


@dataclass(frozen=True, slots=True)
class Figure:
    """One size, measured.

    Attributes:
        batch_size: scenes.
        rate: scenes/s; None where the memory did not hold them.
        peak: bytes that torch held on the GPU at most; None on the CPU.
    """

    batch_size: int
    rate: float | None
    peak: int | None


def search(measure: Callable[[int], Figure], *, largest: int, budget: float, growth: float) -> list[Figure]:
    """Sizes 1, 2, 4, ... up to `largest`, as far as looking pays; the chosen one is `chosen` of them.

    Args:
        measure: one size.
        largest: the last size.
        budget: bytes that a size may take at its peak.
        growth: share by which a size must be faster than the one before.
    """
    figures: list[Figure] = []
    size = 1
    while size <= largest:
        figures.append(measure(size))
        if chosen(figures, budget=budget, growth=growth) != size:
            break
        size *= 2
    return figures


def chosen(figures: list[Figure], *, budget: float, growth: float) -> int | None:
    """The last size that fits and was worth its doubling; None where not even one scene fits."""
    best, best_rate = None, 0.0
    for figure in figures:
        if figure.rate is None or (figure.peak or 0) > budget or figure.rate < (1 + growth) * best_rate:
            break
        best, best_rate = figure.batch_size, figure.rate
    return best


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
    budget = config.memory_share * _room(device)
    fields = recipe.teachers[column]
    largest = config.largest or recipe.plan.shard_size

    def measure(size: int) -> Figure:
        return _measured(lambda: _built(recipe, column, size, device), size, device, config.seconds)

    figures = search(measure, largest=largest, budget=budget, growth=config.growth)
    size = chosen(figures, budget=budget, growth=config.growth)
    print(f"\n{column} on {name}" + (f", {bytes_text(budget)} to use" if budget < float("inf") else ", rate alone"))
    print(table(["batch", "scenes/s", "peak memory", ""], [_row(figure, size) for figure in figures]), flush=True)
    del others
    _forget(device)
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


def _measured(make: Callable[[], Teacher], size: int, device: str, seconds: float) -> Figure:
    """One size: once to warm up (and to compile), then for `seconds`, twice at least."""
    _forget(device)
    try:
        teacher = make()
        batch = _batch(teacher, size)
        _busy(teacher, batch)
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) < 2 or time.perf_counter() - began < seconds:
            taken.append(_busy(teacher, batch))
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return Figure(size, None, None)
    peak = torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else None
    return Figure(size, size / float(np.median(taken)), peak)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether it is the device's memory, or the host's pinned one; cuDNN and cuBLAS have errors of their own for it."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in told or "ALLOC_FAILED" in told


def _batch(teacher: Teacher, size: int) -> list[TeacherInput]:
    inputs = []
    for seed in range(min(size, _SCENES)):
        scene = synthetic_scene(seed, before=1, size=_IMAGE)
        try:
            images = [teacher.preprocess(synthetic_image(scene, r, _IMAGE)) for r in teacher.requests(scene)]
        except SampleError as error:
            raise ConfigError(
                f"teachers.{teacher.name}.batch_size: auto is measured on synthetic scenes, and this teacher refuses "
                f"them ({error}); give a number"
            ) from error
        inputs.append(TeacherInput(scene, np.stack(images) if images else np.zeros((0,), np.uint8)))
    return [inputs[i % len(inputs)] for i in range(size)]


def _busy(teacher: Teacher, batch: list[TeacherInput]) -> float:
    """Seconds that the device was at work on a batch; where the teacher has no phases, that `compute` took."""
    if isinstance(teacher, PhasedTeacher):
        launch = teacher.launch(teacher.stage(batch))
        teacher.collect(launch)
        return launch.seconds
    began = time.perf_counter()
    teacher.compute(batch)
    return time.perf_counter() - began


def _room(device: str) -> float:
    """Bytes that torch may have on the device: what it has, and what is free."""
    if not device.startswith("cuda"):
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device))


def _forget(device: str) -> None:
    """Give back what nobody holds, so that the next peak is its own."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    job_config.run(main)
