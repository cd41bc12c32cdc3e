"""What tells a column that was made wrongly, beside what its probes tell: statistics of channels, and views and times.

- *shards*: the channels of a shard, mean and spread, beside those of the other shards. One of another checkpoint stands
  out in most channels at once.
- *probe*: the label that is told best is told as well in each shard, by a probe that has not seen it.
- *reference*: the channels of the column beside those of a dataset that is known to be good.
- *scale*: latents that are said to be standardised have channels of about one size.
- *slots*: what a camera sees now is told best by the entry of the target that is said to be of that camera, now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from pipeline.stores import statistics
from pipeline.stores.threads import map_ahead
from pipeline.stores.volume import Volume
from reports.signal.features import Features
from reports.signal.labels import Labels
from reports.signal.probe import FOLDS, Int, probe, r2, standardised
from shards_schema.poses import Float64
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics, measured

Verdict = Literal["good", "bad", "not told"]

APART = 6.0
"""Usual differences between shards (their median) that half of the channels must be off by, to be told."""
LEAST_SHARDS = 4
"""Of which the usual difference is learnt."""
_OFF = 2.5
"""Standard errors over shards that half of the channels must be off a reference by, to be told."""
_LEAST = 1e-3
"""Least difference between shards that is believed."""
_TOLD = 0.2
"""R2 of a probe that can fail."""
_SURE = 1.5
"""Halves of a 95 % interval that an entry must be better by, since each is held against all others."""
_TOO_FEW = "too few to say what is usual"
_MIXED = "Usual cause: another checkpoint or config in some run"
_THREADS = 8
_SIZES = (0.4, 2.5)
"""Of the median channel of standardised latents."""


@dataclass(frozen=True)
class Check:
    """One of the checks on one target: what came of it, in a sentence."""

    kind: str
    verdict: Verdict
    text: str


def shard_of(dataset: Dataset) -> dict[str, int]:
    """Token -> shard of every planned sample."""
    plan = dataset.plan.table
    return dict(zip(plan["token"].to_pylist(), plan["shard"].to_pylist(), strict=True))


def of_shards(dataset: Dataset, column: str) -> dict[str, dict[int, ChannelStatistics]]:
    """Target -> shard -> its statistics, of the committed shards and the targets with a channel axis.

    Raises:
        MissingFileError, DatasetError: a file is missing or damaged.
    """
    if not measured(dataset.columns[column].targets):
        return {}
    shards = shard_of(dataset)
    numbers = sorted({shards[token] for token in dataset.tokens(column)})
    volume, found = Volume(dataset.url), dict[str, dict[int, ChannelStatistics]]()
    read = map_ahead(lambda number: statistics.read_shard(volume, column, number), numbers, threads=_THREADS)
    for number, part in zip(numbers, read, strict=True):
        for target, told in part.items():
            found.setdefault(target, {})[number] = told
    return found


def shards(by_number: Mapping[int, ChannelStatistics]) -> Check:
    """Whether a shard stands out among the others."""
    numbers, parts = list(by_number), list(by_number.values())
    if len(parts) < LEAST_SHARDS:
        return Check("shards", "not told", f"{len(parts)} shards: {_TOO_FEW}")
    rows = _described(parts, parts)
    off = np.median(np.abs(rows - np.median(rows, axis=0)) / _usual(rows, _LEAST), axis=1)
    return _among_shards(
        "shards",
        f"no shard stands out (the furthest by {off.max():.1f} usual differences)",
        "shards that stand out, in usual differences of half of the channels: ",
        [f"{number} (by {away:.0f})" for number, away in zip(numbers, off, strict=True) if away > APART],
    )


def residuals(name: str, features: NDArray[np.float32], label: Float64, shards: Int) -> Check:
    """Whether a probe that has not seen a shard fails there alone.

    Args:
        name: of the label, that which the target tells best.
        features: float32 [n, d].
        label: float64 [n, c].
        shards: int64 [n].
    """
    numbers, place = np.unique(shards, return_inverse=True)
    if len(numbers) < LEAST_SHARDS:
        return Check("probe", "not told", f"{len(numbers)} shards: {_TOO_FEW}")
    errors = probe(np.zeros((len(label), 0)), features, label, place % FOLDS, place)
    scenes = np.bincount(place)
    each = errors.full.sum(1) / scenes / (errors.mean.sum() / scenes.sum())
    if np.median(each) > 1 - _TOLD:
        return Check("probe", "not told", f"no label is told well enough; {name} with R2 {1 - np.median(each):.2f}")
    failed = errors.full.sum(1) > errors.mean.sum(1)  # else the label varies more there, and is told all the same
    worst = (each - np.median(each) > APART * _usual(each, 0.02)) & (each > 0.5) & failed
    told = f"error of {name} in units of its variance: {np.median(each):.2f} in the median shard, "
    return _among_shards(
        "probe",
        f"{told}{each.max():.2f} in the worst",
        told,
        [f"{e:.2f} in shard {number}" for number, e, bad in zip(numbers, each, worst, strict=True) if bad],
    )


def _among_shards(kind: str, good: str, bad: str, worst: Sequence[str]) -> Check:
    named = ", ".join(worst[:8]) + ", ..." * (len(worst) > 8)
    return Check(kind, "bad", f"{bad}{named}. {_MIXED}") if worst else Check(kind, "good", good)


def reference(parts: Sequence[ChannelStatistics], good: Sequence[ChannelStatistics]) -> Check:
    """Whether a column's channels are those of one that is known to be good, as far as shards differ anyway."""
    if not good or len(good[0].mean) != len(parts[0].mean):
        return Check("reference", "not told", "the reference has no such target, or one of other channels")
    if max(len(good), len(parts)) < LEAST_SHARDS:
        return Check("reference", "not told", f"shards: {_TOO_FEW}")
    ours, theirs = _described(parts, good), _described(good, good)
    usual = np.maximum(max((ours, theirs), key=len).std(axis=0, ddof=1), _LEAST)
    error = usual * np.sqrt(1 / len(ours) + 1 / len(theirs))
    off = float(np.median(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / error))
    told = f"half of the channels are off the reference by {off:.1f} standard errors or more"
    if off <= _OFF:
        return Check("reference", "good", told)
    causes = "Usual causes: another layer or checkpoint, colours in the other order, no normalisation, other images"
    return Check("reference", "bad", f"{told}. {causes}")


