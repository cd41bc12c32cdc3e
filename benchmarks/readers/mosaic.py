"""The import of MosaicML Streaming where torchvision is not, for whoever compares with it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """A package with every name in it, none of which does anything."""

    __path__ = []  # noqa: RUF012 (what makes a module a package)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def import_streaming() -> Any:
    """MosaicML Streaming imports torchvision for classes that nothing here uses; the project never installs it."""
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("streaming")
    if importlib.util.find_spec("transformers") is not None:
        importlib.import_module("transformers")  # before the stand-in, which it would take for the real one
    parts = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules |= {name: _StandIn(name) for name in parts}
    try:
        return importlib.import_module("streaming")
    finally:
        for name in parts:
            del sys.modules[name]
