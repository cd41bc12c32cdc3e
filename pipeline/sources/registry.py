"""Sources by kind: the key `kind` of a config's `source` says which one reads the rest.

An entry point of the group `last_shards.sources` names a function ``build(config, progress) -> Source``; see
`shards_schema.inputs.kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel

from pipeline.sources.base import Source
from pipeline.stores.retry import without_credentials
from shards_schema.errors import ConfigError
from shards_schema.inputs import kinds
from shards_schema.inputs.models import Model, validated

GROUP = "last_shards.sources"
BUILT_IN = {
    "navsim": "pipeline.sources.navsim:build",
    "nuplan": "pipeline.sources.nuplan:build",
    "synthetic": "synthetic.source:build",
}
CONFIGS = {
    "navsim": ("pipeline.sources.navsim:NavsimConfig",),
    "nuplan": ("pipeline.sources.nuplan:NuplanConfig",),
    "synthetic": ("pipeline.sources.navsim:NavsimConfig", "synthetic.config:SyntheticConfig"),
}
"""The models of a built-in's keys."""

Progress = Callable[[str], None]


def available() -> dict[str, str]:
    """See `kinds.available`."""
    return kinds.available(GROUP, BUILT_IN)


def config_models(kind: Any) -> list[type[BaseModel]]:
    """The models whose fields a built-in kind has; none of another's."""
    return [resolve_name(name) for name in CONFIGS.get(kind, ())]


def build(config: Mapping[str, Any], progress: Progress = lambda line: None) -> Source:
    """The source of a config, e.g. ``{kind: navsim, root: ..., split: ..., filter: ...}``.

    Args:
        config: `kind`, and that source's own config.
        progress: gets a line for a person where building the source takes time.

    Raises:
        ConfigError: a kind that is unknown, claimed twice or broken; an unknown key; a value that its source refuses.
        MismatchError: the generator's folder holds something else.
    """
    rest, known = dict(config), available()
    kind = rest.pop("kind", None)
    if kind not in known:
        raise ConfigError(f"source.kind must be one of {', '.join(known)}, got {kind!r}")
    function: Callable[[Mapping[str, Any], Progress], Source] = kinds.imported(f"source.kind {kind!r}", known[kind])
    return function(rest, progress)


def parse_config(model: type[Model], config: Mapping[str, Any], *, beside: Iterable[str] = ()) -> Model:
    """`config` as a `model`.

    Args:
        model: of the source's config.
        config: what stands under `source`, less `kind`.
        beside: keys that somebody else takes, for the message.

    Raises:
        ConfigError: with each field that is unknown, missing or impossible.
    """
    return validated(
        model, dict(config), under=["source"], beside=beside, shown=lambda value: without_credentials(repr(value))
    )
