"""What every config of the project is: a pydantic model that no key gets past; and how it is made of what was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from shards_schema.errors import ConfigError
from shards_schema.inputs import documents
from shards_schema.inputs.refusals import problems

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Frozen; an unknown key is refused; a field is described by the docstring below it, which ``--help`` prints.

    Raises:
        ValidationError: pydantic's own, of fields that cannot be; of an unknown one it names the nearest right one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    if not TYPE_CHECKING:  # which go by the fields

        def __init__(self, /, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise _with_neighbours(error, type(self)) from None

        # Or pydantic would call it for a model within another, whose own refusal names the whole key.
        __init__.__pydantic_base_init__ = True


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


def _with_neighbours(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """The same, but that an unknown key is told with the nearest right one."""
    lines: list[InitErrorDetails] = []
    for one in error.errors(include_url=False):
        said = one["msg"]
        if one["type"] == "extra_forbidden":
            said = problems([one], model)[0].partition(": ")[2]
        kind = PydanticCustomError(one["type"], "{said}", {"said": said})
        lines.append({"type": kind, "loc": one["loc"], "input": one["input"]})
    return ValidationError.from_exception_data(model.__name__, lines)


def read_yaml(path: Path, name: str, absent: Callable[[], str] = str) -> dict[str, Any]:
    """The keys of a YAML file.

    Args:
        path: of the file.
        name: what to call it in an error.
        absent: what to add where it cannot be opened.

    Raises:
        ConfigError: there is no such file, or no mapping in it.
    """
    try:
        values = documents.parse_yaml(documents.read(path, documents.YAML_BYTES))
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}{absent()}") from error
    except documents.UnreadableError as error:
        raise ConfigError(f"{name}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected a mapping, got {type(values).__name__}")
    return values
