"""What NAVSIM's download scripts leave behind when they are stopped: images in folders that nobody looks into.

``download_navtrain_*.sh`` unpacks ``navtrain_current_N.tgz`` and ``navtrain_history_N.tgz`` into ``current_split_N/``
and ``history_split_N/``, each ``<log>/<camera>/<token>.jpg``, and merges those into ``sensor_blobs/trainval/``.
Where that last step failed, every image of theirs is "missing".
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from pipeline.sources.base import LookingSource, Source
from pipeline.stores.remote import is_local

_LEFT = re.compile(r"(current|history)_split_\d+")


def folders(blobs: str) -> list[Path]:
    """The folders of the download that lie in, beside or above the folder of the images, sorted; local disks only."""
    if not is_local(blobs):
        return []
    here = Path(blobs).absolute()
    found = set()
    for folder in (here, *list(here.parents)[:3]):
        for place in (folder, folder / "trainval_sensor_blobs", folder / "download"):
            try:
                found |= {entry for entry in place.iterdir() if _LEFT.fullmatch(entry.name) and entry.is_dir()}
            except OSError:  # not there, or not to be looked into
                continue
    return sorted(found)


def hint(source: Source) -> str:
    """A line that names such folders, and the command that merges them; "" where there are none."""
    if not isinstance(source, LookingSource) or not (left := folders(source.blobs)):
        return ""
    shown = " ".join(shlex.quote(f"{folder}/") for folder in left)
    return (
        f"\n  {len(left)} folders of NAVSIM's download were never merged ({', '.join(f.name for f in left)}). This "
        f"merges them, then run the same command again:\n    rsync -a {shown} {shlex.quote(source.blobs + '/')}"
    )
