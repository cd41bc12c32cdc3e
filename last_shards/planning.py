"""`ls.plan`: what a recipe finds, writes and takes, as an object; `python -m jobs.plan` prints the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.sources import registry as sources
from pipeline.stores.volume import Volume
from pipeline.writing import forecast
from pipeline.writing.forecast import Forecast
from pipeline.writing.recipe import Recipe
from pipeline.writing.samples import SamplesColumn
from shards_schema.inputs.models import read_yaml
from teachers.base import AUTO
from teachers.registry import build_teacher


def plan(recipe: str | os.PathLike[str] | Mapping[str, Any], **changes: Any) -> Forecast:
    """Read every log, list every folder of images that a column asks for, and say what a run would do. Nothing is made.

        found = ls.plan("configs/navtrain.yaml", out="/data/shards", rate={"vggt": 24.0, "cosmos": 30.0, "pdm": 20.0})
        found.scenes, found.columns[0].covered, found.scan.skipped
        found.size(), found.size(100_000, zarr=False)           # bytes
        found.hours(100_000, devices=8)                         # None where nobody knows a rate

    No weights are loaded and no GPU is asked for; a synthetic source is generated where it is not there yet.

    Args:
        recipe: a YAML as those in `configs/`, or what stands in one.
        changes: keys of the recipe, in the place of its own (whole values: ``teachers={...}``).

    Raises:
        ConfigError: no such file, or a value that cannot be; what no scene can have; teachers that can take none of the
            images.
        IncompleteError: more would be left out than ``max_quarantined`` allows.
    """
    name = "the recipe" if isinstance(recipe, Mapping) else os.fspath(recipe)
    values = recipe if isinstance(recipe, Mapping) else read_yaml(Path(name), f"recipe {name}")
    config = Recipe.of({**values, **changes}, name)
    # a batch size that nobody has measured yet decides nothing that is told here
    sized = {column: told.sized(None) if told.batch_size == AUTO else told for column, told in config.teachers.items()}
    config, volume = config.model_copy(update={"teachers": sized}), Volume(config.out)
    teachers = [build_teacher(column, fields) for column, fields in config.teachers.items()]
    source = sources.build(config.source)
    samples = SamplesColumn(config.samples, num_history=source.num_history, num_future=source.num_future)
    found = forecast.look(config, source, volume, samples, teachers)
    found.refuse_short(source)
    forecast.refuse_shapes([teacher for teacher in teachers if teacher.name in found.todo], found.looked)
    return found
