"""A config that cannot be: made in Python, within another, or of what was read."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
from pydantic import Field, ValidationError, model_validator

import last_shards as ls
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel, validated


class Inner(StrictModel):
    width: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _even(self) -> Inner:
        if self.width == 13:
            raise ConfigError("width brings bad luck")
        return self


class Outer(StrictModel):
    inner: Inner = Inner()
    listed: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        (ls.StreamConfig, {"batchsize": 8}, r"for StreamConfig\nbatchsize\n  unknown key; did you mean batch_size\?"),
        (ls.StreamConfig, {"shuffle": "glob"}, r"shuffle\n  Input should be .*'window'"),
        (
            ls.StreamConfig,
            {"lanes": 0, "batch": 0},
            r"lanes\n  Input .*\nbatch\n  .*; did you mean batch_size\?",
        ),
        (
            ls.CacheConfig,
            {"folder": "x", "max_byte": 1},
            r"max_bytes\n  Field (.|\n)* did you mean max_bytes\?",
        ),
        (Outer, {"inner": {"widht": 2}}, r"inner\.widht\n  unknown key; did you mean inner\.width\?"),
        (Outer, {"listed": [{}, {"width": 13}]}, r"listed\.1\n  Value error, width brings bad luck"),
        (Inner, {"width": 13}, "Value error, width brings bad luck"),
    ],
)
def test_what_cannot_be_names_the_nearest_right_field(model: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        model(**fields)
    assert refused.value.__suppress_context__  # pydantic's first page does not stand above it
    assert {error["loc"][0] for error in refused.value.errors() if error["loc"]} <= {*fields, "max_bytes"}


def test_the_target_of_a_teacher_names_its_dtype() -> None:
    spec = {"name": "depth", "dims": ("row",), "shape": (3,), "unit": "m", "meaning": "How far."}
    with pytest.raises(ConfigError, match="target depth: dtype must be one of numpy's, got 'float17'"):
        ls.TargetSpec(**spec, dtype="float17")  # type: ignore[arg-type]


def test_pydantic_is_pydantic_below() -> None:
    """Validation of a model within another does not make it as a person would: its fault is told once, by its key."""
    with pytest.raises(ValidationError):
        Outer.model_validate({"inner": {"width": 0}})
    with pytest.raises(ConfigError, match=r"here: inner\.width: Input should be greater than or equal to 1, got 0\Z"):
        validated(Outer, {"inner": {"width": 0}}, "here: ")
    made = Outer(inner={"width": 3}, listed=[Inner(width=2), {"width": 4}])  # type: ignore[arg-type, list-item]
    assert made.model_dump() == {"inner": {"width": 3}, "listed": ({"width": 2}, {"width": 4})}
    assert made == Outer.model_validate_json(made.model_dump_json()) == pickle.loads(pickle.dumps(made))
    assert copy.deepcopy(made) == made.model_copy() == made
    assert made.model_copy(update={"listed": ()}) == Outer(inner=Inner(width=3))
    assert [*inspect.signature(ls.CacheConfig).parameters] == ["folder", "max_bytes", "fetchers"]
