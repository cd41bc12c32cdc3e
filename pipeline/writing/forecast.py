"""What a run will find, write and take: from the logs, the folders of images, the specs, and a look at three scenes.

Of an image only the header is looked at: what is in it may be anything, and this is the driver, not a worker.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow.compute as pc

from pipeline.sources.base import Scan, Source
from pipeline.stores import generations
from pipeline.stores.decode import JpegHeader, read_header
from pipeline.stores.records import committed, read_manifest
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes, calibration, coverage
from pipeline.writing.images import read_image
from pipeline.writing.recipe import Recipe
from pipeline.writing.samples import SamplesColumn, StoredImage
from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from shards_schema.specs import TEXT, TargetSpec
from shards_schema.storage import stored_specs
from teachers.base import ColumnConfig, Needs, Teacher, needs_of

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


@dataclass(frozen=True, slots=True)
class ColumnForecast:
    """A column, before a run.

    Attributes:
        name: of the column.
        scenes: of the plan.
        covered: of them, those with every image that it asks for; None where teacher or source does not say.
        lacking: the images that are missing, in words; "" for none.
        tar: bytes of a sample in its tar; None where that is not known.
        zarr: bytes of its rows in `targets.zarr`, whether or not the recipe wants them.
        made: whether it is committed for every scene.
        rate: scenes a second of one device, as the recipe states it or as `jobs.probe` measured it; None where neither
            does, infinite where no device works for it.
        past: of `tar`, the bytes of images before now that `samples` stores (``samples.history``); None as there.
    """

    name: str
    scenes: int
    covered: int | None
    lacking: str
    tar: int | None
    zarr: int
    made: bool
    rate: float | None
    past: int | None = 0


@dataclass(frozen=True)
class Forecast:
    """What a run finds, writes and takes.

    Attributes:
        recipe: as it was given.
        scan: what the source has; ``scan.refs`` are the scenes.
        columns: in their order, `samples` first.
        needs: column -> what it asks every scene for; None where the teacher does not say.
        looked: the scenes that were looked at; none where nothing is to be made.
    """

    recipe: Recipe
    scan: Scan
    columns: tuple[ColumnForecast, ...]
    needs: Mapping[str, Needs | None]
    looked: Sequence[Glance]

    def __repr__(self) -> str:
        covered = ", ".join(f"{c.name} {'?' if c.covered is None else c.covered}" for c in self.columns)
        hours = self.hours()
        told = "hours not known" if hours is None else f"{hours:.3g} device hours"
        return (
            f"Forecast({self.scenes} scenes, with all images: {covered}; {self.size() / 1e9:.3g} GB to write, {told})"
        )

    @property
    def scenes(self) -> int:
        """How many are planned."""
        return len(self.scan.refs)

    @property
    def todo(self) -> tuple[str, ...]:
        """The columns that are still to be made."""
        return tuple(column.name for column in self.columns if not column.made)

    def size(self, scenes: int | None = None, *, zarr: bool | None = None) -> int:
        """Bytes to write; a column of which the size is not known counts for nothing.

        Args:
            scenes: of every column; None is what this run has to do.
            zarr: with `targets.zarr` or without; None is as the recipe has it (a view is next to nothing).
        """
        both = self.recipe.zarr is True if zarr is None else zarr
        return sum(
            (self.scenes if scenes is None else scenes) * ((column.tar or 0) + (column.zarr if both else 0))
            for column in self.columns
            if scenes is not None or not column.made
        )

    def hours(self, scenes: int | None = None, *, devices: int = 1) -> float | None:
        """What it takes with so many devices at work all the time; None where the rate of some column is not known.

        Args:
            scenes: of every column; None is what this run has to do.
            devices: GPUs, or whatever the rate is of.
        """
        count = self.scenes if scenes is None else scenes
        if isinstance(self.recipe.rate, int | float):
            return count / self.recipe.rate / 3600 / devices
        rates = [column.rate for column in self.columns if scenes is not None or not column.made]
        return None if None in rates else sum(count / rate for rate in rates if rate) / 3600 / devices

    def refuse_short(self, source: Source) -> None:
        """Refuse what is sure to leave out more than the recipe's `max_quarantined`.

        Raises:
            IncompleteError: with the numbers, and the ways out.
        """
        coverage.refuse_short(source, self.scan, self.needs, self.todo, self.recipe.max_quarantined)

    def calibration_notes(self) -> list[str]:
        """What to say of images that are not those of their calibration, where `samples` is to be made.

        Raises:
            ConfigError: of a view no intrinsics can be known.
        """
        return calibration_notes(self.recipe.samples.views, self.looked) if layout.SAMPLES in self.todo else []


def look(
    recipe: Recipe, source: Source, volume: Volume, samples: SamplesColumn, teachers: Sequence[Teacher]
) -> Forecast:
    """Read every log, list every folder of images that a column asks for, and look at three scenes.

    Args:
        recipe: which says what is wanted.
        source: its logs.
        volume: where the dataset goes, or is.
        samples: the `samples` column.
        teachers: constructed, not loaded.

    Raises:
        ConfigError: what no scene can have, by the recipe alone; or ``plan.require`` leaves none.
    """
    needs = coverage.column_needs(samples.config, teachers)
    coverage.refuse_impossible(source, needs)
    scan = coverage.look(source, needs, processes=recipe.scan_processes)
    known = generations.read(volume, *read_manifest(volume)) if volume.exists(layout.DATASET) else None
    if recipe.plan.require:
        scan = coverage.only_covered(source, scan, needs, recipe.plan.require, _tokens(known, volume))
    made = [column for column in needs if known is not None and len(committed(volume, column)) >= known.shards]
    scan, grown = _still_needed(scan, known, volume, made)
    made = [] if grown else made
    looked = glances(source, scan) if len(made) < len(needs) else []
    each = sizes(samples, teachers, recipe.teachers, looked)
    columns = [
        ColumnForecast(
            found.column,
            found.scenes,
            found.covered,
            found.lacking,
            each[found.column].tar,
            each[found.column].zarr,
            found.column in made,
            _rate(recipe, volume, found.column),
            past_bytes(samples, looked) if found.column == layout.SAMPLES else 0,
        )
        for found in coverage.coverage(source, scan, needs)
    ]
    return Forecast(recipe, scan, tuple(columns), needs, looked)


def _rate(recipe: Recipe, volume: Volume, column: str) -> float | None:
    """Of a column on one device: as stated, else as `jobs.probe` measured."""
    if column not in recipe.teachers:
        return math.inf
    stated = recipe.rate.get(column) if isinstance(recipe.rate, Mapping) else None
    measured = batch_sizes.rate(volume, column, recipe.teachers[column]) if stated is None else None
    return measured[0] if measured else stated


def _still_needed(
    scan: Scan, known: generations.Generations | None, volume: Volume, made: Sequence[str]
) -> tuple[Scan, bool]:
    """The scan without the missing images of what is made, and whether there are more scenes than are planned."""
    grown = known is None or len(scan.refs) > known.now.plan["samples"]
    lost = {column: scenes for column, scenes in scan.missing.items() if scenes}
    if behind := lost.keys() & made:
        planned = _tokens(known, volume) if grown else frozenset[str]()
        for column in behind:
            lost[column] = {t: images for t, images in lost[column].items() if t not in planned} if grown else {}
    return replace(scan, missing=lost), grown


def _tokens(known: generations.Generations | None, volume: Volume) -> frozenset[str]:
    """Of the scenes that a dataset has planned."""
    return frozenset() if known is None else frozenset(pc.unique(known.plan(volume).table["token"]).to_pylist())


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
    configs: Mapping[str, ColumnConfig],
    looked: Sequence[Glance],
) -> dict[str, Size]:
    """Of each column; `configs` are the teachers', for their ``storage``."""
    out = {layout.SAMPLES: Size(samples_bytes(samples, looked), zarr_bytes(samples.manifest({}).targets))}
    for teacher in teachers:
        specs = stored_specs(teacher.specs, configs[teacher.name].storage or {})
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
        stored = {name: glance.image(r.step, r.channel) for name, r in samples.config.images.items()}
        if all(stored.values()):
            images = {name: _stored(found, samples.config.size) for name, found in stored.items() if found}
            with contextlib.suppress(SampleError):  # of such a calibration; see `calibration_notes`
                sizes.append(sum(_member(len(data)) for data in samples.members(glance.scene, images).values()))
    return round(sum(sizes) / len(sizes)) if sizes else None


def past_bytes(samples: SamplesColumn, looked: Sequence[Glance]) -> int | None:
    """Of those, what is there for the history."""
    if not samples.config.history:
        return 0
    config = samples.config.model_copy(update={"history": 0})
    now = SamplesColumn(config, num_history=samples.num_history, num_future=samples.num_future)
    every, without = samples_bytes(samples, looked), samples_bytes(now, looked)
    return None if every is None or without is None else every - without


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
