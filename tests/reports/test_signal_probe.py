"""Probes held against ridge regressions that are written out, and against what is known of the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reports.signal import probe
from reports.signal.labels import Labels
from reports.signal.probe import PENALTIES, Errors, Ground, r2

Float64 = probe.Float64


def drawn(n: int, d: int, seed: int = 0) -> tuple[Float64, Float64, Float64, probe.Int, probe.Int]:
    """base [n, 3], features [n, d], labels [n, 2], folds, logs; the second label is noise."""
    rng = np.random.default_rng(seed)
    base, features = rng.normal(size=(n, 3)), rng.normal(size=(n, d))
    noise = rng.normal(size=(n, 2))
    labels = np.stack((3 + base[:, 0] + features[:, 0] + 0.3 * noise[:, 0], noise[:, 1]), axis=1)
    logs = np.arange(n) * 15 // n
    return base, features, labels, (logs % 5).astype(np.int64), logs.astype(np.int64)


def by_hand(x: Float64, y: Float64, penalties: Float64) -> Float64:
    """Ridge weights [p, L] of one penalty a column, of rows that are stacked under the samples."""
    below = np.diag(np.sqrt(penalties * len(x)))
    aim = np.concatenate((y, np.zeros((len(below), y.shape[1]))))
    found: Float64 = np.linalg.lstsq(np.concatenate((x, below)), aim)[0]
    return found


@pytest.mark.parametrize(("n", "d"), [(200, 6), (60, 100)])
def test_errors_are_those_of_a_ridge_that_is_written_out(n: int, d: int) -> None:
    """Each held-out fold, each label with the penalty that the others choose; also with fewer samples than features."""
    base, features, labels, folds, logs = drawn(n, d)
    found = probe.probe(base[:, :0], features, labels, folds, logs)
    x = np.concatenate((np.ones((n, 1)), features), axis=1)

    def errors(train: Float64, held: Float64, penalty: float) -> Float64:
        if math.isinf(penalty):
            return np.asarray((labels[held] - labels[train].mean(0)) ** 2)
        weights = by_hand(x[train], labels[train], np.array([0.0, *[penalty] * d]))
        return np.asarray((labels[held] - x[held] @ weights) ** 2)

    for k in range(5):
        inner = np.zeros((len(PENALTIES), 2))
        for j in set(range(5)) - {k}:
            train = np.flatnonzero((folds != k) & (folds != j))
            inner += [errors(train, np.flatnonzero(folds == j), p).sum(0) for p in PENALTIES]
        for label, best in enumerate(inner.argmin(0)):
            rows = np.flatnonzero(folds == k)
            expected = errors(np.flatnonzero(folds != k), rows, PENALTIES[best])[:, label]
            for log in np.unique(logs[rows]):
                assert found.full[log, label] == pytest.approx(expected[logs[rows] == log].sum(), rel=1e-6)
    mean = [((labels[folds == k] - labels[folds != k].mean(0)) ** 2).sum(0) for k in range(5)]
    assert found.mean.sum(0) == pytest.approx(np.sum(mean, axis=0))
    assert found.base == pytest.approx(found.mean)  # nothing is given beside the features


def test_what_is_added_to_a_base() -> None:
    base, features, labels, folds, logs = drawn(600, 10)
    errors = probe.probe(base, features, labels, folds, logs)
    one = slice(0, 1)
    alone = r2(errors.base[:, one], errors.mean[:, one])
    added = r2(errors.full[:, one], errors.mean[:, one], errors.base[:, one])
    assert alone is not None
    assert added is not None
    assert alone.middle == pytest.approx(1 / 2.09, abs=0.08)  # of 1 + 1 + 0.3^2
    assert added.middle == pytest.approx(1 / 2.09, abs=0.08)
    assert added.excludes_zero
    noise = slice(1, 2)
    nothing = r2(errors.full[:, noise], errors.mean[:, noise], errors.base[:, noise])
    assert nothing is not None
    assert not (nothing.middle > 0 and nothing.excludes_zero)


def test_what_the_base_says_already_is_not_added() -> None:
    base, _, labels, folds, logs = drawn(600, 1)
    again = base @ np.random.default_rng(1).normal(size=(3, 3))
    errors = probe.probe(base, again, labels, folds, logs)
    added = r2(errors.full[:, :1], errors.mean[:, :1], errors.base[:, :1])
    assert added is not None
    assert abs(added.middle) < 1e-3


def test_r2_over_nothing_is_no_number_and_its_interval_is_by_log() -> None:
    nothing = np.zeros((4, 1))
    assert r2(nothing, nothing) is None
    mean = np.array([[1.0], [2.0], [3.0], [4.0]])
    half = r2(mean / 2, mean)
    assert half is not None
    assert half == pytest.approx((0.5, 0.0))  # every log says the same
    one = r2(mean[:1] / 2, mean[:1])
    assert one is not None
    assert one.half == math.inf  # one log says nothing of others
    two = r2(np.array([[0.0], [3.0]]), np.array([[3.0], [3.0]]))
    assert two is not None
    assert two.middle == pytest.approx(0.5)
    assert two.half == pytest.approx(12.706 * 0.5, rel=1e-3)  # Student's t of two values, 0 and 1


def test_labels_known_of_the_same_scenes_go_together() -> None:
    gone = np.array([[1.0], [math.nan], [3.0]])
    values = {"a": np.ones((3, 1)), "b": gone, "c": np.ones((3, 2)), "d": gone + 1}
    found = [(there.tolist(), names) for there, names in probe.groups(values)]
    assert found == [([True] * 3, ["a", "c"]), ([True, False, True], ["b", "d"])]


def test_errors_of_several_columns_are_one_r2() -> None:
    errors = Errors(np.array([[1.0, 3.0], [1.0, 3.0]]), np.zeros((2, 2)), np.array([[0.5, 1.5], [0.5, 1.5]]))
    found = r2(errors.full, errors.mean)
    assert found is not None
    assert found.middle == pytest.approx(0.5)


def test_labels_that_the_last_logs_do_not_tell_have_errors_of_all_logs() -> None:
    """So that labels can be held against each other, log by log."""
    base, features, told, folds, logs = drawn(150, 4)
    gone = np.where(logs[:, None] > 11, math.nan, told[:, :1])
    labels = Labels(tuple(map(str, logs)), base, {"all": told[:, :1], "some": gone}, {}, {})
    ground = Ground(labels, base, folds, logs, {"all": 150, "some": 120})
    errors = ground.probed(features.astype(np.float32))
    assert errors["some"].full.shape == errors["all"].full.shape == (15, 1)
    assert not errors["some"].full[12:].any()
    assert errors["some"].full[:12].all()
    assert errors["some"].unit().r2() == pytest.approx(errors["some"].r2())
