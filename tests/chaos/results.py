"""What the parts of the harness found, as files: ``out/chaos/<part>.json`` (and ``.csv``)."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "out" / "chaos"


def save(part: str, found: dict[str, Any] | str, extension: str = "json") -> Path:
    """Write what a part found; text as it is, a mapping as JSON with when and where it was measured."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{part}.{extension}"
    if not isinstance(found, str):
        where = {
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        }
        found = json.dumps({"where": where, **found}, indent=1)
    path.write_text(found)
    return path


def load(part: str) -> dict[str, Any] | None:
    """What `save` wrote; None when the part was not run."""
    path = FOLDER / f"{part}.json"
    return json.loads(path.read_text()) if path.is_file() else None
