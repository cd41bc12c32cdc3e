"""YAML and JSON that a stranger may have written, read within bounds: the one place that hands text to a parser.

A parser is a program on somebody else's input. libyaml's goes one C frame deeper for each bracket, so that 100,000 of
them end the process by SIGSEGV; both take gigabytes for an alias of aliases or for a file that never ends; and of a key
that is given twice both keep the last and say nothing. So size, depth, UTF-8, aliases and keys are looked at here, and
what is wrong is an `UnreadableError` whose text goes on from the file's name: "is no UTF-8 (byte 0xff at 12)".
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards_schema.errors import ConfigError

if TYPE_CHECKING:
    import yaml

YAML_BYTES = 16 << 20
"""Eight times navtrain's filter. A node takes some 700 bytes of memory, and text of two bytes can be one."""
JSON_BYTES = 1 << 30
LOG_BYTES = 1 << 30
"""Of a pickled log; OpenScene's largest have some 30 MB."""
DEPTH = 100
"""Of what is written as a tree; ours is 8 deep."""

LARGEST = (1 << 63) - 1
"""Of a number that a key can have."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_INDICATORS = re.compile(rf"^[ \-?:]{{{DEPTH},}}", re.MULTILINE)
"""Blocks in YAML go deeper by an indent, or by indicators in a row: ``- - - x``."""


class UnreadableError(ValueError):
    """What is wrong with a text, without its name; callers say whose it is, in an error of their own."""


@functools.cache
def _loader() -> type[yaml.CSafeLoader]:
    """A loader that takes no key twice, and a date for text: no key of ours is one, and ``2026-02-30`` would raise."""
    import yaml  # who reads shards alone need not have it

    class Loader(yaml.CSafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own)
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            once((key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)), f" (line {_line(node)})")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    return Loader


def read(path: str | Path, limit: int) -> bytes:
    """A whole file, which may be a pipe, of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        UnreadableError: it has more.
    """
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnreadableError(f"has more than the {limit >> 20} MiB that such a file may have")
    return data


def parse_yaml(data: bytes | str) -> Any:
    """What a YAML text says.

    Raises:
        UnreadableError: too long or too deep, no UTF-8, no YAML, uses aliases, or gives a key twice.
    """
    if len(data) > YAML_BYTES:
        raise UnreadableError(f"has more than the {YAML_BYTES >> 20} MiB that such a file may have")
    import yaml

    text = _text(data)
    deep = text.count("[") + text.count("{") >= DEPTH or _INDICATORS.search(text) is not None
    try:
        # all events are looked at where there may be something to see: it doubles the time
        if deep or ("*" in text and "&" in text):
            _check_events(text)
        return yaml.load(text, _loader())
    except UnreadableError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a number of 5,000 digits is a plain ValueError
        told = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise UnreadableError(f"is not YAML: {told}") from None


def _check_events(text: str) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UnreadableError(f"uses aliases (*{event.anchor}); write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH:
                raise UnreadableError(f"is nested more than {DEPTH} levels deep (line {_line(event)})")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def parse_json(data: bytes | str) -> Any:
    """What a JSON text says.

    Raises:
        UnreadableError: too long or too deep, no UTF-8, no JSON, or gives a key twice.
    """
    if len(data) > JSON_BYTES:
        raise UnreadableError(f"has more than the {JSON_BYTES >> 20} MiB that such a file may have")
    text = _text(data)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:  # the C scanner counts with the interpreter
        raise UnreadableError("is not JSON that can be read: it is nested too deep") from None
    except UnreadableError:
        raise
    except ValueError as error:
        raise UnreadableError(f"is not JSON: {error}") from None


def once(keys: Iterable[str], where: str = "") -> None:
    """Refuse a key that is there twice, of which a parser would keep one and say nothing.

    Raises:
        UnreadableError: there is one.
    """
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise UnreadableError(f"gives the key {key!r:.80} twice{where}; keep one")
        seen.add(key)


def expanded(value: Any, key: str = "") -> Any:
    """A config's value with its ``${VAR}``, where it is one that something can be: in a file's name, in a record.

    Raises:
        ConfigError: a variable that is not set, a number that no key can have, text that no record can hold.
    """
    if isinstance(value, dict):
        return {k: expanded(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [expanded(v, key) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: {value} is no number that a key can have")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{key}: a number of {len(str(value))} digits; the largest that a key can have is {LARGEST}")
    if not isinstance(value, str):
        return value
    return recordable(key, _VARIABLE.sub(_variable, value))


def recordable(key: str, text: str) -> str:
    """A config's text, where a record can hold it.

    Raises:
        ConfigError: the key, and what the text holds.
    """
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise ConfigError(f"{key}: {text!r:.80} holds bytes that are no UTF-8, or a NUL: no record can hold such text")
    return text


def _variable(match: re.Match[str]) -> str:
    if not os.environ.get(match[1], ""):
        how = "is empty" if match[1] in os.environ else "is not set"
        raise ConfigError(f"the config names ${{{match[1]}}}, which {how} in the environment")
    return os.environ[match[1]]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        once(key for key, _ in pairs)
    return found


def _text(data: bytes | str) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is no UTF-8 (byte 0x{data[error.start]:02x} at {error.start})") from None


def _line(node: yaml.Node | yaml.Event) -> int:
    return node.start_mark.line + 1 if node.start_mark else 0
