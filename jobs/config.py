"""A job's config: one YAML, then ``key=value`` overrides, checked as a whole before any work.

``python -m jobs.teachers configs/demo.yaml out=out/demo plan.seed=3 teachers.vggt.batch_size=4``: dots go into nested
mappings. Where a key takes text, the text is what was given, with its blanks, its ``#`` and its quotes; all else is
YAML. ``key=null`` clears one, and a key is given once. ``${VAR}`` in a string is taken from the environment. ``--help``
prints every key (`jobs.usage`), after a config also those of the kinds that it chooses.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jobs import usage
from pipeline.stores.retry import without_credentials
from shards_schema import layout
from shards_schema.errors import ConfigError, ShardsError
from shards_schema.inputs import documents
from shards_schema.inputs.models import read_yaml
from shards_schema.inputs.refusals import annotations_at, options_of, problems

Model = TypeVar("Model", bound=BaseModel)

_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=", re.DOTALL)
_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)
_YAML = ".yaml"
_NULLS = ("~", "Null", "NULL")
_READER_GONE = 141
"""What a shell says of a process that SIGPIPE ended."""


class HelpAskedError(Exception):
    """Somebody asks what the keys are: those of `models`, and those that kinds of a config choose. `run` answers."""

    def __init__(self, *models: type[BaseModel], chosen: usage.Chosen | None = None) -> None:
        super().__init__(", ".join(model.__name__ for model in models))
        self.models, self.chosen = models, chosen or {}


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
        raise HelpAskedError(model, chosen=_chosen(model, arguments))
    values, files = _values(model, arguments)
    values, where = documents.expanded(values), files[0] if files else "command line"
    refused: Callable[[Mapping[str, Any]], list[str]] = getattr(model, "refused", lambda values: [])
    of_kinds = refused(values)
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        told = describe(error, where, model, beside=beside, more=of_kinds)
        missing = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing" and len(e["loc"]) == 1]
        recipe = usage.recipe_of(model) if missing and not files else None
        if not arguments and len(missing) == error.error_count():
            raise NothingGivenError(missing, recipe) from None
        raise ConfigError(told + (f"\na recipe has them, e.g. {recipe}" if recipe else "")) from error
    if of_kinds:
        raise ConfigError(_cannot_be(where, of_kinds))
    return config


def load_around(around: type[Model], inner: type[BaseModel], arguments: list[str]) -> Model:
    """A config whose field `recipe` is another job's: ``field=value`` sets its other fields, all else is the recipe's.

    Raises:
        HelpAskedError, ConfigError: as `load`.
    """
    fields = around.model_fields.keys() - {"recipe"}
    own = [a for a in arguments if a.partition("=")[0] in fields]
    if usage.asks_help(arguments):
        raise HelpAskedError(around, inner, chosen=_chosen(inner, [a for a in arguments if a not in own]))
    recipe = load(inner, [a for a in arguments if a not in own], beside=fields)
    values = documents.expanded(dict(_given(around, own)))
    try:
        return around.model_validate({"recipe": recipe, **values})
    except ValidationError as error:
        raise ConfigError(describe(error, "command line", around)) from error


def describe(
    error: ValidationError,
    where: str,
    model: type[BaseModel],
    *,
    beside: Iterable[str] = (),
    more: Iterable[str] = (),
) -> str:
    """A validation error of a `model` as one line a field: key, what is wrong, what was found; then `more` lines."""
    lines = problems(error.errors(), model, beside=beside, shown=lambda value: without_credentials(repr(value)))
    return _cannot_be(where, [*lines, *more])


def _cannot_be(where: str, lines: Sequence[str]) -> str:
    return f"{where}: {len(lines)} value{'s' * (len(lines) != 1)} cannot be:\n  " + "\n  ".join(lines)


def _chosen(model: type[BaseModel], arguments: Sequence[str]) -> usage.Chosen:
    """What a model says of the kinds that these arguments choose; not every model has such."""
    given = [a for a in arguments if a not in usage.HELP]
    if not given:
        return {}
    values = _values(model, given)[0]
    choose: Callable[[Mapping[str, Any]], usage.Chosen] | None = getattr(model, "chosen", None)
    found = dict(choose(values)) if choose is not None else {}
    for (
        name,
        field,
    ) in model.model_fields.items():  # unions of models with a kind, of which the default's is shown anyway
        kind = value.get("kind") if isinstance(value := values.get(name), Mapping) else None
        kinds = [option for option in options_of(field.annotation) if "kind" in getattr(option, "model_fields", {})]
        default = type(field.get_default(call_default_factory=True))
        chosen = [m for m in kinds if kind in get_args(m.model_fields["kind"].annotation) and m is not default]
        found |= {name: chosen} if chosen else {}
    return found


def _values(model: type[BaseModel], arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the file and the overrides say together, not looked at; and the file, if there is one."""
    overrides, files = _parted(arguments)
    if options := [a for a in files if a.startswith("-")]:
        raise ConfigError(f"no option {options[0]}: keys are set by key=value, and --help lists them")
    if len(files) > 1:
        raise ConfigError(f"expected one config file and key=value overrides, got {files}")
    values = _read(Path(files[0]), model) if files else {}
    for key, value in _given(model, overrides):
        _set(values, key, value)
    return values, files


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and what is none: a file's name may hold a "=" too, but not before a key has ended."""
    overrides = [a for a in arguments if _OVERRIDE.match(a) and not (a.endswith(_YAML) and os.path.isfile(a))]
    return overrides, [a for a in arguments if a not in overrides]


