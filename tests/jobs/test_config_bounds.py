"""No number of a config may be anything at all: what cannot be is refused where the config is made."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.writing.samples import SamplesConfig
from shards_schema.plan import PlanConfig
from trainer.students.tiny import TinyConfig

ROOMS = ("pipeline", "teachers", "trainer", "jobs")
FREE = {
    "seed", "seeds", "split_seed", "noise_seed", "random",  # any number is one
    "layers", "layer", "align_layer", "window", "layout", "steps", "select",  # relative to what a validator knows
    "latents_mean", "latents_std",
}  # fmt: skip
"""Fields of which any number is possible, or that are checked against others."""


def unbounded(annotation: Any, limits: list[Any]) -> Iterator[Any]:
    """The numbers that an annotation leads to without a limit."""
    if get_origin(annotation) is Literal:
        return
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from unbounded(inner, [*limits, *(limit for m in more for limit in getattr(m, "metadata", None) or [m])])
    elif annotation in (int, float):
        if not {type(limit).__name__ for limit in limits} & {"Ge", "Gt", "Le", "Lt", "Interval"}:
            yield annotation
    else:
        container = isinstance(get_origin(annotation), type) and issubclass(get_origin(annotation), (tuple, dict))
        for inner in get_args(annotation):
            if inner is not Ellipsis:
                yield from unbounded(inner, [] if container else limits)


def configs(of: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for model in of.__subclasses__():
        yield model
        yield from configs(model)


def test_every_number_has_a_bound() -> None:
    for room in ROOMS:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            if not module.name.startswith(("teachers.testing", "trainer.plugins")):
                importlib.import_module(module.name)
    found = {
        f"{model.__module__}.{model.__name__}.{name}"
        for model in configs()
        if model.__module__.split(".")[0] in ROOMS
        for name, field in model.model_fields.items()
        if name not in FREE and list(unbounded(field.annotation, list(field.metadata)))
    }
    assert found == set()


def test_the_walk_can_fail() -> None:
    class Free(BaseModel):
        size: tuple[int, int] | None = None
        share: float = 1.0

    fields = Free.model_fields.values()
    assert [len(list(unbounded(f.annotation, list(f.metadata)))) for f in fields] == [2, 1]


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (SamplesConfig, {"size": (0, 0)}),
        (SamplesConfig, {"size": (-1, 5)}),
        (SamplesConfig, {"size": (10**6, 10**6)}),
        (PlanConfig, {"shard_size": 10**20}),
        (TinyConfig, {"width": 97}),
        (TinyConfig, {"image": (100, 64)}),
    ],
)
def test_the_impossible_is_refused(model: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model(**fields)
