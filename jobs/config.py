"""A job's config: one YAML, then ``key=value`` overrides, checked as a whole before any work.

``python -m jobs.teachers configs/demo.yaml out=out/demo plan.seed=3 teachers.vggt.batch_size=4``: dots go into nested
mappings, values are YAML, ``key=null`` clears one. ``${VAR}`` in a string is taken from the environment.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.stores.retry import without_credentials
from shards_schema.errors import ConfigError, ShardsError

Model = TypeVar("Model", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def load(model: type[Model], arguments: Sequence[str]) -> Model:
    """Build a job's config from its command line: at most one YAML file, then overrides.

    Raises:
        ConfigError: no such file, not YAML, an unknown or impossible value; the key is named.
    """
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise ConfigError(f"expected one config file and key=value overrides, got {files}")
    values = _read(Path(files[0])) if files else {}
    for override in (a for a in arguments if "=" in a):
        key, _, text = override.partition("=")
        _set(values, key, _yaml(text, f"override {override!r}"))
    try:
        return model.model_validate(_expand(values))
    except ValidationError as error:
        raise ConfigError(describe(error, files[0] if files else "command line")) from error


def load_around(around: type[Model], inner: type[BaseModel], arguments: list[str]) -> Model:
    """A config whose field `recipe` is another job's: ``field=JSON`` sets its other fields, all else is the recipe's.

    Raises:
        ConfigError: as `load`.
    """
    fields = around.model_fields.keys() - {"recipe"}
    own = [a for a in arguments if a.partition("=")[0] in fields]
    recipe = load(inner, [a for a in arguments if a not in own])
    values = {key: json.loads(value) for key, _, value in (a.partition("=") for a in own)}
    try:
        return around(recipe=recipe, **values)
    except ValidationError as error:
        raise ConfigError(describe(error, "command line")) from error


def describe(error: ValidationError, where: str) -> str:
    """A validation error as one line a field: key, what is wrong, what was found."""
    lines = [
        f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg'].removeprefix('Value error, ')}, got "
        f"{without_credentials(repr(e['input']))[:80]}"
        for e in error.errors()
    ]
    return f"{where}: {len(lines)} value{'s' * (len(lines) != 1)} cannot be:\n" + "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _yaml(path.read_text(), str(path))
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror}; `ls configs/` shows the recipes") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}: expected a mapping, got {type(values).__name__}")
    return values


def _yaml(text: str, where: str) -> Any:
    try:
        # aliases of aliases are a kilobyte here and gigabytes when `_expand` has copied them
        if "*" in text and any(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.CSafeLoader)
        ):
            raise ConfigError(f"{where}: it uses aliases (*name); write the values out")
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {key}: {parent} is {inner!r}, not a mapping")
        values = inner
    values[last] = value


def _expand(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v) for v in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
        raise ConfigError(f"the config names ${{{match[1]}}}, which is not set in the environment")
    return os.environ[match[1]]


def run(main: Callable[[list[str]], object], *, interrupted: str = "interrupted") -> NoReturn:
    """Run a job's `main` on the command line and leave, with the errors as a person wants them.

    Exit code: what `main` returns if that is an int, else 0; 2 for a config that cannot be, 1 for any other error of
    ours, 130 for Ctrl-C, which prints `interrupted`.
    """
    try:
        code = main(sys.argv[1:])
        raise SystemExit(code if isinstance(code, int) else 0)
    except ShardsError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
