"""What the word `kind` of a config stands for: built in, or of another package, by an entry point.

An entry point is imported when its kind is asked for and not before, so one that is broken breaks nothing else. The
built-ins need no installed metadata: they are there with the package on PYTHONPATH alone, and no other package can take
their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from shards_schema.errors import ConfigError, ShardsError

_AND = " | "


def available(group: str, built_in: Mapping[str, str]) -> dict[str, str]:
    """Each kind, and where it comes from (``module:function``); nothing is imported.

    Where two packages claim one kind, its value names both, and `imported` refuses it.
    """
    kinds: dict[str, set[str]] = {}
    for point in entry_points(group=group):
        kinds.setdefault(point.name, set()).add(point.value)
    return {**{kind: _AND.join(sorted(values)) for kind, values in sorted(kinds.items())}, **built_in}


def imported(what: str, target: str) -> Any:
    """The function that a kind stands for.

    Args:
        what: the kind, for messages: ``teacher 'vggt'``.
        target: its value in `available`.

    Raises:
        ConfigError: more than one package claims it, or it cannot be imported.
    """
    if _AND in target:
        raise ConfigError(f"{what} is claimed by more than one package: {target}; uninstall all but one")
    try:
        return resolve_name(target.replace(" ", ""))
    except ShardsError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} cannot be imported from {target}: {type(error).__name__}: {error}") from error
