"""A recipe, `configs/*.yaml`: what `jobs.teachers`, `jobs.plan` and `jobs.probe` are told."""

from __future__ import annotations

from cluster.session import ClusterConfig
from pipeline.writing.recipe import Recipe


class TeachersConfig(Recipe):
    """`configs/*.yaml`."""

    cluster: ClusterConfig = ClusterConfig()
    """Workers and Ray."""
