"""`batch_size: auto`: a number before anything is planned, and the same number for as long as the dataset lives.

A batch size decides bits (floating point is not associative), so it is part of a column's identity. ``auto`` is
therefore no size but a question, answered once: by the column that the dataset has already, else by what
`python -m jobs.probe` measured for the same config and wrote into the dataset's ``logs/``. Where neither knows, the run
is refused. It is not probed on the way: the driver may have no GPU, and two workers could answer differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.stores.volume import Volume
from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.manifests import ColumnManifest
from teachers.base import AUTO, ColumnConfig

RECORD = layout.BATCH_SIZES
"""Column -> batch_size, the config that it was measured for, the device, and the figures. No part of the dataset."""


def resolve(teachers: Mapping[str, ColumnConfig], volume: Volume) -> dict[str, ColumnConfig]:
    """The configs of `teachers`, each ``auto`` replaced by a number; says which on the terminal.

    Raises:
        ConfigError: nobody has measured one; or it was measured for another config.
    """
    out = {}
    for column, config in teachers.items():
        out[column] = config
        if config.batch_size != AUTO:
            continue
        size, where = recorded(volume, column), layout.column_json(column)
        if size is None:
            size, where = _measured(volume, column, config), RECORD
        out[column] = config.sized(size)
        print(f"teachers.{column}.batch_size: auto is {size} here ({volume.path(where)})", flush=True)
    return out


def recorded(volume: Volume, column: str) -> int | None:
    """The size that the dataset's `column` was begun with; None where it has no such column.

    Raises:
        ConfigError: the column does not say.
    """
    name = layout.column_json(column)
    if not volume.exists(name):
        return None
    manifest = ColumnManifest.from_bytes(volume.read(name), volume.path(name))
    for told in (manifest.provenance, manifest.config):
        if isinstance(size := told.get("batch_size"), int):
            return size
    raise ConfigError(
        f"teachers.{column}.batch_size: auto resumes with the size that {volume.path(name)} was begun with, but that "
        "does not name one; give the number"
    )


def rate(volume: Volume, column: str, config: ColumnConfig) -> tuple[float, str] | None:
    """Scenes/s of `column` at its batch size and the device, as measured for the same config; None where nobody has."""
    found = _read(volume).get(column)
    if found is None or found["config"] != _comparable(config):
        return None
    size = config.batch_size or found["batch_size"]
    rates = [f["rate"] for f in found["figures"] if f["batch_size"] == size and f["rate"]]
    return (float(rates[0]), str(found["device"])) if rates else None


def write(volume: Volume, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Add what was measured, column -> `entry`, to the record."""
    volume.put(RECORD, json.dumps({**_read(volume), **found}, indent=1).encode())


def entry(config: ColumnConfig, size: int, device: str, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written of one column."""
    return {"batch_size": size, "config": _comparable(config), "device": device, "figures": figures}


def _measured(volume: Volume, column: str, config: ColumnConfig) -> int:
    found = _read(volume).get(column)
    again = (
        f"run `python -m jobs.probe CONFIG out={volume.path('').rstrip('/')}` on a machine with the workers' device, "
        "with the same config and overrides; or give a number"
    )
    if found is None:
        raise ConfigError(f"teachers.{column}.batch_size is auto, and nobody has measured it for this dataset: {again}")
    was, now = found["config"], _comparable(config)
    if was != now:
        other = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
        raise ConfigError(
            f"teachers.{column}.batch_size is auto, and {volume.path(RECORD)} has it for another config (other "
            f"{', '.join(other)}): {again}"
        )
    return int(found["batch_size"])


def _comparable(config: ColumnConfig) -> dict[str, Any]:
    """What a measurement depends on."""
    return config.model_dump(mode="json", exclude_unset=True, exclude={"batch_size", "storage"})


def _read(volume: Volume) -> dict[str, Any]:
    return dict(json.loads(volume.read(RECORD))) if volume.exists(RECORD) else {}
