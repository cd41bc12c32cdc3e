"""Every target of a dataset's columns, probed for every label that it has, beside the controls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from reports.intervals import Interval
from reports.signal import checks, features, labels, probe
from reports.signal.checks import Check
from reports.signal.labels import KNOWN, Labels
from reports.signal.probe import Errors, Float64, Int
from shards_schema import layout
from shards_schema.errors import ConfigError, DatasetError
from shards_schema.statistics import ChannelStatistics
from trainer.splits import spread

_Probed = dict[str, tuple[int, list[Errors]]]

LEAST = 0.01
"""Of R2: what is less is not called something."""


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
        over_random: `alone` less the same of the target's twin with random weights; None without one.
    """

    scenes: int
    alone: Interval
    shuffled: float
    status: float
    adds: Interval | None
    shuffled_adds: float
    over_random: Interval | None = None

    @property
    def knows(self) -> bool:
        """Whether the target alone tells something."""
        return _something(self.alone, self.shuffled)

    @property
    def pays(self) -> bool:
        """Whether it tells more than ego status does."""
        return self.adds is not None and _something(self.adds, self.shuffled_adds)


def _something(found: Interval, shuffled: float) -> bool:
    return found.middle >= max(LEAST, shuffled) and found.excludes_zero


@dataclass(frozen=True)
class Target:
    """A target of a column: how its features were made, what they tell by label, and what the checks say."""

    name: str
    how: str
    random_weights: bool
    twin: str | None
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


@dataclass(frozen=True, eq=False)
class _Ground:
    """What all targets are probed on; `groups` are labels that are known of the same scenes, `order` shuffles."""

    labels: Labels
    status: Float64
    folds: Int
    logs: Int
    shards: Int
    order: Int
    groups: Sequence[tuple[NDArray[np.bool_], Sequence[str]]]
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
    folds = probe.folds_of(dataset, tokens, seed)
    say(f"labels of {len(tokens)} scenes")
    plan = dataset.plan.table
    shard_of = dict(zip(plan["token"].to_pylist(), plan["shard"].to_pylist(), strict=True))
    ground = _ground(labels.read(dataset, tokens), folds, np.array([shard_of[token] for token in tokens]), seed)
    errors: dict[str, _Probed] = {}
    made: dict[str, tuple[str, str, list[Check]]] = {}
    for column in chosen:
        shards = checks.of_shards(dataset, column)
        good = {} if reference is None or column not in reference.columns else checks.of_shards(reference, column)
        for spec in specs[column]:
            name = f"{column}/{spec.name}"
            say(name)
            axis = checks.axis_of(spec, dataset.columns[column].provenance)
            found = features.read(dataset, column, spec, tokens, dims, () if axis is None else axis.names)
            errors[name] = _probed(ground, found.values)
            standardised = spec.name == "latent" and dataset.columns[column].provenance.get("kind") == "cosmos"
            told = _statistics(shards.get(spec.name), good.get(spec.name, {}), reference is not None, standardised)
            told += _residuals(ground, errors[name], found.values)
            if axis is not None:
                told += checks.slots(axis, found, ground.labels, ground.folds, ground.logs)
            made[name] = column, found.how, told
    random = {c for c in chosen if dataset.columns[c].random_weights}
    targets = []
    for name, (column, how, told) in made.items():
        twin = None if column in random else _twin(dataset, column, name.partition("/")[2], random)
        by_label = _told(errors[name], None if twin is None else errors[twin])
        targets.append(Target(name, how, column in random, twin, by_label, told))
    return Signal(
        url=dataset.url,
        notices=dataset.manifest.notices,
        scenes=len(tokens),
        written=len(written),
        logs=int(ground.logs.max()) + 1,
        folds=len(np.unique(folds)),
        targets=targets,
        absent=ground.absent,
    )


def _ground(known: Labels, folds: Int, shards: Int, seed: int) -> _Ground:
    absent, values = dict(known.absent), {}
    for name, label in known.values.items():
        there = ~np.isnan(label).any(1)
        if len(np.unique(folds[there])) < 3:
            absent[name] = "fewer than three held-out parts of the logs tell it"
        elif (label[there] == label[there][0]).all():
            absent[name] = f"it is the same in all of its {int(there.sum())} scenes"
        else:
            values[name] = label
    return _Ground(
        labels=replace(known, values=values),
        status=probe.standardised(known.status),
        folds=folds,
        logs=np.unique(known.logs, return_inverse=True)[1].astype(np.int64),
        shards=shards,
        order=np.random.default_rng(seed).permutation(len(folds)),
        groups=probe.groups(values),
        absent=absent,
    )


def _probed(ground: _Ground, values: NDArray[np.float32]) -> _Probed:
    """Label -> its scenes, and the errors of: alone, shuffled, over status, shuffled over status."""
    out: _Probed = {}
    for there, names in ground.groups:
        label = np.concatenate([ground.labels.values[name][there] for name in names], axis=1)
        blank, status = np.zeros((int(there.sum()), 0)), ground.status[there]
        own, other = values[there], values[ground.order][there]
        four = [
            probe.probe(base, x, label, ground.folds[there], ground.logs[there])
            for base, x in ((blank, own), (blank, other), (status, own), (status, other))
        ]
        at = 0
        for name in names:
            part = slice(at, at := at + ground.labels.values[name].shape[1])
            out[name] = int(there.sum()), [Errors(e.mean[:, part], e.base[:, part], e.full[:, part]) for e in four]
    return out


def _residuals(ground: _Ground, probed: _Probed, values: NDArray[np.float32]) -> list[Check]:
    """The check of shards by the label that is told best."""
    left = {name: float(alone.full.sum() / alone.mean.sum()) for name, (_, (alone, *_)) in probed.items()}
    if not left:
        return []
    best = min(left, key=left.__getitem__)
    label = ground.labels.values[best]
    there = ~np.isnan(label).any(1)
    return [checks.residuals(best, values[there], label[there], ground.shards[there])]


def _told(probed: _Probed, twin: _Probed | None) -> dict[str, Told]:
    out = {}
    for name, (scenes, (alone, shuffled, over, over_shuffled)) in probed.items():
        own, status = probe.r2(alone.full, alone.mean), probe.r2(over.base, over.mean)
        assert own is not None, "a label that varies has an error of its mean"
        assert status is not None
        before = over.base if status.middle > 0 else over.mean  # who would use what is worse than nothing
        out[name] = Told(
            scenes=scenes,
            alone=own,
            shuffled=_middle(probe.r2(shuffled.full, shuffled.mean)),
            status=status.middle,
            adds=None if name in KNOWN else probe.r2(over.full, over.mean, before),
            shuffled_adds=_middle(probe.r2(over_shuffled.full, over.mean, before)),
            over_random=None if twin is None else probe.r2(alone.full, alone.mean, twin[name][1][0].full),
        )
    return out


def _middle(found: Interval | None) -> float:
    assert found is not None
    return found.middle


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


def _twin(dataset: Dataset, column: str, target: str, random: Collection[str]) -> str | None:
    """The same target of a column of the same kind with random weights."""

    def described(of: str) -> tuple[object, object]:
        spec = dataset.specs(of).get(target)
        return spec and spec.shape, dataset.columns[of].provenance.get("kind")

    return next((f"{c}/{target}" for c in sorted(random) if described(c) == described(column)), None)
