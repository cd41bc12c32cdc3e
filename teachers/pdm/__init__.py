"""The rule-based teacher: PDM-Closed, and the reward context that NAVSIM's score of a trajectory needs.

`metric_cache` makes contexts of the NAVSIM devkit's metric caches, without the devkit.
"""

from teachers.pdm.metric_cache import context_from_cache, find_caches, read_cache

__all__ = ["context_from_cache", "find_caches", "read_cache"]
