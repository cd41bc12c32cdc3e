"""The front door: what somebody needs who reads shards, trains on them, scores with them, or adds a teacher.

    import last_shards as ls

    dataset = ls.Dataset("out/demo", columns=["samples", "vggt"])
    stream = ls.ShardStream(dataset, {"samples": ["json"], "vggt": ["l3_grid"]}, ls.StreamConfig(batch_size=8))
    for batch in stream.batches():
        ...

Names are imported when they are first used: `import last_shards` needs the standard library alone, `Dataset` needs
numpy, pyarrow, pydantic, fsspec and google-crc32c, and each other name the extra that `_EXTRAS` gives to its room.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from last_shards.planning import plan
    from pipeline.reading.reader import Dataset
    from pipeline.reading.verify import verify
    from pipeline.stores.cache import CacheConfig
    from pipeline.stream.collate import LatentCollator
    from pipeline.stream.config import StreamConfig
    from pipeline.stream.mixture import Mixture
    from pipeline.stream.shards import SampleTable, ShardStream
    from pipeline.stream.webdataset import webdataset
    from scoring.scorer import score
    from shards_schema.errors import (
        AbsentError,
        ConfigError,
        DatasetError,
        DigestError,
        HeldError,
        IncompleteError,
        MismatchError,
        MissingFileError,
        QuarantinedError,
        SampleError,
        ShardsError,
        SpecError,
        StoreError,
        WeightsError,
    )
    from shards_schema.specs import TargetSpec
    from teachers.base import ImageRequest, Teacher, TeacherInput
    from teachers.testing.conformance import TeacherConformance
    from trainer.reward import Reward

    __version__: str

__all__ = [
    "AbsentError",
    "CacheConfig",
    "ConfigError",
    "Dataset",
    "DatasetError",
    "DigestError",
    "HeldError",
    "ImageRequest",
    "IncompleteError",
    "LatentCollator",
    "MismatchError",
    "MissingFileError",
    "Mixture",
    "QuarantinedError",
    "Reward",
    "SampleError",
    "SampleTable",
    "ShardStream",
    "ShardsError",
    "SpecError",
    "StoreError",
    "StreamConfig",
    "TargetSpec",
    "Teacher",
    "TeacherConformance",
    "TeacherInput",
    "WeightsError",
    "__version__",
    "plan",
    "score",
    "verify",
    "webdataset",
]

_HOMES = {
    "last_shards.planning": ["plan"],
    "pipeline.reading.reader": ["Dataset"],
    "pipeline.stores.cache": ["CacheConfig"],
    "pipeline.stream.collate": ["LatentCollator"],
    "pipeline.stream.config": ["StreamConfig"],
    "pipeline.stream.mixture": ["Mixture"],
    "pipeline.stream.shards": ["SampleTable", "ShardStream"],
    "pipeline.stream.webdataset": ["webdataset"],
    "pipeline.reading.verify": ["verify"],
    "scoring.scorer": ["score"],
    "shards_schema.errors": [name for name in __all__ if name.endswith("Error")],
    "shards_schema.specs": ["TargetSpec"],
    "teachers.base": ["ImageRequest", "Teacher", "TeacherInput"],
    "teachers.testing.conformance": ["TeacherConformance"],
    "trainer.reward": ["Reward"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

_EXTRAS = {
    "last_shards.planning": "teachers",
    "pipeline.stream.webdataset": "webdataset",
    "pipeline.stream": "stream",
    "pipeline.reading.verify": "verify",
    "scoring": "stream",
    "trainer": "stream",
}
"""Module or room -> the extra that brings what it imports; the first that fits holds."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("last-shards")
    if name not in _HOME:
        raise AttributeError(f"module 'last_shards' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = _HOME[name]
    _refuse_foreign(module.partition(".")[0])
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        extra = next((extra for room, extra in _EXTRAS.items() if module.startswith(room)), None)
        if extra is None or error.name is None or error.name.partition(".")[0] in {m.partition(".")[0] for m in _HOMES}:
            raise
        raise ModuleNotFoundError(
            f"last_shards.{name} needs {error.name}, which is not installed; `pip install -e '.[{extra}]'` in the "
            "clone of last-shards",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


def _refuse_foreign(room: str) -> None:
    """Our rooms have names that others use too (`pipeline`, `trainer`): one that shadows ours is named with its path.

    Raises:
        ImportError: Python would import, or has imported, somebody else's.
    """
    found = importlib.util.find_spec(room)
    if found is None or found.origin is None:
        where = next(iter(found.submodule_search_locations or ()), None) if found else None
    else:
        where = str(Path(found.origin).parent)
    ours = Path(__file__).resolve().parents[1] / room
    if where is None or Path(where).resolve() != ours:
        raise ImportError(
            f"last_shards needs its own package {room!r}, in {ours}; Python finds "
            f"{f'another one, in {where}' if where else 'none'}. Rename or remove the other, or put "
            f"{ours.parent} before it on sys.path",
            name=room,
            path=where,
        )
