"""What is certain before a run begins, in words: what its scenes have, what it writes and takes, and what is refused.

`python -m jobs.plan` prints this and ends; `jobs.teachers` prints it before Ray is started and weights are loaded. What
there is to say comes from `pipeline.writing.forecast`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from pipeline.sources.base import Scan, Source
from pipeline.stores.volume import Volume
from pipeline.writing import coverage, forecast
from pipeline.writing.forecast import Forecast
from pipeline.writing.recipe import Recipe
from pipeline.writing.samples import SamplesColumn
from reports.tables import bytes_text, table
from shards_schema import layout
from teachers.base import Needs, Teacher


def prepare(
    config: Recipe, source: Source, volume: Volume, samples: SamplesColumn, teachers: Sequence[Teacher]
) -> Forecast:
    """Look, tell, refuse; the scan of what is left is to be planned.

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
    coverage.refuse_impossible(source, coverage.column_needs(samples.config, teachers))
    said = source.describe()
    told = ", ".join(f"{key} {said[key]}" for key in ("kind", "root", "split") if key in said)
    print(f"scanning the logs: {told}", flush=True)
    found = forecast.look(config, source, volume, samples, teachers)
    print(_logs_text(found.scan))
    print(f"images of the future are asked for by {', '.join(_ahead(found.needs)) or 'no column'}")
    print("\n".join([_columns_text(found), _together(found), _space(found, volume)]), flush=True)
    found.refuse_short(source)
    for note in found.calibration_notes():
        print(f"NOTE: {note}", flush=True)
    forecast.refuse_shapes([teacher for teacher in teachers if teacher.name in found.todo], found.looked)
    return found


def _ahead(needs: Mapping[str, Needs | None]) -> list[str]:
    """The columns that want an image after now, which NAVSIM's own downloads have none of."""
    return [column for column, need in needs.items() if need is not None and any(i.step > 0 for i in need.images)]


def _logs_text(scan: Scan) -> str:
    logs = f"{scan.logs - len(scan.unreadable)} of {scan.logs} logs, " if scan.logs else ""
    lines = [f"found: {logs}{len(scan.refs)} scenes"]
    if scan.skipped:
        lines.append(f"windows passed over: {scan.passed_over}")
    lines += [f"UNREADABLE LOG {log}: {reason}" for log, reason in sorted(scan.unreadable.items())[:10]]
    if scan.not_found:
        lines.append(f"NOT FOUND: {len(scan.not_found)} tokens of the filter are in no log, e.g. {scan.not_found[0]}")
    return "\n".join([*lines, *(f"NOTE: {note}" for note in scan.notes)])


def _columns_text(found: Forecast) -> str:
    """A row a column, and below them what is lacking."""
    rows, notes = [], []
    for column in found.columns:
        whole, zarr = None if column.tar is None else column.scenes * column.tar, column.scenes * column.zarr
        rows.append(
            [
                column.name,
                "not known" if column.covered is None else f"{column.covered} of {column.scenes}",
                "not known" if column.tar is None else bytes_text(column.tar),
                "not known" if whole is None else bytes_text(whole),
                bytes_text(zarr) if zarr and found.recipe.zarr is True else "-",
                "made" if column.made else "-" if column.name == layout.SAMPLES else _hours_text(column),
            ]
        )
        notes += [f"  {column.name} lacks {column.lacking}"] if column.lacking else []
        notes += [f"  {_past_text(found, column)}"] if column.name == layout.SAMPLES and column.past != 0 else []
    return "\n".join(
        [table(["column", "scenes with all images", "a sample", "tars", "zarr", "device hours"], rows), *notes]
    )


def _past_text(found: Forecast, column: forecast.ColumnForecast) -> str:
    stored, size = found.recipe.samples, column.past
    told = f"samples.history: a sample stores {len(stored.views) * stored.history} more images, of frames before now"
    if size is None:
        return f"{told}; how many bytes that adds is not known"
    return f"{told}; that adds {bytes_text(size)} to each, {bytes_text(column.scenes * size)} in all"


def _hours_text(column: forecast.ColumnForecast) -> str:
    return "not known" if column.rate is None else f"{column.scenes / column.rate / 3600:.1f}"


def _together(found: Forecast) -> str:
    hours, rate = found.hours(), found.recipe.rate
    if hours is None:
        unknown = ", ".join(_unmeasured(found.columns, found.todo))
        return (
            f"device hours of {unknown} are not known: `make probe` measures a network (batch_size: auto), "
            "rate.COLUMN=SCENES_A_SECOND states it"
        )
    if isinstance(rate, int | float):
        return f"{hours:.1f} device hours at {rate:g} scenes/s of a device (rate)"
    return f"{hours:.1f} device hours in all"


def _unmeasured(columns: Sequence[forecast.ColumnForecast], among: Sequence[str]) -> list[str]:
    return [column.name for column in columns if column.rate is None and column.name in among]


def scaled(found: Forecast, scenes: int, devices: int) -> str:
    """The same recipe over so many scenes, on so many devices."""
    tars, zarr = found.size(scenes, zarr=False), found.size(scenes, zarr=True)
    unknown = [column.name for column in found.columns if column.tar is None]
    hours = found.hours(scenes, devices=devices)
    return (
        f"{scenes} scenes on {devices} device{'s' * (devices != 1)}: {bytes_text(tars)} in tars"
        + (f" (without {', '.join(unknown)}, whose size is not known)" if unknown else "")
        + f", {bytes_text(zarr)} with targets.zarr; "
        + (
            f"hours not known, for {', '.join(_unmeasured(found.columns, [*found.needs]))}"
            if hours is None
            else f"{hours:.1f} hours, if every device is at work all the time"
        )
    )


def _space(found: Forecast, volume: Volume) -> str:
    needed, tars = found.size(), found.size(zarr=False)
    parts = f"{bytes_text(tars)} in tars and {bytes_text(needed - tars)} in targets.zarr: " if needed > tars else ""
    told = f"{parts}{bytes_text(needed)} to write"
    if (folder := volume.local_root) is None:
        return f"{told}; how much room the store has is not known"
    folder = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    told = f"{told}, {bytes_text(free)} free at {folder}"
    return told if needed <= free else f"NOT ENOUGH ROOM: {told}"
