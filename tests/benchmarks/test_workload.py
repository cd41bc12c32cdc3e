"""The imitated device of the job's measurement is a teacher in phases, and does one batch after the other."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import SHAPE, FixedDevice
from teachers.base import PhasedTeacher, TeacherInput


def test_a_batch_begins_when_the_device_has_done_the_one_before() -> None:
    teacher = FixedDevice(seconds=0.01, batch_size=2)
    assert isinstance(teacher, PhasedTeacher), "the worker would give it the thread of those that compute"
    teacher.load("cpu")
    image = np.zeros((1, 1, 1, 3), np.uint8)
    batch = [TeacherInput(None, image)] * 2  # type: ignore[arg-type]
    first, second = teacher.launch(teacher.stage(batch)), teacher.launch(teacher.stage(batch))
    assert second.began == first.ends
    assert first.seconds == second.seconds
    made = [targets["latents"] for flight in (first, second) for targets in teacher.collect(flight)]
    assert [latents.shape for latents in made] == [SHAPE] * 4
