"""The Cosmos teacher: clean video-VAE latents of a scene's camera clip, as dynamics targets.

`build` is the entry point of the registry. Importing this package imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachers.cosmos.teacher import CosmosTeacher

__all__ = ["build"]


def build(config: Mapping[str, Any]) -> CosmosTeacher:
    """A Cosmos teacher, not yet loaded, from the fields of `teachers.cosmos.config.CosmosConfig`.

    Raises:
        ConfigError: a field is unknown, missing or impossible; the message names it.
    """
    from teachers.cosmos.config import CosmosConfig
    from teachers.cosmos.teacher import CosmosTeacher
    from teachers.registry import parse_config

    return CosmosTeacher(parse_config(CosmosConfig, config, "cosmos"))