def _read(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    if path.parent == Path("configs") and not path.exists() and (usage.RECIPES / path.name).is_file():
        path = usage.RECIPES / path.name  # from a folder that is not the clone
    if path.is_dir() and not path.suffix:
        raise ConfigError(f"{path} is a folder, and a config is a file{_meant(path, model)}")
    return read_yaml(path, f"config {path}", lambda: f"; {_recipes(path)}")


def _meant(folder: Path, model: type[BaseModel]) -> str:
    """The key that a folder in the place of a config is likely meant for."""
    keys = [key for key in ("data", "out") if key in model.model_fields]
    return f": write {keys[0]}={folder}" if keys and (folder / layout.DATASET).is_file() else "; --help lists the keys"


def _recipes(path: Path) -> str:
    there = [str(path.with_name(name.name)) for name in path.parent.glob(f"*{_YAML}")]
    near = difflib.get_close_matches(str(path), there, 1)
    return f"did you mean {near[0]}?" if near else f"`ls {usage.RECIPES}` shows the recipes"


def _given(model: type[BaseModel], overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Key and value of each override; none is given twice, as itself or as a part of another."""
    before: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        value = _value(model, key, documents.recordable(key, text))
        for leaf in _leaves(key, value):
            if twice := [k for k in before if f"{k}.".startswith(f"{leaf}.") or f"{leaf}.".startswith(f"{k}.")]:
                raise ConfigError(f"{leaf} is given twice on the command line (also as {twice[0]}); keep one")
        before += _leaves(key, value)
        yield key, value


def _leaves(key: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [key]
    return [leaf for inner, item in value.items() for leaf in _leaves(f"{key}.{inner}", item)]


def _value(model: type[BaseModel], key: str, text: str) -> Any:
    """Of an override. Nothing at all (``out=$UNSET``) is null, so it is refused where a value is needed.

    A quoted text is refused where quotes would stay: somebody means YAML.
    """
    if text in ("", "null"):
        return None
    options = [option for place in annotations_at(model, key.split(".")) for option in options_of(place)]
    if options and all(map(_is_text, options)):
        if _QUOTED.fullmatch(text):
            raise ConfigError(f"override {key}={text}: {key} takes text as it is; leave out the quotes around it")
        return text
    try:
        value = documents.parse_yaml(text)
    except documents.UnreadableError as error:
        raise ConfigError(
            f"override {key}={text}: {error}; such text wants quotes that the shell leaves: \"{key}='...'\""
        ) from error
    # of a text YAML would keep what stands before a ``#``, without the blanks around it
    cut = isinstance(value, str) or (value is None and text not in _NULLS)
    return text if cut and not _QUOTED.fullmatch(text) else value


def _is_text(option: Any) -> bool:
    return option in (str, Path, type(None)) or (
        get_origin(option) is Literal and all(isinstance(value, str) for value in get_args(option))
    )


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {key}: {parent} is {inner!r}, not a mapping")
        values = inner
    values[last] = value


def run(main: Callable[[list[str]], object], *, interrupted: str = "interrupted") -> NoReturn:
    """Run a job's `main` on the command line and leave, with the errors as a person wants them.

    Exit code: what `main` returns if that is an int, else 0; 2 for a config that cannot be, 1 for any other error of
    ours and for output that cannot be written, 130 for Ctrl-C, which prints `interrupted`; 141 without a word where
    nobody reads the output any more (``| head``).
    """
    if sys.stdout is None:  # ``>&-``: what is opened next would be written to by whoever prints
        print("stdout is closed, and what this prints would be lost: give it a file, or /dev/null", file=sys.stderr)
        raise SystemExit(1)
    try:
        code = _exit_code(main, interrupted)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _drop_unread():  # another pipe's: a real error
            raise
        code = _READER_GONE
    except OSError as error:
        print(f"\n{_of_output(error)}", file=sys.stderr)
        code = 1
    raise SystemExit(code)


def _of_output(error: OSError) -> str:
    """What to say of an error of the system that no place of ours has told: of a named file, or of stdout."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        raise error
    _drop(sys.stdout)
    return f"the output cannot be written ({error.strerror}): what was printed is not whole"


def _exit_code(main: Callable[[list[str]], object], interrupted: str) -> str | int | None:
    try:
        code = main(sys.argv[1:])
        return code if isinstance(code, int) else 0
    except SystemExit as left:
        return left.code
    except HelpAskedError as asked:
        print(usage.page(main, asked.models, asked.chosen))
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
            _drop(stream)
            gone = True
    return gone


def _drop(stream: TextIO) -> None:
    """Let what a stream still holds, and all that comes, go nowhere: Python would tell of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
