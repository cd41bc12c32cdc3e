"""The VGGT teacher under the suite that every teacher passes."""

from __future__ import annotations

from typing import Any, ClassVar

import teachers.vggt
from teachers.base import Teacher
from teachers.testing import TeacherConformance

TINY: dict[str, Any] = {
    "weights": {"random": 0},
    "network": "tiny",
    "width": 126,
    "pools": {"grid": {"rows": 3, "cols": 5}, "tok12": {"rows": 3, "cols": 4, "flat": True}},
}


class TestThreeViews(TeacherConformance):
    config: ClassVar[dict[str, Any]] = TINY
    other: ClassVar[dict[str, Any]] = {"views": ("CAM_F0", "CAM_R0", "CAM_L0")}

    def make(self) -> Teacher:
        return teachers.vggt.build(self.config)

    def make_other_weights(self) -> Teacher:
        return teachers.vggt.build(self.config | {"weights": {"random": 1}})

    def make_other_config(self) -> Teacher:
        return teachers.vggt.build(self.config | self.other)


class TestTwoMoments(TestThreeViews):
    """Of one camera, under bfloat16 autocast, with two layers."""

    config = TINY | {"views": ("CAM_F0",), "window": (-1, 0), "layers": (0, 3), "dtype": "bfloat16"}
    other: ClassVar[dict[str, Any]] = {"window": (0, -1)}
