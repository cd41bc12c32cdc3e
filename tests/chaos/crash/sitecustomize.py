"""On a job's PYTHONPATH, with $CHAOS_CRASH=yes: a JPEG that ends with a mark ends the process that decodes it.

Python runs this file when it starts, so it holds in the driver, in the actors and in their children; without it, or
without the variable, the marks are bytes after the end of a JPEG, which are good. No libjpeg-turbo is known to crash,
so a null pointer is read in its place: a true SIGSEGV, in the thread that decodes. The other mark never ends.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CRASH, SPIN = b"chaos: crash", b"chaos: spin"


def _harm(module: ModuleType) -> None:
    decode = module.decode_jpeg

    def decode_jpeg(data: bytes, *args: Any, **kwargs: Any) -> Any:
        if data.endswith(CRASH):
            ctypes.string_at(0)
        while data.endswith(SPIN):
            pass
        return decode(data, *args, **kwargs)

    module.decode_jpeg = decode_jpeg  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds simplejpeg, once, as Python would, and harms it as soon as it is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "simplejpeg":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _harm(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("CHAOS_CRASH") == "yes":
    sys.meta_path.insert(0, _Finder())
