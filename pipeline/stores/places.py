"""Types of config fields that say where something is; `shards_schema.inputs.places` says what such a text means."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.inputs.places import local_place, place


def dataset_around(path: Path) -> Path | None:
    """The root of the dataset that `path` is, or lies in; None where there is none, or it cannot be looked at."""
    path = Path(os.path.realpath(path))
    for folder in (path, *path.parents):
        try:
            if json.loads((folder / layout.DATASET).read_bytes())["format"] == "last-shards":
                return folder
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return None


def outside(path: Any) -> Any:
    """A path that a job writes to, as it is.

    Raises:
        ConfigError: it is a dataset's, or lies in one.
    """
    if path is not None and (root := dataset_around(Path(path))) is not None:
        raise ConfigError(
            f"{path} lies in the dataset {root}, where every file is accounted for and a run sweeps: give a place "
            "outside of it"
        )
    return path


def apart(out: Path | None, *read: Path | None) -> None:
    """Hold that a job does not write over what it reads, nor among it.

    Raises:
        ConfigError: `out` is one of the paths that are read, or lies in one.
    """
    for path in read:
        if (
            out is not None
            and path is not None
            and (out.resolve() == path.resolve() or path.resolve() in out.resolve().parents)
        ):
            raise ConfigError(f"{out} is, or lies in, {path}, which this command reads: write to another place")


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Place = Annotated[str, BeforeValidator(_text), AfterValidator(place)]
"""A local path, or any URL that fsspec opens."""
LocalText = Annotated[str, BeforeValidator(_text), AfterValidator(local_place)]
"""A path on this machine's disks."""
LocalPath = Annotated[Path, BeforeValidator(lambda value: local_place(value) if isinstance(value, str) else value)]
"""The same, as a path."""
OutText = Annotated[LocalText, AfterValidator(outside)]
"""A path on this machine's disks that a job writes to: not into a dataset."""
OutPath = Annotated[LocalPath, AfterValidator(outside)]
"""The same, as a path."""
