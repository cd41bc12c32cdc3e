"""Sources by kind: the key `kind` of a config's `source` says which one reads the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.sources.base import Source
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from pipeline.stores.retry import without_credentials
from shards_schema.errors import ConfigError
from shards_schema.inputs.places import local_place
from shards_schema.inputs.refusals import problems
from synthetic import SyntheticConfig, generate

Progress = Callable[[str], None]
Model = TypeVar("Model", bound=BaseModel)


def _navsim(config: Mapping[str, Any], progress: Progress) -> Source:
    return NavsimSource(_parsed(NavsimConfig, config))


def _nuplan(config: Mapping[str, Any], progress: Progress) -> Source:
    return NuplanSource(_parsed(NuplanConfig, config))


def _synthetic(config: Mapping[str, Any], progress: Progress) -> Source:
    """The generator's dataset, made where it is not there yet, then read as any NAVSIM dataset is.

    Keys of the NAVSIM source (`root`, `split`, `filter`, ...) are its own; every other key is the generator's. All of
    them are checked before anything is made.
    """
    given = {k: v for k, v in config.items() if k in NavsimConfig.model_fields}
    making = _parsed(
        SyntheticConfig, {k: v for k, v in config.items() if k not in given}, beside=NavsimConfig.model_fields
    )
    root = Path(local_place(str(given.get("root", "data/synthetic"))))
    reading = _parsed(NavsimConfig, {"split": making.splits[0], **given, "root": str(root)})
    generate(making, root, progress, key="source.root")
    return NavsimSource(reading)


def _parsed(model: type[Model], config: Mapping[str, Any], *, beside: Iterable[str] = ()) -> Model:
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        found = problems(
            error.errors(include_url=False),
            model,
            under=["source"],
            beside=beside,
            shown=lambda value: without_credentials(repr(value)),
        )
        raise ConfigError("; ".join(found)) from error


KINDS: Mapping[str, Callable[[Mapping[str, Any], Progress], Source]] = {
    "navsim": _navsim,
    "nuplan": _nuplan,
    "synthetic": _synthetic,
}


def build(config: Mapping[str, Any], progress: Progress = lambda line: None) -> Source:
    """The source of a config, e.g. ``{kind: navsim, root: ..., split: ..., filter: ...}``.

    Args:
        config: `kind`, and that source's own config.
        progress: gets a line for a person where building the source takes time.

    Raises:
        ConfigError: an unknown kind or key, or a value that its source refuses.
        MismatchError: the generator's folder holds something else.
    """
    rest = dict(config)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"source.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](rest, progress)
