"""Teachers by kind: the built-in ones, and those of other packages under the entry point group `last_shards.teachers`.

An entry point names a function ``build(config: Mapping[str, Any]) -> Teacher``; see `shards_schema.inputs.kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel, ValidationError

from shards_schema.errors import ConfigError
from shards_schema.inputs import kinds
from shards_schema.inputs.models import Model, validated
from shards_schema.inputs.refusals import problems
from shards_schema.specs import NAME, refuse_reserved
from shards_schema.storage import stored_specs
from teachers.base import ColumnConfig, Teacher
from teachers.weights import commit_of, is_commit

GROUP = "last_shards.teachers"
BUILT_IN = {
    "cosmos": "teachers.cosmos:build",
    "cosmos_predict": "teachers.cosmos:build_predict",
    "pdm": "teachers.pdm:build",
    "vggt": "teachers.vggt:build",
    "vjepa2": "teachers.vjepa2:build",
}
"""The only list of them: pyproject.toml names none, since metadata of an older installation would say otherwise."""
CONFIGS = {
    "cosmos": "teachers.cosmos.config:CosmosConfig",
    "cosmos_predict": "teachers.cosmos.predict_config:CosmosPredictConfig",
    "pdm": "teachers.pdm.teacher:PDMConfig",
    "vggt": "teachers.vggt.config:VGGTConfig",
    "vjepa2": "teachers.vjepa2:VJEPA2Config",
}
"""The model of a built-in's own keys."""


def available() -> dict[str, str]:
    """See `kinds.available`."""
    return kinds.available(GROUP, BUILT_IN)


def config_models(kind: Any) -> list[type[BaseModel]]:
    """The models whose fields a column of a built-in kind has; none of another's."""
    return [ColumnConfig, resolve_name(CONFIGS[kind])] if kind in CONFIGS else []


def refused(column: str, given: Mapping[str, Any]) -> list[str]:
    """What a built-in kind has against its keys in a recipe's column, by line; another's says it when it is built."""
    kind = given.get("kind") or column
    if not isinstance(kind, str) or kind not in CONFIGS:
        return []
    model: type[BaseModel] = kinds.imported(f"teacher {kind!r}", CONFIGS[kind])
    try:
        model.model_validate({key: value for key, value in given.items() if key not in ColumnConfig.model_fields})
    except ValidationError as error:
        beside = ColumnConfig.model_fields.keys() - model.model_fields.keys()
        return problems(error.errors(include_url=False), model, under=["teachers", column], beside=sorted(beside))
    return []


def build(kind: str, config: Mapping[str, Any], *, column: str | None = None) -> Teacher:
    """A teacher, not yet loaded.

    Args:
        kind: one of `available`.
        config: the fields of that teacher's config.
        column: the column's name, where it is not `kind`; handed over as the config's `name`, so that two configs of
            one teacher can live in one dataset.

    Raises:
        ConfigError: `kind` is unknown, claimed twice or broken; the column has a name that is reserved; the config is
            impossible; the result is no `Teacher`.
    """
    refuse_reserved(column or kind)
    known = available()
    if kind not in known:
        raise ConfigError(f"no teacher {kind!r}; there are: {', '.join(sorted(known))}")
    fields = dict(config)
    if column is not None and column != kind:
        if not NAME.match(column):
            raise ConfigError(f"{kind}: column must match [a-z][a-z0-9_]*, got {column!r}")
        if fields.setdefault("name", column) != column:
            raise ConfigError(f"{kind}: the config's name is {fields['name']!r}, but the column is {column!r}")
    function = kinds.imported(f"teacher {kind!r}", known[kind])
    try:
        teacher = function(fields)
    except ValidationError as error:
        raise ConfigError(f"teacher {kind}: " + "; ".join(problems(error.errors(include_url=False)))) from error
    if not isinstance(teacher, Teacher):
        raise ConfigError(f"{kind}: {known[kind]} returned a {type(teacher).__name__}, which is not a Teacher")
    if teacher.name != (column or fields.get("name", kind)):
        raise ConfigError(f"{kind}: asked for the column {column or kind!r}, but the teacher is named {teacher.name!r}")
    return teacher


def build_teacher(column: str, config: ColumnConfig | Mapping[str, Any]) -> Teacher:
    """The teacher of a recipe's column, not loaded: what can be said against its config without its weights is said.

    Args:
        column: its name.
        config: what stands under it in the recipe, read or as it is.

    Raises:
        ConfigError: as `build`; or a storage that a target cannot have.
    """
    if not isinstance(config, ColumnConfig):
        config = validated(ColumnConfig, dict(config), f"teachers.{column}: ")
    teacher = build(config.kind or column, config.of_kind, column=column)
    stored_specs(teacher.specs, config.storage or {})
    return teacher


def pinned(columns: Mapping[str, ColumnConfig], tell: Callable[[str], None]) -> dict[str, ColumnConfig]:
    """The columns, with the commit in place of each hub's branch or tag; their weights' files are fetched for that.

    Args:
        columns: of a recipe.
        tell: gets a line for each that was not a commit.

    Raises:
        ConfigError: as `build`.
        WeightsError: a checkpoint cannot be had.
    """
    found = {}
    for column, config in columns.items():
        fields = config.model_dump(exclude_unset=True)
        loose = {
            key: value
            for key, value in fields.items()
            if isinstance(value, Mapping) and value.get("hub") and not is_commit(str(value.get("revision")))
        }
        if loose:
            build_teacher(column, config).provenance()  # which asks the hub
        for key, value in loose.items():
            commit = commit_of(value["hub"], value["revision"])
            tell(
                f"{column}: {value['revision']} of {value['hub']} is {commit} today; with `revision: {commit}` in the "
                "recipe it stays so"
                if is_commit(commit)
                else f"{column}: nobody knows which commit {value['revision']} of {value['hub']} is"
            )
            fields[key] = {**value, "revision": commit}
        found[column] = ColumnConfig(**fields) if loose else config
    return found


def parse_config(model: type[Model], config: Mapping[str, Any], kind: str) -> Model:
    """`config` as a `model`.

    Raises:
        ConfigError: with each field that is unknown, missing or impossible.
    """
    return validated(model, dict(config), f"teacher {kind}: ")
