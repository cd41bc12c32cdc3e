"""The teacher protocol: scenes and small images in, named target arrays out.

A teacher is a frozen function. It says which images of a scene it needs (`requests`), how one decoded image is made
small (`preprocess`, pure, run in the decode threads), and what comes out for a batch (`compute`, run by one thread on
one device). It knows no file format and no Ray; the pipeline knows no teacher but this file.

`compute` may come in three parts (`PhasedTeacher`), so that a device does not wait while a batch is stacked, copied or
taken apart. That is an offer: who makes `compute` alone is a teacher too.

Identity: `provenance()` holds everything that decides an output's bits (config, weights, preprocessing, revision of
the code). Its digest is the teacher's fingerprint; it must be known before the weights are loaded, because the driver,
which has no GPU, writes it into ``column.json`` and refuses to mix two of them.

Batch invariance: what is batched together follows from the plan, but a quarantined scene leaves a hole in its batch,
so a sample's targets must not depend on its neighbours beyond rounding. `teachers.testing.TeacherConformance` checks
all this; a new teacher passes it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from shards_schema.manifests import ColumnManifest
from shards_schema.records import Image, Scene
from shards_schema.specs import NAME, TargetSpec, refuse_reserved
from shards_schema.storage import stored_specs

Targets = dict[str, NDArray[Any]]
"""One sample's arrays by target name, as the specs say."""

AUTO: Literal["auto"] = "auto"

ColumnName = Annotated[str, Field(pattern="^" + NAME.pattern.replace(r"\Z", "$"))]
"""Of a config: the name of the column that a teacher writes."""


class ColumnConfig(BaseModel):
    """A column of a recipe's `teachers`: what is said of any kind. All other keys are of the kind's own config."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: str | None = None
    """The teacher, where it is not the column's name."""
    storage: Mapping[str, str] | None = None
    """Target -> how it is kept, where not as it is computed ({l23_grid: int8}; see docs/teachers.md)."""
    batch_size: PositiveInt | Literal["auto"] | None = None
    """Scenes that are computed together. `auto` is the dataset's own, or what `jobs.probe` measured."""

    @field_validator("storage", mode="before")
    @classmethod
    def _choices(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"expected target: choice, got {value!r}")
        return value

    @property
    def given(self) -> dict[str, Any]:
        """As it was given, which `column.json` tells."""
        return self.model_dump(exclude_unset=True)

    @property
    def of_kind(self) -> dict[str, Any]:
        """The fields of the kind's own config."""
        return self.model_dump(exclude_unset=True, exclude={"kind", "storage"})

    def sized(self, batch_size: int | None) -> ColumnConfig:
        """The same with another size; None is the kind's own default."""
        given = self.model_dump(exclude_unset=True, exclude={"batch_size"})
        return ColumnConfig(**given, **({} if batch_size is None else {"batch_size": batch_size}))


