"""A teacher in one class, and the suite that says whether it may be trusted: `pytest examples/add_a_teacher.py`.

This one has no network: it tells how bright each camera's image is. docs/add-a-teacher.md makes a column with one that
has, as a package of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

import last_shards as ls


class Brightness:
    name, batch_size, random_weights = "brightness", 4, False
    specs = (
        ls.TargetSpec(
            name="mean", dims=("view", "channel"), shape=(2, 3), dtype="float32", unit="1", meaning="Mean RGB, 0 to 1."
        ),
    )

    def __init__(self, views: Sequence[str] = ("CAM_F0", "CAM_L0")) -> None:
        self.views = tuple(views)

    def provenance(self) -> dict[str, Any]:
        return {"kind": "brightness", "revision": 1, "views": list(self.views)}

    def requests(self, scene: Any) -> list[ls.ImageRequest]:
        for view in self.views:
            scene.camera(0, view)  # a SampleError where there is none
        return [ls.ImageRequest(0, view) for view in self.views]

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        return image  # uint8 [H, W, 3]

    def load(self, device: str) -> None:
        pass

    def compute(self, batch: Sequence[ls.TeacherInput]) -> list[dict[str, np.ndarray]]:
        return [{"mean": np.stack([i.mean((0, 1), np.float32) / np.float32(255) for i in t.images])} for t in batch]


class TestBrightness(ls.TeacherConformance):
    def make(self) -> ls.Teacher:
        return Brightness()

    def make_other_weights(self) -> None:
        return None  # it has none

    def make_other_config(self) -> ls.Teacher:
        return Brightness(("CAM_F0", "CAM_R0"))
