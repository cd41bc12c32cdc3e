"""What ``--help`` prints: the module's docstring, and each key of its config with type, default and meaning.

Nothing is written twice: a meaning is the docstring below the field, and the line of usage is the command in backticks
that a job's docstring begins with. Parts of a config that are configs
themselves are shown one level deep, as dotted keys. Values are as a recipe writes them (YAML).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shards_schema.inputs import documents
from shards_schema.inputs.refusals import options_of

HELP = frozenset({"--help", "-h"})
_ROOT = Path(__file__).parents[1]
RECIPES = next((p for p in (_ROOT / "last_shards" / "configs", _ROOT / "configs") if p.is_dir()), _ROOT / "configs")
"""Our own recipes: where a wheel has put them, or in the clone."""

_COMMAND = re.compile(r"`+(python -m [^`]+)`+")
_KEY_WIDTH = 26
_WIDTHS = (80, 120)
"""Of a line, at least and at most."""


def asks_help(arguments: Sequence[str]) -> bool:
    """Whether the keys are asked for."""
    return not HELP.isdisjoint(arguments)


Chosen = Mapping[str, Sequence[type[BaseModel]]]
"""Where a kind is chosen -> the models whose fields stand there; none where only another package knows them."""


def page(main: Callable[..., object], models: Sequence[type[BaseModel]], chosen: Chosen | None = None) -> str:
    """The whole text for the job of `main`; the keys are those of all `models`, then those of the kinds in a config."""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _WIDTHS[0]), _WIDTHS[1])
    entries = [entry for model in models for entry in _entries(model) if entry[0] != "recipe" or len(models) == 1]
    for key, kinds in (chosen or {}).items():
        own = {name: text for model in kinds for name, text in _entries(model, f"{key}.")}
        entries += [(f"{key}.*", "Of this kind:" if own else "Of a kind that another package has."), *own.items()]
    lines = [_paragraph(key, text, width) for key, text in entries]
    return "\n".join([_doc(main), "", "Keys, each as key=value (YAML), or nested in CONFIG:", "", *lines])


def line(main: Callable[..., object], recipe: str | None) -> str:
    """Usage in a line, with an example where there is a recipe."""
    found = _COMMAND.search(_doc(main))
    command = found[1] if found else "python -m MODULE [key=value ...]"
    module = " ".join(command.split()[:3])
    return f"usage: {command}" + (f", e.g. {module} {recipe}" if recipe else "") + "; --help lists every key"


def recipe_of(model: type[BaseModel]) -> str | None:
    """A file of configs/ that sets what `model` requires, or most of it, and no key that it has not; None: no such."""
    best: tuple[int, str] | None = None
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    for path in sorted(RECIPES.glob("*.yaml")):
        keys = set(documents.parse_yaml(path.read_bytes()) or {})
        if keys <= model.model_fields.keys() and keys & required:
            best = min(best or (len(required), ""), (len(required - keys), f"configs/{path.name}"))
    return best[1] if best else None


def _doc(main: Callable[..., object]) -> str:
    return (sys.modules[main.__module__].__doc__ or "").strip()


def _entries(
    model: type[BaseModel], prefix: str = "", given: BaseModel | None = None, *, nested: bool = True
) -> Iterator[tuple[str, str]]:
    """Key and text of each field; `given` is the default of the whole, where that has its own."""
    for name, field in model.model_fields.items():
        default = getattr(given, name) if given is not None else field.get_default(call_default_factory=True)
        inner = _nested(field, default)
        if inner is None or not nested:
            required = given is None and field.is_required()
            told = f"{_short(field.annotation)}, " + ("required" if required else f"default {_shown(default)}")
            yield f"{prefix}{name}", ". ".join(filter(None, (told, field.description)))
            continue
        kinds = _short(field.annotation)
        key = f"{prefix}{name}."
        yield f"{key}*", (field.description or "See below.") + ("" if kinds.startswith("{") else f" ({kinds})")
        yield from _entries(inner, key, default if isinstance(default, inner) else None, nested=False)


def _nested(field: FieldInfo, default: Any) -> type[BaseModel] | None:
    """The model that a field is: the only one, or of several the default's."""
    models = [o for o in options_of(field.annotation) if _is_model(o)]
    if len(models) == 1:
        only: type[BaseModel] = models[0]
        return only
    return type(default) if isinstance(default, BaseModel) else None


def _shown(value: Any) -> str:
    """A default as YAML has it, shortened."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if isinstance(plain, Mapping) and any(isinstance(v, BaseModel) for v in plain.values()):
        return f"of {', '.join(map(str, plain))}"
    if isinstance(plain, tuple | frozenset | set):
        plain = sorted(plain) if isinstance(plain, frozenset | set) else list(plain)
    return textwrap.shorten(json.dumps(plain, default=str), 60, placeholder=" ...")


def _short(annotation: Any) -> str:
    """A type in words that a person who knows YAML knows."""
    options = options_of(annotation)
    if len(options) > 1:
        return " | ".join(dict.fromkeys(_short(option) for option in options))
    (only,) = options
    origin, inner = get_origin(only), get_args(only)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {_short(inner[-1])}"
    if origin is tuple and inner and inner[-1] is not ...:
        return f"[{', '.join(map(_short, inner))}]"
    if inner:
        return f"list of {_short(inner[0])}"
    if _is_model(only):
        kind = only.model_fields.get("kind")
        return f"kind {_short(kind.annotation)}" if kind else f"{{{', '.join(only.model_fields)}}}"
    names = {type(None): "null", Any: "anything", Path: "path"}
    return names.get(only) or str(getattr(only, "__name__", only))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _paragraph(key: str, text: str, width: int) -> str:
    begin = f"  {key:{_KEY_WIDTH}} " if len(key) <= _KEY_WIDTH else f"  {key}  "
    return textwrap.fill(" ".join(text.split()), width, initial_indent=begin, subsequent_indent=" " * (_KEY_WIDTH + 3))
