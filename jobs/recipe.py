"""A recipe, `configs/*.yaml`: what `jobs.teachers`, `jobs.plan` and `jobs.probe` are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from cluster.session import ClusterConfig
from pipeline.sources import registry as sources
from pipeline.writing.recipe import Recipe
from teachers import registry as teachers


class TeachersConfig(Recipe):
    """`configs/*.yaml`."""

    cluster: ClusterConfig = ClusterConfig()
    """Workers and Ray."""

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> dict[str, Sequence[type[BaseModel]]]:
        """For ``--help``: the configs that the kinds of the source and of the teachers choose, by key."""
        source, columns = values.get("source"), values.get("teachers")
        found: dict[str, Sequence[type[BaseModel]]] = {}
        if isinstance(source, Mapping):
            found["source"] = sources.config_models(source.get("kind"))
        for column, told in columns.items() if isinstance(columns, Mapping) else ():
            kind = told.get("kind") or column if isinstance(told, Mapping) else column
            found[f"teachers.{column}"] = teachers.config_models(kind)
        return found

    @classmethod
    def refused(cls, values: Mapping[str, Any]) -> list[str]:
        """What the kinds of the teachers have against what is given, a line each."""
        columns = values.get("teachers")
        given = columns.items() if isinstance(columns, Mapping) else ()
        return [line for column, told in given if isinstance(told, Mapping) for line in teachers.refused(column, told)]
