"""The town as a source: made where it is not there yet, then read as any NAVSIM dataset is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.sources.base import Source
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.registry import Progress, parse_config
from shards_schema.inputs.places import local_place
from synthetic import generate
from synthetic.config import SyntheticConfig


def build(config: Mapping[str, Any], progress: Progress) -> Source:
    """The source of a config; its folder is filled before this returns.

    Keys of the NAVSIM source (`root`, `split`, `filter`, ...) are its own; every other key is the generator's. All of
    them are checked before anything is made.

    Raises:
        ConfigError: an unknown key, or a value that is refused.
        MismatchError: the folder holds something else.
    """
    given = {k: v for k, v in config.items() if k in NavsimConfig.model_fields}
    making = parse_config(
        SyntheticConfig, {k: v for k, v in config.items() if k not in given}, beside=NavsimConfig.model_fields
    )
    root = Path(local_place(str(given.get("root", "data/synthetic"))))
    reading = parse_config(NavsimConfig, {"split": making.splits[0], **given, "root": str(root)})
    generate(making, root, progress, key="source.root")
    return NavsimSource(reading)
