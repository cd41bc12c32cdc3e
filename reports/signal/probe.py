"""Linear probes with whole logs held out: ridge in closed form, from normal equations that are summed fold by fold.

Every log is judged by a probe that has not seen it: the logs are dealt to folds as `trainer.splits` holds logs out, and
the penalty of each label is chosen by the other folds alone (each of them held out once more). Sums are float64. A
penalty makes the equations solvable with fewer samples than features. The grid of penalties ends with infinity, which
is to use no feature at all, so features that say nothing cost little.

R2 is the share of the squared error of the training mean that a probe takes away: the mean itself has 0.

`Ground` is what targets are probed on: labels that a probe can be judged by, of some scenes that are dealt to parts by
log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from reports.intervals import Interval, clustered
from reports.signal import labels
from reports.signal.labels import Labels
from shards_schema.errors import DatasetError
from shards_schema.poses import Float64
from trainer.splits import logs_of, split_by_log

Int = NDArray[np.int64]

FOLDS = 5
LEAST_LOGS = 3
"""So that something is left to choose a penalty by."""
PENALTIES = (*10.0 ** np.arange(-5, 2), np.inf)
"""A sample, of features with a mean square of 1; infinity is last."""


def folds_of(dataset: Dataset, tokens: Sequence[str], seed: int) -> Int:
    """Which fold each token is in, int64 [n]; the first fold is what a trainer holds out with the same share and seed.

    Raises:
        DatasetError: fewer than three logs.
    """
    log_of = logs_of(dataset)
    logs = {log_of[token] for token in tokens}
    if len(logs) < LEAST_LOGS:
        raise DatasetError(
            f"{dataset.url}: {len(logs)} logs with scenes to probe; probes hold whole logs out, which takes at least "
            "three of them"
        )
    count, rest, fold = min(FOLDS, len(logs)), tuple(tokens), dict[str, int]()
    for i in range(count - 1):
        rest, held = split_by_log(dataset, 1 / (count - i), seed, tokens=rest)
        fold |= dict.fromkeys(held, i)
    return np.array([fold.get(token, count - 1) for token in tokens], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Errors:
    """Squared errors of held-out samples, summed by log: float64 [logs, labels] each.

    Attributes:
        mean: of the training mean.
        base: of what is given beside the features.
        full: of both.
    """

    mean: Float64
    base: Float64
    full: Float64

    def r2(self, before: Float64 | None = None) -> Interval:
        """`r2` of both, of a label that varies; less that of a probe with the errors `before`, where they are given."""
        found = r2(self.full, self.mean, before)
        assert found is not None, "a label that varies has an error of its mean"
        return found

    def unit(self) -> Errors:
        """In units of the error of the mean, [logs, 1] each: sums of several are sums of R2."""
        return Errors(*(e.sum(1, keepdims=True) / self.mean.sum() for e in (self.mean, self.base, self.full)))


def probe(base: Float64, features: NDArray[np.floating], labels: Float64, folds: Int, logs: Int) -> Errors:
    """Errors of a probe on base and features, beside the base alone.

    Args:
        base: float64 [n, b], centred and of unit size; its penalty is one for all labels. b may be 0.
        features: [n, d], likewise; its penalty is chosen for each label.
        labels: float64 [n, L], without NaN.
        folds: int64 [n].
        logs: int64 [n], 0 .. number of logs - 1.
    """
    n, b = base.shape
    x = np.concatenate((np.ones((n, 1)), base, features), axis=1)
    parts = [np.flatnonzero(folds == k) for k in np.unique(folds)]
    sums = [_Sums.of(x[rows], labels[rows]) for rows in parts]
    total = _Sums.add(sums)
    ridge = _base_penalty(sums, total, b) if b else 0.0
    curves: dict[tuple[int, int], Float64] = {}
    for j, k in combinations(range(len(parts)), 2):
        weights = _solve(_Sums.add([s for i, s in enumerate(sums) if i not in (j, k)]), b, ridge)
        curves[j, k], curves[k, j] = sums[j].errors(weights), sums[k].errors(weights)
    shape = (int(logs.max()) + 1, labels.shape[1])
    out = Errors(np.zeros(shape), np.zeros(shape), np.zeros(shape))
    for k, rows in enumerate(parts):
        rest = _Sums.add([s for i, s in enumerate(sums) if i != k])
        weights = _solve(rest, b, ridge)
        best = np.sum([curves[j, k] for j in range(len(parts)) if j != k], axis=0).argmin(0)
        chosen = weights[best, :, np.arange(labels.shape[1])].T
        mean = rest.xy[0] / rest.xx[0, 0]
        for into, predicted in ((out.mean, mean), (out.base, x[rows] @ weights[-1]), (out.full, x[rows] @ chosen)):
            np.add.at(into, logs[rows], (labels[rows] - predicted) ** 2)
    return out


@dataclass(frozen=True, eq=False)
class _Sums:
    """Normal equations: x'x [p, p], x'y [p, L], the squares of y [L]; x begins with 1."""

    xx: Float64
    xy: Float64
    yy: Float64

    @classmethod
    def of(cls, x: Float64, y: Float64) -> _Sums:
        return cls(x.T @ x, x.T @ y, (y * y).sum(0))

    @classmethod
    def add(cls, parts: Sequence[_Sums]) -> _Sums:
        return cls(*(np.sum([getattr(p, name) for p in parts], axis=0) for name in ("xx", "xy", "yy")))

    def errors(self, weights: Float64) -> Float64:
        """Squared errors [k, L] of weights [k, p, L] on these samples."""
        squares = (weights * (self.xx @ weights)).sum(1)
        return np.asarray(self.yy - 2 * (weights * self.xy).sum(1) + squares)


def _solve(sums: _Sums, b: int, ridge: float) -> Float64:
    """Weights [penalties, p, L]: the mean free, the base under `ridge`, the features under each of `PENALTIES`."""
    n, own = float(sums.xx[0, 0]), slice(b + 1, None)
    given = slice(0, b + 1)
    held = sums.xx[given, given] + np.diag([0.0, *[max(ridge, PENALTIES[0]) * n] * b])
    through = np.linalg.solve(held, np.concatenate((sums.xx[given, own], sums.xy[given]), axis=1))
    d = sums.xx.shape[0] - b - 1
    left = sums.xx[own, own] - sums.xx[own, given] @ through[:, :d]
    aim = sums.xy[own] - sums.xx[own, given] @ through[:, d:]
    values, vectors = np.linalg.eigh((left + left.T) / 2)
    turned = vectors.T @ aim
    out = np.zeros((len(PENALTIES), *sums.xy.shape))
    for i, penalty in enumerate(PENALTIES):
        if np.isfinite(penalty):
            out[i, own] = vectors @ (turned / (np.maximum(values, 0.0)[:, None] + penalty * n))
        out[i, given] = through[:, d:] - through[:, :d] @ out[i, own]
    return out


def _base_penalty(sums: Sequence[_Sums], total: _Sums, b: int) -> float:
    """One penalty for the base, by all folds: that with the least error, each label by its own spread."""
    cut = [_Sums(s.xx[: b + 1, : b + 1], s.xy[: b + 1], s.yy) for s in sums]
    spread = total.yy - total.xy[0] ** 2 / total.xx[0, 0]
    rest = [_Sums.add([s for i, s in enumerate(cut) if i != k]) for k in range(len(cut))]
    errors = np.sum([held.errors(_solve(others, 0, 0.0)) for held, others in zip(cut, rest, strict=True)], axis=0)
    return float(PENALTIES[int((errors[:-1] / np.where(spread > 0, spread, np.inf)).mean(1).argmin())])


def r2(error: Float64, mean: Float64, before: Float64 | None = None) -> Interval | None:
    """R2 of held-out errors [logs, ...] against those of the mean, with its 95 % interval by log.

    Args:
        error: summed by log, and over any further axes here.
        mean: of the mean, likewise.
        before: of another probe: what is given is R2 less its R2.

    Returns:
        None where the mean makes no error: there is nothing to tell.
    """
    by_log, size = (a.reshape(len(a), -1).sum(1) for a in (error, mean))
    if size.sum() <= 0:
        return None
    gained = (size if before is None else before.reshape(len(before), -1).sum(1)) - by_log
    middle = float(gained.sum() / size.sum())
    # a ratio of sums: its error is that of the mean of (gained - middle * size), logs being what is drawn
    rest = (gained - middle * size) / size.mean()
    around = clustered(rest.tolist(), range(len(rest)))
    assert around is not None
    return Interval(middle, around.half)


def standardised(values: Float64) -> Float64:
    """Columns [n, c] centred and of unit size; those that are constant are left out."""
    std = values.std(0)
    kept = std > 1e-9 * np.maximum(1.0, np.abs(values).max(0))
    return np.asarray((values[:, kept] - values[:, kept].mean(0)) / std[kept])


def groups(values: Mapping[str, Float64]) -> list[tuple[NDArray[np.bool_], list[str]]]:
    """Labels that are known of the same scenes, together: those scenes bool [n], and the labels' names."""
    found: dict[bytes, tuple[NDArray[np.bool_], list[str]]] = {}
    for name, label in values.items():
        known = np.asarray(~np.isnan(label).any(axis=1))
        found.setdefault(known.tobytes(), (known, []))[1].append(name)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class Ground:
    """What targets are probed on: n scenes, dealt to folds by log.

    Attributes:
        labels: that vary, and are told by three folds or more; the others are `absent`.
        status: float64 [n, s], standardised.
        folds, logs: int64 [n].
        scenes: label -> of how many scenes it is known.
    """

    labels: Labels
    status: Float64
    folds: Int
    logs: Int
    scenes: Mapping[str, int]

    @classmethod
    def of(cls, dataset: Dataset, tokens: Sequence[str], seed: int) -> Ground:
        """Reads the labels.

        Raises:
            DatasetError: fewer than three logs.
        """
        folds = folds_of(dataset, tokens, seed)
        known = labels.read(dataset, tokens)
        absent, values = dict(known.absent), {}
        for name, label in known.values.items():
            there = ~np.isnan(label).any(1)
            if len(np.unique(folds[there])) < 3:
                absent[name] = "fewer than three held-out parts of the logs tell it"
            elif (label[there] == label[there][0]).all():
                absent[name] = f"it is the same in all of its {int(there.sum())} scenes"
            else:
                values[name] = label
        return cls(
            labels=Labels(known.logs, known.status, values, absent, known.around),
            status=standardised(known.status),
            folds=folds,
            logs=np.unique(known.logs, return_inverse=True)[1].astype(np.int64),
            scenes={name: int((~np.isnan(label).any(1)).sum()) for name, label in values.items()},
        )

    def probed(self, values: NDArray[np.float32], base: Float64 | None = None) -> dict[str, Errors]:
        """Label -> the errors of features [n, d], over a base [n, b] where one is given."""
        out: dict[str, Errors] = {}
        given = np.zeros((len(values), 0)) if base is None else base
        for there, names in groups(self.labels.values):
            label = np.concatenate([self.labels.values[name][there] for name in names], axis=1)
            e = probe(given[there], values[there], label, self.folds[there], self.logs[there])
            rest = ((0, int(self.logs.max()) + 1 - len(e.mean)), (0, 0))  # the last logs may not tell these labels
            every, at = [np.pad(part, rest) for part in (e.mean, e.base, e.full)], 0
            for name in names:
                part = slice(at, at := at + self.labels.values[name].shape[1])
                out[name] = Errors(*(of[:, part] for of in every))
        return out
