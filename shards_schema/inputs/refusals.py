"""What is said of a config that cannot be: a line a field, by its dotted key; an unknown key with the nearest one.

Configs are pydantic models and the errors are pydantic's, but this room imports neither: a model is known by its
``model_fields``, an error by its dict. What a key leads to is found by walking the model's annotations, through
optional, tagged and repeated models alike. A tag of a union stands in pydantic's path and not in the key that a person
writes, so it is left out here.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

# what pydantic says in Python's words
_PLAIN = {
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
}


def problems(
    errors: Iterable[Mapping[str, Any]],
    model: Any = None,
    *,
    under: Sequence[str] = (),
    beside: Iterable[str] = (),
    shown: Callable[[Any], str] = repr,
) -> list[str]:
    """A validation error in lines ``key: what is wrong, got what was found``.

    Args:
        errors: ``ValidationError.errors()``.
        model: what was validated; None where nobody knows, and then an unknown key has no neighbours.
        under: where the model stands in what a person wrote: it goes before every key.
        beside: keys that are known beside the model's own, at the top.
        shown: a value in words; at most 80 characters of them are taken.
    """
    lines = []
    for error in errors:
        key, places = _walk(model, error["loc"][:-1])
        path = [*key, str(error["loc"][-1])] if error["loc"] else []
        if error["type"] == "extra_forbidden":
            known = [*fields_of(places), *(() if key else beside)]
            what = _unknown([*under, *path], known, places)
        else:
            if error["loc"] and _walk(model, error["loc"])[0] == key:  # the last one is a tag
                path = key
            what = _PLAIN.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
            if error["type"] in ("tuple_type", "list_type") and isinstance(error["input"], str | int | float):
                what += f", of one here: [{error['input']}]"
            of_all = error["type"] == "value_error" and isinstance(error["input"], Mapping)
            if error["type"] != "missing" and not of_all and ", got " not in what:
                what += f", got {shown(error['input'])[:80]}"
        lines.append(": ".join(part for part in (".".join([*under, *path]), what) if part))
    return list(dict.fromkeys(lines))  # each member of a union may say the same


def annotations_at(model: Any, key: Sequence[str]) -> list[Any]:
    """The annotations that a dotted key of a model may lead to; [] where it leads nowhere."""
    return _walk(model, key)[1]


def fields_of(annotations: Iterable[Any]) -> list[str]:
    """The keys of the models among these annotations."""
    return list(dict.fromkeys(name for a in annotations for option in options_of(a) for name in _fields(option)))


def _unknown(path: Sequence[str], known: Sequence[str], places: Iterable[Any]) -> str:
    *parents, name = path
    # right, but a level too high: ``device`` for ``worker.device``
    near = [f"{k}.{name}" for k in known for p in places if name in fields_of(_step(p, k)[1])]
    near += difflib.get_close_matches(name, known, 1)
    if near:
        return f"unknown key; did you mean {'.'.join([*parents, near[0]])}?"
    return "unknown key" + (f"; there are: {', '.join(known)}" if known else "")


def _walk(model: Any, path: Iterable[Any]) -> tuple[list[str], list[Any]]:
    """The key of a path, and the annotations that it leads to."""
    key: list[str] = []
    places = [] if model is None else [model]
    for part in path:
        steps = [_step(place, part) for place in places]
        if not (places and all(tag for tag, _ in steps)):
            key.append(str(part))
        places = [inner for _, found in steps for inner in found]
    return key, places


def _step(annotation: Any, part: Any) -> tuple[bool, list[Any]]:
    """Whether `part` is a union's tag and no key; what it leads to."""
    options = options_of(annotation)
    if len(options) > 1 and not any(_fields(o) or isinstance(get_origin(o), type) for o in options):
        return True, []  # a number or a word: pydantic says which it tried
    models = [option for option in options if _fields(option)]
    if len(models) > 1 and (tagged := [m for m in models if _is_tag(m, part)]):
        return True, tagged
    found = []
    for option in options:
        inner = get_args(option)
        if part in (fields := _fields(option)):
            found.append(fields[part].annotation)
        elif isinstance(origin := get_origin(option), type) and inner:
            if issubclass(origin, Mapping):
                found.append(inner[-1])
            elif issubclass(origin, Iterable) and isinstance(part, int):
                found.append(inner[0] if inner[-1] is ... else inner[min(part, len(inner) - 1)])
    return False, found


def options_of(annotation: Any) -> list[Any]:
    """The members of a union, or what it is, without what annotates it."""
    if get_origin(annotation) is Annotated:
        return options_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in options_of(member)]
    return [annotation]


def _fields(annotation: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(annotation, "model_fields", {}) if isinstance(annotation, type) else {}
    return fields


def _is_tag(model: Any, part: Any) -> bool:
    """Whether `part` names this member: a plain union says its class, a discriminated one the value of a literal."""
    literals = (f.annotation for f in _fields(model).values() if get_origin(f.annotation) is Literal)
    return part == model.__name__ or any(part in get_args(literal) for literal in literals)