def scale(parts: Sequence[ChannelStatistics]) -> Check:
    """Whether latents that are said to be standardised are."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merged(part)
    size, aside = float(np.median(whole.std)), float(np.median(np.abs(whole.mean) / np.maximum(whole.std, 1e-30)))
    told = f"the median channel has a spread of {size:.2f}, and a mean of {aside:.2f} of its spread"
    if _SIZES[0] <= size <= _SIZES[1] and aside <= 1:
        return Check("scale", "good", told)
    return Check("scale", "bad", f"{told}. Usual cause: the statistics of another checkpoint, or none")


def _described(parts: Sequence[ChannelStatistics], unit: Sequence[ChannelStatistics]) -> Float64:
    """float64 [shards, 2 C]: means in the median spread of `unit`'s shards, and the logarithm of spreads."""
    spread = np.median([p.std for p in unit], axis=0)
    floor = 1e-6 * max(float(spread.max()), 1e-30)
    stds = np.array([p.std for p in parts])
    means = np.array([p.mean for p in parts]) / np.maximum(spread, floor)
    return np.concatenate((means, np.log(np.maximum(stds, floor))), axis=1)


def _usual(rows: Float64, least: float) -> Float64:
    """How far shards are apart, a robust standard deviation of each number; no less than `least`."""
    away = 1.4826 * np.median(np.abs(rows - np.median(rows, axis=0)), axis=0)
    return np.asarray(np.maximum(away, least))


@dataclass(frozen=True)
class Axis:
    """The axis of a target whose entries are of a camera and a time: its name, and (step, channel) of each entry.

    Steps are frames from now; an entry of several frames has the last.
    """

    dim: str
    entries: tuple[tuple[int, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """``CAM_F0``, or ``CAM_F0 +4`` where steps differ."""
        plain = {step for step, _ in self.entries} == {0}
        return tuple(channel if plain else f"{channel} {step:+d}" for step, channel in self.entries)


def axis_of(spec: TargetSpec, provenance: Mapping[str, Any]) -> Axis | None:
    """By what the column says of itself; None where it has no such axis, or one entry alone."""
    size, first = (spec.shape[0], spec.dims[0]) if spec.shape else (None, "")
    views, clip = provenance.get("views"), provenance.get("layout")
    entries: list[tuple[int, str]] = []
    if first == "view" and isinstance(views, list):
        entries = [(int(step), view) for step in provenance.get("window", [0]) for view in views]
    elif first == "time" and isinstance(clip, Mapping) and size is not None and size > 1:
        steps = clip["steps"]  # latent 0 sees the first frame, each other one as many as the next
        each = (len(steps) - 1) // (size - 1)
        entries = [(int(steps[i * each]), provenance["channel"]) for i in range(size)]
    return Axis(first, tuple(entries)) if len(entries) == size and len(entries) > 1 else None


def slots(axis: Axis, features: Features, labels: Labels, folds: Int, logs: Int) -> list[Check]:
    """For each camera: is what it sees now told best by its own entry of now."""
    out = []
    for own, (step, camera) in enumerate(axis.entries):
        if step != 0 or camera not in labels.around:
            continue
        known = ~np.isnan(labels.around[camera]).any(1)
        target = standardised(labels.around[camera][known])
        if not target.shape[1] or len(np.unique(folds[known])) < 3:
            continue
        blank = np.zeros((int(known.sum()), 0))
        errors = [probe(blank, features.slots[n][known], target, folds[known], logs[known]) for n in axis.names]
        out.append(_slot(axis, own, [(e.full, e.mean) for e in errors]))
    return out


def _slot(axis: Axis, own: int, errors: Sequence[tuple[Float64, Float64]]) -> Check:
    name, (full, mean) = axis.names[own], errors[own]
    alone = r2(full, mean)
    assert alone is not None
    others = {axis.names[i]: r2(e, mean, full) for i, (e, _) in enumerate(errors) if i != own}
    best, gain = max(others.items(), key=lambda item: -1.0 if item[1] is None else item[1].middle)
    assert gain is not None
    told = f"agents where {name} looks: R2 {alone.middle:.3f} of its own entry, {gain.middle:+.3f} of that of {best}"
    kind = axis.dim
    if gain.middle > _SURE * gain.half and alone.middle + gain.middle > 0:
        return Check(kind, "bad", f"{told}. Usual cause: {'views' if kind == 'view' else 'frames'} in another order")
    if -gain.middle > gain.half and alone.middle > 0:
        return Check(kind, "good", told)
    return Check(kind, "not told", f"{told}: no difference can be told")
