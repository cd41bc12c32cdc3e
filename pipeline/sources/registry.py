"""Sources by kind: the key `kind` of a config's `source` says which one reads the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.sources.base import Source
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from pipeline.sources.synthetic import SyntheticConfig, generate
from shards_schema.errors import ConfigError

Progress = Callable[[str], None]


def _navsim(config: Mapping[str, Any], progress: Progress) -> Source:
    return NavsimSource(NavsimConfig.model_validate(dict(config)))


def _nuplan(config: Mapping[str, Any], progress: Progress) -> Source:
    return NuplanSource(NuplanConfig.model_validate(dict(config)))


def _synthetic(config: Mapping[str, Any], progress: Progress) -> Source:
    """The generator's dataset, made where it is not there yet, then read as any NAVSIM dataset is.

    Keys of the NAVSIM source (`root`, `split`, `filter`, ...) are its own; every other key is the generator's.
    """
    reading = {k: v for k, v in config.items() if k in NavsimConfig.model_fields}
    making = SyntheticConfig.model_validate({k: v for k, v in config.items() if k not in reading})
    root = generate(making, Path(str(reading.get("root", "data/synthetic"))), progress)
    return _navsim({"split": making.splits[0], **reading, "root": str(root)}, progress)


KINDS: Mapping[str, Callable[[Mapping[str, Any], Progress], Source]] = {
    "navsim": _navsim,
    "nuplan": _nuplan,
    "synthetic": _synthetic,
}


def build(config: Mapping[str, Any], progress: Progress = lambda line: None) -> Source:
    """The source of a config, e.g. ``{kind: navsim, root: ..., split: ..., filter: ...}``.

    Args:
        config: `kind`, and that source's own config.
        progress: gets a line for a person where building the source takes time.

    Raises:
        ConfigError: an unknown kind, or a value that its source refuses.
        ValidationError: likewise, from pydantic.
    """
    rest = dict(config)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"source.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](rest, progress)
