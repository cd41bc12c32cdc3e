"""The Cosmos teachers: video-VAE latents of a scene's camera clip, and what Cosmos-Predict foresees from its past.

`build` and `build_predict` are the registry's entry points. Importing this package imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachers.cosmos.predict import CosmosPredictTeacher
    from teachers.cosmos.teacher import CosmosTeacher

__all__ = ["build", "build_predict"]


def build(config: Mapping[str, Any]) -> CosmosTeacher:
    """A Cosmos teacher, not yet loaded, from the fields of `teachers.cosmos.config.CosmosConfig`.

    Raises:
        ConfigError: a field is unknown, missing or impossible; the message names it.
    """
    from teachers.cosmos.config import CosmosConfig
    from teachers.cosmos.teacher import CosmosTeacher
    from teachers.registry import parse_config

    return CosmosTeacher(parse_config(CosmosConfig, config, "cosmos"))


def build_predict(config: Mapping[str, Any]) -> CosmosPredictTeacher:
    """A Cosmos-Predict teacher, not yet loaded, from the fields of `teachers.cosmos.predict_config`.

    Raises:
        ConfigError: a field is unknown, missing or impossible; the message names it.
    """
    from teachers.cosmos.predict import CosmosPredictTeacher
    from teachers.cosmos.predict_config import CosmosPredictConfig
    from teachers.registry import parse_config

    return CosmosPredictTeacher(parse_config(CosmosPredictConfig, config, "cosmos_predict"))
