"""Which samples train and which are held out: whole logs, so that no scene of training overlaps one of evaluation.

Logs stand in the order of the hash of (seed, log), and the first of them are held out: the choice depends on nothing
but which logs there are. When a dataset grows, another log may come to stand among the first; what goes on from a
policy therefore keeps that policy's held-out logs (`split_like`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from typing import TypeVar

from pipeline.reading.reader import Dataset
from shards_schema.errors import ConfigError, DatasetError
from trainer import distributed
from trainer.data import DataConfig

Item = TypeVar("Item")
Split = tuple[tuple[str, ...], tuple[str, ...]]
"""Tokens to train on, and tokens held out, each in plan order."""


def logs_of(dataset: Dataset) -> dict[str, str]:
    """Token -> log of every planned sample, in plan order."""
    table = dataset.plan.table
    return dict(zip(table["token"].to_pylist(), table["log"].to_pylist(), strict=True))


def split_by_log(
    dataset: Dataset, held_out: float = 0.2, seed: int = 0, *, tokens: Sequence[str] | None = None
) -> Split:
    """Whole logs to train on and whole logs held out; what `jobs.sft` does with `samples.held_out`.

    Args:
        dataset: open with the columns that are wanted.
        held_out: share of the logs; at least one is held out, and at least one is not.
        seed: of the choice.
        tokens: to split, in plan order; None is all that are written in every open column.

    Raises:
        DatasetError: fewer than two logs.
    """
    chosen = dataset.tokens(*dataset.columns) if tokens is None else tokens
    log_of = logs_of(dataset)
    logs = sorted({log_of[t] for t in chosen}, key=lambda log: hashlib.sha256(f"{seed}/{log}".encode()).hexdigest())
    if len(logs) < 2:
        raise DatasetError(
            f"{dataset.url}: {len(logs)} logs, of {len({*log_of.values()})} that are planned, have a scene that can be "
            "used; holding whole logs out needs at least two"
        )
    return _by_log(chosen, log_of, set(logs[: min(max(1, round(held_out * len(logs))), len(logs) - 1)]))


def split(dataset: Dataset, tokens: Sequence[str], config: DataConfig) -> Split:
    """The split of a first run over these tokens: see `split_by_log`, which raises what this raises."""
    return split_by_log(dataset, config.held_out, config.split_seed, tokens=tokens)


def split_like(dataset: Dataset, tokens: Sequence[str], held_before: Set[str], config: DataConfig) -> Split:
    """The split of a run that goes on from another's policy: the logs that it held out stay held out.

    Args:
        dataset: open with `samples`.
        tokens: that can be used, in plan order.
        held_before: tokens that the other run held out; where the dataset has none of their logs, `split` decides.
        config: of `split`.

    Raises:
        DatasetError: see `split`.
    """
    log_of = logs_of(dataset)
    logs = {log_of[t] for t in held_before & log_of.keys()}
    if not logs & {log_of[t] for t in tokens}:
        return split(dataset, tokens, config)
    return _by_log(tokens, log_of, logs)


def _by_log(tokens: Sequence[str], log_of: dict[str, str], held: Set[str]) -> Split:
    return tuple(t for t in tokens if log_of[t] not in held), tuple(t for t in tokens if log_of[t] in held)


def spread(tokens: tuple[Item, ...], limit: int | None) -> tuple[Item, ...]:
    """At most `limit` of the tokens (or units), evenly spread over them; None: all."""
    if limit is None or limit >= len(tokens):
        return tokens
    return tuple(tokens[i * len(tokens) // limit] for i in range(limit))


def refuse_too_few(data: str, tokens: Sequence[str], step_samples: int) -> None:
    """Whether an epoch has a step in it.

    Args:
        data: where the dataset is, for the message.
        tokens: to train on.
        step_samples: of a step, over all ranks.

    Raises:
        ConfigError: fewer samples than a step takes: only whole steps are made.
    """
    if len(tokens) < step_samples:
        raise ConfigError(
            f"{data}: {len(tokens)} training samples, and a step takes {step_samples} (stream.batch_size x "
            f"optimiser.accumulate x {distributed.world_size()} ranks): there is no whole one"
        )
