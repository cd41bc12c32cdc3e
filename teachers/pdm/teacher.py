"""The PDM teacher: scene records and the nuPlan map in, the context of NAVSIM's reward out. No images, no network.

Its "weights" are the map files, whose digests are in the fingerprint. A scene that cannot be scored (no route, no
annotations, too little future) is refused by `requests`, so it is quarantined for this column alone; what was found out
there is kept for `compute`, a bounded number of scenes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from maps.folder import INDEX, MapFolder
from maps.nuplan_map import load_map
from scoring.context import RewardContext, Version
from scoring.references import complete
from shards_schema.errors import SampleError, ShardsError, WeightsError
from shards_schema.inputs.models import StrictModel
from shards_schema.records import Image, Scene
from teachers.base import ColumnName, ImageRequest, Needs, Targets, TeacherInput
from teachers.pdm.closed import with_closed
from teachers.pdm.drivable_map import RADIUS_M
from teachers.pdm.ego import PAST_FRAMES
from teachers.pdm.observation import FRAMES
from teachers.pdm.scene_context import FRAME_SECONDS, Prepared, prepare
from teachers.pdm.targets import Precision, target_specs, to_targets
from teachers.weights import file_digest

REVISION = "pdm 2"
"""Changes when the code gives other arrays."""

_RAGGED_BYTES = 150_000
"""Of map, agents and lights, in a usual scene; with the rest a sample has some 160 kB (docs/teachers.md)."""

_KEPT = 256
"""Prepared scenes that wait for `compute`, each some 0.3 MB; one that fell out is prepared again."""


class PDMConfig(StrictModel):
    """What the column holds."""

    name: ColumnName = "pdm"
    """The column."""
    maps_root: str = Field(min_length=1)
    """The folder of ``nuplan-maps-v1.0.json`` (NUPLAN_MAPS_ROOT)."""
    versions: tuple[Version, ...] = Field(("v1", "v2"), min_length=1)
    """Which scores it is for."""
    reactive: bool = False
    """v2: also what reactive traffic needs, for the two-stage score."""
    radius: float = Field(RADIUS_M, gt=0)
    """Metres around the ego, of map and forecast; NAVSIM has 100."""
    precision: Precision = "float32"
    """Of map, agents and centerline; the rest is float64."""
    batch_size: int = Field(16, ge=1)
    """Scenes scored together."""

    @field_validator("maps_root", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("versions")
    @classmethod
    def _once(cls, value: tuple[Version, ...]) -> tuple[Version, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each version once")
        return tuple(sorted(value))


class PDMTeacher:
    """A `teachers.base.Teacher`."""

    random_weights = False  # a map is no guess

    def __init__(self, config: PDMConfig) -> None:
        self.config = config
        self._maps = MapFolder(Path(config.maps_root).expanduser(), f"teachers.{config.name}.maps_root", WeightsError)
        self.name, self.batch_size = config.name, config.batch_size
        self.specs = target_specs(config.versions, config.precision, reactive=config.reactive)
        self.needs = _needs(config.versions)
        self._loaded = False
        self._prepared: OrderedDict[int, Prepared] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[PDMTeacher], tuple[PDMConfig]]:
        return PDMTeacher, (self.config,)

    def provenance(self) -> dict[str, Any]:
        """Config, and the digest of each location's map (read once a process).

        Raises:
            WeightsError: no maps at `maps_root`, or one that the index names is missing.
        """
        return {
            "revision": REVISION,
            "maps": {location: file_digest(self._maps.file(location)) for location in self._maps.locations()},
            "versions": list(self.config.versions),
            "radius": self.config.radius,
            "precision": self.config.precision,
            "batch_size": self.config.batch_size,
            **({"reactive": True} if self.config.reactive else {}),
        }

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """No images; but the scene is looked at, so that one which cannot be taught is refused here.

        Raises:
            SampleError: code ``no_map``, the location has none; those of `scene_context.prepare`.
        """
        prepared = self._prepare(scene)
        with self._lock:
            self._prepared[id(scene)] = prepared  # which holds the scene, so that its id stays its own
            self._prepared.move_to_end(id(scene))
            while len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        return []

    def preprocess(self, image: Image) -> Image:
        """As it is; nobody asks."""
        return image

    def load(self, device: str) -> None:
        """Scores are computed on the CPU whatever `device` is, beside the networks that it is for; maps are read when a
        scene needs them.

        Raises:
            WeightsError: there are no maps.
        """
        self._maps.locations()
        self._loaded = True

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        """The contexts of each scene, taken apart.

        Raises:
            SampleError: a scene that `requests` refused.
            ShardsError: `load` has not been called.
        """
        if not self._loaded:
            raise ShardsError("PDMTeacher.compute: call load(device) first")
        if not batch:
            return []
        prepared = [self._taken(item.scene) for item in batch]
        return [to_targets(contexts, self.config.precision) for contexts in reward_contexts(prepared)]

    def _taken(self, scene: Scene) -> Prepared:
        with self._lock:
            known = self._prepared.pop(id(scene), None)
        return self._prepare(scene) if known is None else known

    def _prepare(self, scene: Scene) -> Prepared:
        if scene.map_name not in self._maps.locations():
            raise SampleError(
                "no_map", f"scene {scene.token} of log {scene.log}: {self._maps.root / INDEX} has no {scene.map_name!r}"
            )
        world = load_map(self._maps.file(scene.map_name))
        return prepare(scene, world, self.config.versions, self.config.radius, reactive=self.config.reactive)


def _needs(versions: Sequence[Version]) -> Needs:
    """No images; annotated frames as far ahead as the scores look, and as far back as v2's comfort does."""
    return Needs(
        first=0 if versions == ("v1",) else -PAST_FRAMES,
        last=max(FRAMES[version] for version in versions) - 1,
        rate=round(1 / FRAME_SECONDS),
        rather=f"versions: [v2] looks {FRAMES['v2'] - 1} frames ahead" if "v1" in versions else "",
        ragged_bytes=_RAGGED_BYTES,
    )


def reward_contexts(prepared: Sequence[Prepared]) -> list[list[RewardContext]]:
    """The complete contexts of each scene, one a version, float64."""
    columns = [complete(list(column)) for column in zip(*with_closed(prepared), strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]
