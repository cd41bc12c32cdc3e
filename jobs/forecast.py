"""What is certain before a run begins: what its scenes have, what it will write and take, and what is refused for it.

`python -m jobs.plan` prints this and ends; `jobs.teachers` prints it before Ray is started and weights are loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from jobs.recipe import TeachersConfig
from pipeline.sources.base import Scan, Source
from pipeline.stores import generations
from pipeline.stores.records import committed, read_manifest
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes, coverage, forecast
from pipeline.writing.samples import SamplesColumn
from reports.tables import bytes_text, table
from shards_schema import layout
from teachers.base import Needs, Teacher


def prepare(
    config: TeachersConfig, source: Source, volume: Volume, samples: SamplesColumn, teachers: Sequence[Teacher]
) -> Scan:
    """Look, tell, refuse; what is left is to be planned.

    Args:
        config: the recipe.
        source: the logs.
        volume: where the dataset goes, or is.
        samples: the `samples` column.
        teachers: constructed, not loaded.

    Raises:
        ConfigError: what no scene can have, or a teacher that can take none of the images.
        IncompleteError: more would be left out than `max_quarantined` allows.
    """
    needs = coverage.column_needs(samples.config, teachers)
    coverage.refuse_impossible(source, needs)
    print(f"scanning the logs: {_source_text(source.describe())}", flush=True)
    scan = coverage.look(source, needs, processes=config.scan_processes)
    known = generations.read(volume, *read_manifest(volume)) if volume.exists(layout.DATASET) else None
    if config.plan.require:
        scan = coverage.only_covered(source, scan, needs, config.plan.require, _tokens(known, volume))
    print(_logs_text(scan))
    print(f"images of the future are asked for by {', '.join(_ahead(needs)) or 'no column'}")
    made = [column for column in needs if known is not None and len(committed(volume, column)) >= known.shards]
    scan, grown = _still_needed(scan, known, volume, made)
    todo = [column for column in needs if grown or column not in made]
    looked = forecast.glances(source, scan) if todo else []
    sizes = forecast.sizes(samples, teachers, config.teachers, looked)
    found = coverage.coverage(source, scan, needs)
    print(_columns_text(config, volume, found, sizes, todo), flush=True)
    coverage.refuse_short(source, scan, needs, todo, config.max_quarantined)
    for note in forecast.calibration_notes(samples.config.views, looked) if layout.SAMPLES in todo else ():
        print(f"NOTE: {note}", flush=True)
    forecast.refuse_shapes([teacher for teacher in teachers if teacher.name in todo], looked)
    return scan


def _ahead(needs: Mapping[str, Needs | None]) -> list[str]:
    """The columns that want an image after now, which NAVSIM's own downloads have none of."""
    return [column for column, need in needs.items() if need is not None and any(i.step > 0 for i in need.images)]


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


def _source_text(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {source[key]}" for key in ("kind", "root", "split") if key in source)


def _logs_text(scan: Scan) -> str:
    logs = f"{scan.logs - len(scan.unreadable)} of {scan.logs} logs, " if scan.logs else ""
    lines = [f"found: {logs}{len(scan.refs)} scenes"]
    if scan.skipped:
        lines.append(f"windows passed over: {scan.passed_over}")
    lines += [f"UNREADABLE LOG {log}: {reason}" for log, reason in sorted(scan.unreadable.items())[:10]]
    if scan.not_found:
        lines.append(f"NOT FOUND: {len(scan.not_found)} tokens of the filter are in no log, e.g. {scan.not_found[0]}")
    return "\n".join([*lines, *(f"NOTE: {note}" for note in scan.notes)])


def _columns_text(
    config: TeachersConfig,
    volume: Volume,
    columns: Sequence[coverage.Coverage],
    sizes: Mapping[str, forecast.Size],
    todo: Sequence[str],
) -> str:
    """A table, what is lacking, and what all of it takes.

    Args:
        config: the recipe.
        volume: where the dataset goes, or is.
        columns: in order.
        sizes: by column.
        todo: the columns that are still to be made.
    """
    rows, notes, whole = [], [], 0
    hours: dict[str, float | None] = {}
    for found in columns:
        name, scenes, size = found.column, found.scenes, sizes[found.column]
        if name in todo and name in config.teachers:
            hours[name] = _hours(config, volume, name, scenes)
        zarr = size.zarr if config.zarr else 0
        whole += scenes * ((size.tar or 0) + zarr) if name in todo else 0
        rows.append(
            [
                name,
                "not known" if found.covered is None else f"{found.covered} of {scenes}",
                "not known" if size.tar is None else bytes_text(size.tar),
                "not known" if size.tar is None else bytes_text(scenes * size.tar),
                bytes_text(scenes * zarr) if zarr else "-",
                _hours_text(hours[name]) if name in hours else "-" if name in todo else "made",
            ]
        )
        notes += [f"  {name} lacks {found.lacking}"] if found.lacking else []
    head = ["column", "scenes with all images", "a sample", "tars", "zarr", "device hours"]
    scenes = max(found.scenes for found in columns)
    return "\n".join([table(head, rows), *notes, _together(config, scenes, hours), _space(volume, whole)])


def _hours(config: TeachersConfig, volume: Volume, column: str, scenes: int) -> float | None:
    """Of a column on one device: as stated, else as `jobs.probe` measured."""
    each = config.rate.get(column) if isinstance(config.rate, Mapping) else None
    if each is None and (measured := batch_sizes.rate(volume, column, config.teachers[column])) is not None:
        each = measured[0]
    return None if each is None else scenes / each / 3600


def _hours_text(hours: float | None) -> str:
    return "not known" if hours is None else f"{hours:.1f}"


def _together(config: TeachersConfig, scenes: int, hours: Mapping[str, float | None]) -> str:
    if isinstance(config.rate, int | float):
        return f"{scenes / config.rate / 3600:.1f} device hours at {config.rate:g} scenes/s of a device (rate)"
    known = [each for each in hours.values() if each is not None]
    if len(known) < len(hours):
        lost = ", ".join(column for column, each in hours.items() if each is None)
        return (
            f"device hours of {lost} are not known: `make probe` measures a network (batch_size: auto), "
            "rate.COLUMN=SCENES_A_SECOND states it"
        )
    return f"{sum(known):.1f} device hours in all"


def _space(volume: Volume, needed: int) -> str:
    if (folder := volume.local_root) is None:
        return f"{bytes_text(needed)} to write; how much room the store has is not known"
    folder = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    told = f"{bytes_text(needed)} to write, {bytes_text(free)} free at {folder}"
    return told if needed <= free else f"NOT ENOUGH ROOM: {told}"
