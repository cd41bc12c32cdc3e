"""Teachers by kind: the built-in ones, and those of other packages under the entry point group `last_shards.teachers`.

An entry point names a function ``build(config: Mapping[str, Any]) -> Teacher``. It is imported when its kind is asked
for and not before, so one that is broken breaks nothing else. The built-ins need no installed metadata: they are there
with the package on PYTHONPATH alone, and no other package can take their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel, ValidationError

from shards_schema.errors import ConfigError, ShardsError
from shards_schema.inputs.models import Model, validated
from shards_schema.inputs.refusals import problems
from shards_schema.specs import NAME, refuse_reserved
from shards_schema.storage import stored_specs
from teachers.base import ColumnConfig, Teacher

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
    """Each kind, and where it comes from (``module:function``); nothing is imported.

    Where two packages claim one kind, its value names both, and `build` refuses it.
    """
    kinds: dict[str, set[str]] = {}
    for point in entry_points(group=GROUP):
        kinds.setdefault(point.name, set()).add(point.value)
    found = {kind: " | ".join(sorted(values)) for kind, values in sorted(kinds.items())}
    return {**found, **BUILT_IN}


def config_models(kind: Any) -> list[type[BaseModel]]:
    """The models whose fields a column of a built-in kind has; none of another's."""
    return [ColumnConfig, resolve_name(CONFIGS[kind])] if kind in CONFIGS else []


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
    kinds = available()
    if kind not in kinds:
        raise ConfigError(f"no teacher {kind!r}; there are: {', '.join(sorted(kinds))}")
    fields = dict(config)
    if column is not None and column != kind:
        if not NAME.match(column):
            raise ConfigError(f"{kind}: column must match [a-z][a-z0-9_]*, got {column!r}")
        if fields.setdefault("name", column) != column:
            raise ConfigError(f"{kind}: the config's name is {fields['name']!r}, but the column is {column!r}")
    function = _find(kind, kinds[kind])
    try:
        teacher = function(fields)
    except ValidationError as error:
        raise ConfigError(f"teacher {kind}: " + "; ".join(problems(error.errors(include_url=False)))) from error
    if not isinstance(teacher, Teacher):
        raise ConfigError(f"{kind}: {kinds[kind]} returned a {type(teacher).__name__}, which is not a Teacher")
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


def parse_config(model: type[Model], config: Mapping[str, Any], kind: str) -> Model:
    """`config` as a `model`.

    Raises:
        ConfigError: with each field that is unknown, missing or impossible.
    """
    return validated(model, dict(config), f"teacher {kind}: ")


def _find(kind: str, target: str) -> Any:
    if " | " in target:
        raise ConfigError(f"teacher {kind!r} is claimed by more than one package: {target}; uninstall all but one")
    try:
        return resolve_name(target.replace(" ", ""))
    except ShardsError:
        raise
    except Exception as error:
        message = f"teacher {kind!r} cannot be imported from {target}: {type(error).__name__}: {error}"
        raise ConfigError(message) from error
