"""Pages, tables and results that a job leaves: a file is whole, or it is what it was before."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.stores.disk import wrap_os_errors


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file; `write` gets the place of a draft.

    Raises:
        StoreError: it could not be written (the disk is full, the folder may not be written to, ...).
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with wrap_os_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(draft)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """A file of these bytes; see `replace_file`."""
    replace_file(path, lambda draft: draft.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """A file of this text, as UTF-8; see `replace_file`."""
    write_bytes(path, text.encode())
