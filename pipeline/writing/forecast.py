"""What a run will write, and whether its teachers can take the images: from the specs, and a look at three scenes.

Of an image only the header is looked at: what is in it may be anything, and this is the driver, not a worker.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.sources.base import Scan, Source
from pipeline.stores.decode import JpegHeader, read_header
from pipeline.writing import calibration
from pipeline.writing.images import read_image
from pipeline.writing.samples import SamplesColumn, StoredImage
from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from shards_schema.specs import TEXT, TargetSpec
from shards_schema.storage import stored_specs
from teachers.base import Teacher, needs_of

_BLOCK = 512
"""Of a tar: a member has one for its name, and fills its last."""
_NPY = 128
"""Bytes of a .npy file's header."""


@dataclass(frozen=True, slots=True)
class Glance:
    """A scene that was looked at.

    Attributes:
        scene: its records.
        missing: images, (step, channel), that are known not to be there.
        images: path -> bytes and header of those that were read so far.
    """

    scene: Scene
    missing: frozenset[tuple[int, str]] = frozenset()
    images: dict[str, tuple[bytes, JpegHeader]] = field(default_factory=dict)

    def image(self, step: int, channel: str) -> tuple[bytes, JpegHeader] | None:
        """None where it cannot be had."""
        if (step, channel) in self.missing:
            return None
        try:
            path = self.scene.camera(step, channel).image
            if path not in self.images:
                data = read_image(path)
                self.images[path] = data, read_header(data, path)
        except SampleError:
            return None
        return self.images[path]


def glances(source: Source, scan: Scan) -> list[Glance]:
    """The first, the middle and the last scene of a scan, of those that can be made."""
    out = []
    for place in sorted({0, len(scan.refs) // 2, len(scan.refs) - 1}) if scan.refs else ():
        ref = scan.refs[place]
        missing = frozenset(image for scenes in scan.missing.values() for image in scenes.get(ref.token, ()))
        out += [Glance(scene, missing) for scene in _scenes(source, ref)]
    return out


def _scenes(source: Source, ref: SceneRef) -> Iterator[Scene]:
    try:
        yield from (scene for scene in source.scenes(ref.log, [ref]) if isinstance(scene, Scene))
    except SampleError:
        return


def refuse_shapes(teachers: Sequence[Teacher], looked: Sequence[Glance]) -> None:
    """Refuse teachers that can take none of the images that were looked at, by their shape.

    Raises:
        ConfigError: each such teacher, the shape, and what it says of it.
    """
    faults = []
    for teacher in teachers:
        needs = needs_of(teacher)
        for channel in dict.fromkeys(image.channel for image in (needs.images if needs else ())):
            told = [
                _refusal(teacher, header)
                for glance in looked
                for image in (needs.images if needs else ())
                if image.channel == channel and (found := glance.image(image.step, channel)) is not None
                for header in (found[1],)
            ]
            if told and all(told):
                faults.append(f"{teacher.name}, {channel}: {told[0]}")
    if faults:
        raise ConfigError("these teachers cannot take the images of this source:\n  " + "\n  ".join(faults))


def _refusal(teacher: Teacher, header: JpegHeader) -> str | None:
    try:
        teacher.preprocess(np.zeros((header.height, header.width, 3), np.uint8))
    except SampleError as error:
        return f"image of {header.width} x {header.height}: {error.reason}"
    return None


def calibration_notes(views: Sequence[str], looked: Sequence[Glance]) -> list[str]:
    """What to say of images that are not those of their calibration, once a view.

    Raises:
        ConfigError: of a view that was looked at no intrinsics can be known; the first such image is named.
    """
    notes = []
    for view in views:
        there = [(glance, header) for glance in looked if (found := glance.image(0, view)) for header in (found[1],)]
        told: list[str | None] = []
        faults = []
        for glance, header in there:
            try:
                told.append(calibration.note(glance.scene.camera(0, view), (header.width, header.height)))
            except SampleError as error:
                faults.append(error.reason)
        if faults and not told:
            raise ConfigError(f"samples.views: {faults[0]}")
        notes += [note for note in dict.fromkeys(told) if note][:1]
    return notes


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a column's sample: in its tar, None where that is not known; and in `targets.zarr`."""

    tar: int | None
    zarr: int


def sizes(
    samples: SamplesColumn,
    teachers: Sequence[Teacher],
    configs: Mapping[str, Mapping[str, Any]],
    looked: Sequence[Glance],
) -> dict[str, Size]:
    """Of each column; `configs` are the teachers', for their ``storage``."""
    out = {layout.SAMPLES: Size(samples_bytes(samples, looked), zarr_bytes(samples.manifest({}).targets))}
    for teacher in teachers:
        specs = stored_specs(teacher.specs, configs[teacher.name].get("storage") or {})
        needs = needs_of(teacher)
        ragged = needs.ragged_bytes if needs is not None else 0
        known = ragged or not any(spec.ragged for spec in specs)
        out[teacher.name] = Size(tar_bytes(specs, ragged) if known else None, zarr_bytes(specs))
    return out


def tar_bytes(specs: Sequence[TargetSpec], ragged: int = 0) -> int:
    """Of a sample with these targets, in a tar; those without a fixed shape have `ragged` bytes together."""
    fixed = [_NPY + _bytes(spec) for spec in specs if not spec.ragged]
    return sum(_member(size) for size in fixed) + sum(_member(_NPY) for spec in specs if spec.ragged) + ragged


def zarr_bytes(specs: Sequence[TargetSpec]) -> int:
    """Of a sample's rows in `targets.zarr`, where only what has a fixed shape stands."""
    return sum(_bytes(spec) for spec in specs if not spec.ragged)


def samples_bytes(samples: SamplesColumn, looked: Sequence[Glance]) -> int | None:
    """Of a row of `samples` in its tar, the mean of the scenes that were looked at; None where none has its images."""
    sizes = []
    for glance in looked:
        stored = {view: glance.image(0, view) for view in samples.config.views}
        if all(stored.values()):
            images = {view: _stored(found, samples.config.size) for view, found in stored.items() if found}
            with contextlib.suppress(SampleError):  # of such a calibration; see `calibration_notes`
                sizes.append(sum(_member(len(data)) for data in samples.members(glance.scene, images).values()))
    return round(sum(sizes) / len(sizes)) if sizes else None


def _stored(found: tuple[bytes, JpegHeader], size: tuple[int, int] | None) -> StoredImage:
    """As it will be about: a smaller JPEG has as many bytes a pixel."""
    data, header = found
    original = header.width, header.height
    share = 1.0 if size is None else min(1.0, math.prod(size) / math.prod(original))
    return StoredImage(data[: round(share * len(data))], original, size or original)


def _member(size: int) -> int:
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def _bytes(spec: TargetSpec) -> int:
    return 24 if spec.dtype == TEXT else math.prod(spec.fixed_shape) * np.dtype(spec.dtype).itemsize
