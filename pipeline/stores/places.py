"""Types of config fields that say where something is; `shards_schema.places` says what such a text means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from shards_schema.places import local_place, place


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Place = Annotated[str, BeforeValidator(_text), AfterValidator(place)]
"""A local path, or any URL that fsspec opens."""
LocalText = Annotated[str, BeforeValidator(_text), AfterValidator(local_place)]
"""A path on this machine's disks."""
LocalPath = Annotated[Path, BeforeValidator(lambda value: local_place(value) if isinstance(value, str) else value)]
"""The same, as a path."""