@dataclass(frozen=True, slots=True, order=True)
class ImageRequest:
    """One image of a scene: the exposure of `channel` at `step` frames from now (see `Scene.at`)."""

    step: int
    channel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What every scene must have for a teacher, as far as its config tells; the rest is found scene by scene.

    Attributes:
        images: without each of them a scene has no targets; all of them are among its `Teacher.requests`.
        first, last: steps of the earliest and the latest frame without which there are none, with or without images.
        rate: frames a second that it wants; None for any.
        rather: what its config may say where this cannot be had, as a clause.
        ragged_bytes: what its targets without a fixed shape come to in a usual scene.
    """

    images: tuple[ImageRequest, ...] = ()
    first: int = 0
    last: int = 0
    rate: int | None = None
    rather: str = ""
    ragged_bytes: int = 0

    @classmethod
    def of(cls, images: Sequence[ImageRequest], rather: str) -> Needs:
        """Of a teacher that needs these images, and the records of no other frame."""
        steps = [image.step for image in images]
        return cls(images=tuple(images), first=min(steps, default=0), last=max(steps, default=0), rather=rather)

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """The images, each of which `scene` has; for a teacher that asks every scene for the same ones.

        Raises:
            SampleError: code ``missing_frame`` or ``missing_camera``.
        """
        for image in self.images:
            scene.camera(image.step, image.channel)
        return list(self.images)


@dataclass(frozen=True, eq=False)
class TeacherInput:
    """What `compute` gets of one scene.

    Attributes:
        scene: the records.
        images: uint8 [N, h, w, 3] RGB, one for each of `Teacher.requests(scene)`, in that order, each as `preprocess`
            made it; [0] when the teacher asks for no images.
    """

    scene: Scene
    images: NDArray[np.uint8]

    @property
    def parts(self) -> Sequence[NDArray[np.uint8]]:
        """The images one by one, for who puts them elsewhere: `images` may have to copy them first."""
        return list(self.images)


class TakenInput(TeacherInput):
    """An input of images that were made one by one: they are stacked if somebody asks for `images`.

    Args:
        scene: the records.
        parts: each uint8 [h, w, 3].
    """

    def __init__(self, scene: Scene, parts: Sequence[NDArray[np.uint8]]) -> None:
        self.__dict__.update(scene=scene, _parts=parts)

    @property
    def parts(self) -> Sequence[NDArray[np.uint8]]:
        """As they were given."""
        parts: Sequence[NDArray[np.uint8]] = self.__dict__["_parts"]
        return parts

    @functools.cached_property
    def images(self) -> NDArray[np.uint8]:
        """See `TeacherInput`."""
        return np.stack(self.parts) if self.parts else np.zeros((0,), np.uint8)


@runtime_checkable
class Teacher(Protocol):
    """A frozen teacher. Constructing one is cheap; `load` builds the network and reads the weights."""

    @property
    def name(self) -> str:
        """The column it writes: ``[a-z][a-z0-9_]*``."""

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        """Its targets, in the order in which they are written."""

    @property
    def batch_size(self) -> int:
        """Scenes a `compute` call gets at most; part of the config, since floating point depends on it."""

    @property
    def random_weights(self) -> bool:
        """Whether its weights are random: outputs are then for testing only, and every record says so."""

    def provenance(self) -> dict[str, Any]:
        """JSON: config, weights (seed, or file and digest), preprocessing, revision of the code.

        Raises:
            WeightsError: the checkpoint cannot be found.
        """

    def requests(self, scene: Scene) -> Sequence[ImageRequest]:
        """The images that this teacher needs of `scene`, in order; may be empty.

        Raises:
            SampleError: the scene cannot be taught (e.g. no future frames); it is quarantined for this column.
        """

    def preprocess(self, image: Image) -> Image:
        """One decoded image as the network wants it, uint8 [h, w, 3]; pure and safe to call from many threads."""

    def load(self, device: str) -> None:
        """Build the network on `device` ("cpu", "cuda", "cuda:1") and read its weights. Idempotent.

        Raises:
            WeightsError: the checkpoint does not fit, or is not the one that `provenance` names.
        """

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        """The targets of each scene, in order. Called by one thread at a time, after `load`.

        Returns arrays exactly as `specs` says (non-finite values are left in: the writer quarantines them).
        """


class Launch(Protocol):
    """A batch that a device is at work on."""

    def wait(self) -> None:
        """Return when the device is done with it. Any thread, any number of times; it does not hold the GIL."""

    @property
    def seconds(self) -> float:
        """How long the device was at work, once `wait` has returned: by its own clock, else by the wall's."""


@runtime_checkable
class PhasedTeacher(Teacher, Protocol):
    """A teacher whose `compute` comes in three parts: ``collect(launch(stage(batch)))``, to the bit.

        any thread     stage(batch)    check, stack, begin the copy to the device
        the teacher's  launch(staged)  put the work in the device's queue, and begin the copy back; do not wait for it
        any thread     collect(launch) wait for the copy, hand out the targets

    Some batches are under way at a time, in the order of `launch`; what they hold is their own, so the next may be
    staged before the last is collected. `teachers.device.PhasedCompute` makes all this of three plain functions.
    """

    def stage(self, batch: Sequence[TeacherInput]) -> Any:
        """What `launch` takes, of one scene or more. It keeps no view of the inputs' images."""

    def launch(self, staged: Any) -> Launch:
        """Have the device begin. Called by one thread at a time, after `load`; `staged` is used up."""

    def collect(self, launch: Any) -> list[Targets]:
        """The targets of each scene, in order, of what `launch` gave; once."""


def needs_of(teacher: Teacher) -> Needs | None:
    """What a teacher says that every scene must have, before any is looked at; None where it has no attribute `needs`.

    It is an offer: with it, what cannot be had is said before any work, and counted by the existence of files.
    """
    needs = getattr(teacher, "needs", None)
    return needs if isinstance(needs, Needs) else None


def column_manifest(
    teacher: Teacher,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    storage: Mapping[str, str] | None = None,
) -> ColumnManifest:
    """`column.json` of the column that `teacher` writes; `config` and `environment` are told there, not compared.

    Args:
        teacher: constructed, not loaded.
        config: as it was given.
        environment: versions of libraries.
        storage: target -> how it is kept, where not as it is computed; see `shards_schema.storage`.

    Raises:
        WeightsError: the checkpoint cannot be found.
        ConfigError: a storage that a target cannot have, or a name of the column or of a target that is reserved.
    """
    targets = stored_specs(teacher.specs, storage or {})
    refuse_reserved(teacher.name, targets)
    return ColumnManifest(
        column=teacher.name,
        targets=targets,
        provenance=teacher.provenance(),
        random_weights=teacher.random_weights,
        config=config or {},
        environment=environment or {},
    )


def fingerprint(teacher: Teacher, storage: Mapping[str, str] | None = None) -> str:
    """Digest of name, `provenance()` and what is stored: equal if and only if outputs may be mixed."""
    return column_manifest(teacher, storage=storage).identity
