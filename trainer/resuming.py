"""Whether a run may go on from a checkpoint: the recipe is what it was, and a step has the samples that it had.

What decides nothing (places, speed, how often is logged) may differ, and how ranks and batches share a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shards_schema.errors import MismatchError
from trainer import distributed
from trainer.config import SFTConfig
from trainer.grpo_config import GRPOConfig

Config = TypeVar("Config", SFTConfig, GRPOConfig)

FREE = frozenset(
    {"data", "out", "device", "parallel", "evaluate_every", "save_every", "log_every", "evaluate_limit", "keep"}
    | {"dry_run", "machine"}
    | {"stream.threads", "stream.prefetch"}
)
"""What may differ when a run goes on: where things lie, ranks, speed, how often is logged, evaluated and saved."""
ELASTIC = frozenset({"stream.batch_size", "optimiser.accumulate"})
"""What may differ besides, as long as a step has the same number of samples over all ranks (`refuse_other_step`)."""


def step_samples(config: SFTConfig | GRPOConfig, ranks: int) -> int:
    """Samples of a step, over so many ranks."""
    return config.stream.batch_size * config.optimiser.accumulate * ranks


def refuse_other(recorded_json: str, own: Config, path: Path, free: Set[str]) -> Config:
    """Whether a run may go on from what is there: all of the recipe but `free` is as it was.

    Args:
        recorded_json: the recipe that it was begun with; a field that came later has its default.
        own: the recipe now.
        path: where that stands, for the message.
        free: fields that may differ, with all in them; dots go into nested ones.

    Returns:
        The recorded recipe.

    Raises:
        MismatchError: it is not; the first keys that differ are named.
    """
    try:
        recorded = type(own).model_validate_json(recorded_json)
    except ValidationError as error:
        raise MismatchError(
            f"{path}: begun with a recipe that this code does not take ({error.errors()[0]['msg']}); give another out"
        ) from error
    theirs, mine = _leaves(recorded.model_dump(mode="json")), _leaves(own.model_dump(mode="json"))
    changed = [
        key
        for key in {**mine, **theirs}
        if theirs.get(key) != mine.get(key) and not any(f"{key}.".startswith(f"{field}.") for field in free)
    ]
    if changed:
        told = "; ".join(f"{k}: {theirs.get(k)} -> {mine.get(k)}" for k in changed[:3])
        raise MismatchError(f"{path}: begun with another recipe ({told}); give the same one, or another out")
    return recorded


def _leaves(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Dotted key -> value of a tree of mappings."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        out |= _leaves(value, f"{within}{key}.") if inner else {f"{within}{key}": value}
    return out


def refuse_other_step(recorded: SFTConfig | GRPOConfig, ranks: int, own: SFTConfig | GRPOConfig, path: Path) -> None:
    """Whether a step has as many samples as it had, however ranks and batches share them.

    Args:
        recorded: the recipe that the run went by.
        ranks: that it had.
        own: the recipe now.
        path: where that stands, for the message.

    Raises:
        MismatchError: it has not.
    """
    before, now = step_samples(recorded, ranks), step_samples(own, distributed.world_size())
    if before != now:
        raise MismatchError(
            f"{path}: a step had {before} samples (stream.batch_size {recorded.stream.batch_size} x "
            f"optimiser.accumulate {recorded.optimiser.accumulate} x {ranks} ranks), now it has {now} "
            f"({own.stream.batch_size} x {own.optimiser.accumulate} x {distributed.world_size()}); choose the first "
            f"two so that it has {before} again, or give another out"
        )
