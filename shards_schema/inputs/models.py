"""What every config of the project is: a pydantic model that no key gets past; and how it is made of what was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shards_schema.errors import ConfigError
from shards_schema.inputs.refusals import problems

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Frozen; an unknown key is refused; a field is described by the docstring below it, which ``--help`` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def validated(
    model: type[Model],
    given: Any,
    where: str = "",
    *,
    under: Sequence[str] = (),
    beside: Iterable[str] = (),
    shown: Callable[[Any], str] = repr,
) -> Model:
    """`given` as a `model`; `under`, `beside` and `shown` as in `refusals.problems`.

    Raises:
        ConfigError: `where`, and each field that is unknown, missing or impossible.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = problems(error.errors(include_url=False), model, under=under, beside=beside, shown=shown)
        raise ConfigError(where + "; ".join(found)) from error
