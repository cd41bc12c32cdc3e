"""Every target of a dataset's columns, probed for every label that it has, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from reports.intervals import Interval
from reports.signal import checks, features
from reports.signal.checks import Check
from reports.signal.labels import KNOWN, LATER
from reports.signal.probe import Errors, Ground, Int
from shards_schema import layout
from shards_schema.errors import ConfigError, DatasetError
from shards_schema.statistics import ChannelStatistics
from trainer.splits import spread

LEAST = 0.01
"""Of R2: what is less is not called something."""
RANDOM, NOW = "random weights", "frames of now"
"""What a target is held against, where the dataset has it: a target of the same name in another column of its kind."""


@dataclass(frozen=True)
class Told:
    """What a target tells of a label, of held-out logs.

    Attributes:
        scenes: of which the label is known.
        alone: R2 of the target.
        shuffled: the same, with the features of another scene.
        status: R2 of ego status.
        adds: R2 of status and target less that of status; None for a label that stands in status.
        shuffled_adds: the same, with the features of another scene.
        over: `RANDOM`, `NOW` -> `alone` less the same of that target; `NOW` of what comes later, less the same gain in
            its like of now (`LATER`).
    """

    scenes: int
    alone: Interval
    shuffled: float
    status: float
    adds: Interval | None
    shuffled_adds: float
    over: Mapping[str, Interval]

    @property
    def knows(self) -> bool:
        """Whether the target alone tells something."""
        return something(self.alone, self.shuffled)

    @property
    def pays(self) -> bool:
        """Whether it tells more than ego status does."""
        return self.adds is not None and something(self.adds, self.shuffled_adds)


def something(found: Interval, least: float = LEAST) -> bool:
    """Whether an R2 is more than nothing, and than `least`."""
    return found.middle >= max(LEAST, least) and found.excludes_zero


@dataclass(frozen=True)
class Target:
    """A target of a column: how its features were made, what they tell by label, and what the checks say.

    `against` names the targets that it is held against, by `RANDOM` and `NOW`.
    """

    name: str
    how: str
    random_weights: bool
    against: Mapping[str, str]
    told: Mapping[str, Told]
    checks: Sequence[Check]


@dataclass(frozen=True)
class Signal:
    """What was measured.

    Attributes:
        url: of the dataset.
        notices: of the dataset.
        scenes, logs, folds: that were probed.
        written: scenes that every column has; `scenes` are spread over them.
        targets: in order.
        absent: label -> why it was not probed.
    """

    url: str
    notices: Sequence[str]
    scenes: int
    written: int
    logs: int
    folds: int
    targets: Sequence[Target]
    absent: Mapping[str, str]


def measure(
    dataset: Dataset,
    columns: Sequence[str] | None,
    *,
    samples: int,
    dims: int,
    seed: int,
    reference: Dataset | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Signal:
    """Probe them.

    Args:
        dataset: open with all columns.
        columns: to probe; None is every one that holds features.
        samples: at most so many scenes, spread over the dataset.
        dims: numbers of a target that are probed.
        seed: of the folds and of the shuffle.
        reference: a dataset that is known to be good, with columns of the same names.
        say: is told what is done next.

    Raises:
        ConfigError: a column that is not there, or that has no features.
        DatasetError: no column with features, no scene that all of them have, or fewer than three logs.
    """
    specs = {c: features.probed(dataset, c) for c in dataset.columns}
    if unknown := [c for c in columns or () if not specs.get(c)]:
        raise ConfigError(
            f"columns: {dataset.url} has no features in {', '.join(unknown)}; it has them in "
            f"{', '.join(c for c in specs if specs[c]) or 'no column'}"
        )
    chosen = [c for c in specs if specs[c] and (columns is None or c in columns)]
    if not chosen or layout.SAMPLES not in dataset.columns:
        raise DatasetError(f"{dataset.url}: probes need samples and a column with features of a fixed shape")
    written = dataset.tokens(layout.SAMPLES, *chosen)
    if not written:
        raise DatasetError(f"{dataset.url}: no scene is written in all of samples, {', '.join(chosen)}; finish the run")
    tokens = spread(written, samples)
    say(f"labels of {len(tokens)} scenes")
    ground = Ground.of(dataset, tokens, seed)
    order, shards = np.random.default_rng(seed).permutation(len(tokens)), checks.shard_of(dataset)
    errors: dict[str, Sequence[dict[str, Errors]]] = {}
    made: dict[str, tuple[str, list[Check]]] = {}
    for column in chosen:
        says = dataset.columns[column].provenance
        parts = checks.of_shards(dataset, column)
        good = {} if reference is None or column not in reference.columns else checks.of_shards(reference, column)
        for spec in specs[column]:
            name = f"{column}/{spec.name}"
            say(name)
            axis = checks.axis_of(spec, says)
            value = features.reader(dataset, column, spec.name)
            found = features.read(value, spec, tokens, dims, () if axis is None else axis.names)
            alone, *rest = (
                ground.probed(x, base) for base in (None, ground.status) for x in (found.values, found.values[order])
            )
            errors[name] = alone, *rest
            standardised = spec.name == "latent" and says.get("kind") == "cosmos"
            told = _statistics(parts.get(spec.name), good.get(spec.name, {}), reference is not None, standardised)
            told += _residuals(ground, alone, found.values, np.array([shards[token] for token in tokens]))
            if axis is not None:
                told += checks.slots(axis, found, ground.labels, ground.folds, ground.logs)
            made[name] = found.how, told
    targets = []
    for name, (how, told) in made.items():
        column, _, target = name.partition("/")
        against = _against(dataset, column, target, chosen)
        others = {why: errors[other][0] for why, other in against.items()}
        by_label = {label: _told(ground.scenes[label], label, errors[name], others) for label in ground.labels.values}
        targets.append(Target(name, how, dataset.columns[column].random_weights, against, by_label, told))
    return Signal(
        url=dataset.url,
        notices=dataset.manifest.notices,
        scenes=len(tokens),
        written=len(written),
        logs=int(ground.logs.max()) + 1,
        folds=len(np.unique(ground.folds)),
        targets=targets,
        absent=ground.labels.absent,
    )


def _residuals(ground: Ground, alone: Mapping[str, Errors], values: NDArray[np.float32], shards: Int) -> list[Check]:
    """The check of shards by the label that is told best."""
    left = {name: float(e.full.sum() / e.mean.sum()) for name, e in alone.items()}
    if not left:
        return []
    best = min(left, key=left.__getitem__)
    label = ground.labels.values[best]
    there = ~np.isnan(label).any(1)
    return [checks.residuals(best, values[there], label[there], shards[there])]


def _told(
    scenes: int, label: str, probed: Sequence[Mapping[str, Errors]], others: Mapping[str, Mapping[str, Errors]]
) -> Told:
    """Of the errors by label of: alone, shuffled, over status, shuffled over status; and of other targets alone."""
    alone, shuffled, over, over_shuffled = (errors[label] for errors in probed)
    status = replace(over, full=over.base).r2()
    before = over.base if status.middle > 0 else over.mean  # who would use what is worse than nothing
    beside = {why: _over(label, why, probed[0], other) for why, other in others.items()}
    return Told(
        scenes=scenes,
        alone=alone.r2(),
        shuffled=shuffled.r2().middle,
        status=status.middle,
        adds=None if label in KNOWN else over.r2(before),
        shuffled_adds=over_shuffled.r2(before).middle,
        over={why: found for why, found in beside.items() if found is not None},
    )


def _over(label: str, why: str, own: Mapping[str, Errors], other: Mapping[str, Errors]) -> Interval | None:
    """How much more R2 a target has than another; None where a label is not what the two are compared in.

    Against frames of now it is the gain in what comes later, less the gain in its like of now: a target that has more
    entries of what it sees now, or better ones, gains as much in both.
    """
    if why == RANDOM:
        return own[label].r2(other[label].full)
    if label not in LATER or LATER[label] not in own:
        return None
    later, now = ([of[name].unit() for of in (own, other)] for name in (label, LATER[label]))
    return replace(later[0], full=later[0].full + now[1].full).r2(later[1].full + now[0].full)


def _statistics(
    parts: Mapping[int, ChannelStatistics] | None,
    good: Mapping[int, ChannelStatistics],
    compared: bool,
    standardised: bool,
) -> list[Check]:
    """The checks of a target's channels, where it has statistics."""
    if parts is None:
        return []
    every = list(parts.values())
    out = [checks.shards(parts)]
    if standardised:
        out.append(checks.scale(every))
    if compared:
        out.append(checks.reference(every, list(good.values())))
    return out


def _against(dataset: Dataset, column: str, target: str, chosen: Sequence[str]) -> dict[str, str]:
    """What a target is held against, `RANDOM` and `NOW`: the same target of a column of the same kind that has random
    weights; and, where its own frames are all after now, of one whose frames are not. Views and times may be others.
    """

    def described(of: str) -> tuple[object, ...]:
        spec = dataset.specs(of).get(target)
        shape = spec and (spec.shape if "window" not in dataset.columns[of].provenance else spec.shape[1:])
        return spec and spec.dims, shape, dataset.columns[of].provenance.get("kind")

    def ahead(of: str) -> bool:
        steps = dataset.columns[of].provenance.get("window")
        return isinstance(steps, list) and bool(steps) and all(isinstance(step, int) and step > 0 for step in steps)

    random = {c for c in chosen if dataset.columns[c].random_weights}
    alike = [c for c in sorted(chosen) if c != column and described(c) == described(column)]
    found = {}
    if column not in random:
        found[RANDOM] = next((c for c in alike if c in random and ahead(c) == ahead(column)), None)
    if ahead(column):
        found[NOW] = next((c for c in alike if (c in random) == (column in random) and not ahead(c)), None)
    return {why: f"{other}/{target}" for why, other in found.items() if other is not None}
