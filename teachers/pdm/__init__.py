"""The rule-based teacher: PDM-Closed, and the reward context that NAVSIM's score of a trajectory needs.

Two ways to the same arrays, neither with the devkit: `metric_cache` reads what it cached, and the teacher (`build`)
makes them of a log and the nuPlan map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scoring.columns import context_from_targets
from scoring.devkit.metric_cache import context_from_cache, find_caches, read_cache

if TYPE_CHECKING:
    from teachers.pdm.teacher import PDMTeacher

__all__ = ["build", "context_from_cache", "context_from_targets", "find_caches", "read_cache"]


def build(config: Mapping[str, Any]) -> PDMTeacher:
    """The teacher that `config` describes (see `teachers.pdm.teacher.PDMConfig`); cheap, reads no map.

    Raises:
        ConfigError: a value is impossible.
    """
    from teachers.pdm.teacher import PDMConfig, PDMTeacher
    from teachers.registry import parse_config

    return PDMTeacher(parse_config(PDMConfig, config, "pdm"))
