"""VGGT as a frozen geometry teacher: aggregator tokens, camera encodings and depth of a few views of one moment.

The network is our own, inference only, with the official parameter names, so that the official checkpoint loads as it
is. `build` is all that the pipeline needs; torch is imported when it is called, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachers.vggt.teacher import VGGTTeacher


def build(config: Mapping[str, Any]) -> VGGTTeacher:
    """The teacher that `config` describes (see `teachers.vggt.config.VGGTConfig`); cheap, reads no weights.

    Raises:
        ConfigError: a value is impossible.
    """
    from teachers.registry import parse_config
    from teachers.vggt.config import VGGTConfig
    from teachers.vggt.teacher import VGGTTeacher

    return VGGTTeacher(parse_config(VGGTConfig, config, "vggt"))
