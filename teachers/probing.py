"""How fast a teacher is at a batch size, and how much of its device's memory it takes.

The scenes are synthetic, since a network's speed does not depend on what it sees. The rate is of the device's own clock
on CUDA, of the wall's on the CPU, where memory is not looked at.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from shards_schema.errors import ConfigError, SampleError
from teachers.base import PhasedTeacher, Teacher, TeacherInput
from teachers.testing import synthetic_input

_SCENES = 4
"""Different scenes of a batch; a larger one repeats them."""


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


def measured(make: Callable[[], Teacher], size: int, device: str, seconds: float) -> Figure:
    """One size: once to warm up (and to compile), then for `seconds`, twice at least."""
    forget(device)
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
        try:
            inputs.append(synthetic_input(teacher, seed))
        except SampleError as error:
            raise ConfigError(
                f"teachers.{teacher.name}.batch_size: auto is measured on synthetic scenes, and this teacher refuses "
                f"them ({error}); give a number"
            ) from error
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


def room(device: str) -> float:
    """Bytes that torch may have on the device: what it has, and what is free."""
    if not device.startswith("cuda"):
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device))


def forget(device: str) -> None:
    """Give back what nobody holds, so that the next peak is its own."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
