"""What ships with the package to test a teacher with: the conformance suite, and synthetic scenes to run it on.

class TestMine(TeacherConformance): ...        # see teachers.testing.conformance
"""

from __future__ import annotations

from teachers.testing.conformance import TeacherConformance
from teachers.testing.scenes import FRAME_US, bare_scene, synthetic_image, synthetic_input, synthetic_scene

__all__ = ["FRAME_US", "TeacherConformance", "bare_scene", "synthetic_image", "synthetic_input", "synthetic_scene"]
