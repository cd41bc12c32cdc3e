"""A job's config: one YAML, then ``key=value`` overrides, checked as a whole before any work.

``python -m jobs.teachers configs/demo.yaml out=out/demo plan.seed=3 teachers.vggt.batch_size=4``: dots go into nested
mappings, values are YAML, ``key=null`` clears one; blanks alone are themselves where a key takes text and nothing else
(``separator=' '``). ``${VAR}`` in a string is taken from the environment. ``--help`` prints every key (`jobs.usage`).
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from jobs import usage
from pipeline.stores.retry import without_credentials
from shards_schema.errors import ConfigError, ShardsError
from shards_schema.refusals import annotations_at, problems

Model = TypeVar("Model", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_READER_GONE = 141
"""What a shell says of a process that SIGPIPE ended."""


class HelpAskedError(Exception):
    """Somebody asks what the keys are: those of `models`. `run` answers."""

    def __init__(self, *models: type[BaseModel]) -> None:
        super().__init__(", ".join(model.__name__ for model in models))
        self.models = models


class NothingGivenError(ConfigError):
    """No argument at all, where some key has to be given. `run` adds the usage, with `recipe` as an example."""

    def __init__(self, missing: Sequence[str], recipe: str | None) -> None:
        super().__init__(f"nothing is given, and {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} needed")
        self.recipe = recipe


def load(model: type[Model], arguments: Sequence[str], *, beside: Iterable[str] = ()) -> Model:
    """Build a job's config from its command line: at most one YAML file, then overrides.

    Args:
        model: of the config.
        arguments: the command line.
        beside: keys that this command line has beside the model's; an unknown one may be meant for them.

    Raises:
        HelpAskedError: ``--help`` is among the arguments.
        ConfigError: no such file, not YAML, an unknown key, an impossible value; the key is named.
    """
    if usage.asks_help(arguments):
        raise HelpAskedError(model)
    files = [a for a in arguments if "=" not in a]
    if options := [a for a in files if a.startswith("-")]:
        raise ConfigError(f"no option {options[0]}: keys are set by key=value, and --help lists them")
    if len(files) > 1:
        raise ConfigError(f"expected one config file and key=value overrides, got {files}")
    values = _read(Path(files[0])) if files else {}
    for override in (a for a in arguments if "=" in a):
        key, _, text = override.partition("=")
        _set(values, key, _value(model, key, text))
    try:
        return model.model_validate(_expand(values))
    except ValidationError as error:
        told = describe(error, files[0] if files else "command line", model, beside=beside)
        missing = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing" and len(e["loc"]) == 1]
        recipe = usage.recipe_of(model) if missing and not files else None
        if not arguments and len(missing) == error.error_count():
            raise NothingGivenError(missing, recipe) from None
        raise ConfigError(told + (f"\na recipe has them, e.g. {recipe}" if recipe else "")) from error


def load_around(around: type[Model], inner: type[BaseModel], arguments: list[str]) -> Model:
    """A config whose field `recipe` is another job's: ``field=value`` sets its other fields, all else is the recipe's.

    Raises:
        HelpAskedError, ConfigError: as `load`.
    """
    if usage.asks_help(arguments):
        raise HelpAskedError(around, inner)
    fields = around.model_fields.keys() - {"recipe"}
    own = [a for a in arguments if a.partition("=")[0] in fields]
    recipe = load(inner, [a for a in arguments if a not in own], beside=fields)
    values = {key: _value(around, key, text) for key, _, text in (a.partition("=") for a in own)}
    try:
        return around(recipe=recipe, **values)
    except ValidationError as error:
        raise ConfigError(describe(error, "command line", around)) from error


def describe(error: ValidationError, where: str, model: type[BaseModel], *, beside: Iterable[str] = ()) -> str:
    """A validation error of a `model` as one line a field: key, what is wrong, what was found."""
    lines = problems(error.errors(), model, beside=beside, shown=lambda value: without_credentials(repr(value)))
    return f"{where}: {len(lines)} value{'s' * (len(lines) != 1)} cannot be:\n  " + "\n  ".join(lines)


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


def _value(model: type[BaseModel], key: str, text: str) -> Any:
    """Of an override: YAML, whose blanks are null. Nothing at all (``out=$UNSET``) stays null, so it is refused."""
    if text.isspace() and annotations_at(model, key.split(".")) == [str]:
        return text
    try:
        return _yaml(text, f"override {key}={text}")
    except ConfigError as error:
        raise ConfigError(f"{error}; such text wants quotes that the shell leaves: \"{key}='...'\"") from error


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
    ours, 130 for Ctrl-C, which prints `interrupted`; 141 without a word where nobody reads the output any more
    (``| head``).
    """
    try:
        code = _exit_code(main, interrupted)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _drop_unread():  # another pipe's: a real error
            raise
        code = _READER_GONE
    raise SystemExit(code)


def _exit_code(main: Callable[[list[str]], object], interrupted: str) -> str | int | None:
    try:
        code = main(sys.argv[1:])
        return code if isinstance(code, int) else 0
    except SystemExit as left:
        return left.code
    except HelpAskedError as asked:
        print(usage.page(main, asked.models))
        return 0
    except ShardsError as error:
        told = f"; {usage.line(main, error.recipe)}" if isinstance(error, NothingGivenError) else ""
        print(f"\n{type(error).__name__.replace('NothingGivenError', 'ConfigError')}: {error}{told}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def _drop_unread() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; what it still holds is dropped, or Python would tell."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (OSError, ValueError):  # no file
            continue
        poll = select.poll()
        poll.register(number, 0)  # errors are told without being asked for
        if poll.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            gone = True
    return gone
