"""The soak's criterion on series of which the answer is known, and a few seconds of the real thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.chaos import results, soak
from tests.chaos.soak import Sample, fit, is_flat, verdicts


def series(growth_mb_per_hour: float, *, leak: float = 0.0, noise: float = 3.0, minutes: int = 30) -> list[Sample]:
    """A sample each 3 s, every tenth a quiet one; memory wanders, and grows; `leak` descriptors a minute."""
    rng = np.random.default_rng(0)
    wander = 0.0
    out = []
    for i in range(minutes * 20):
        wander = 0.95 * wander + noise * rng.standard_normal()
        quiet = int(i % 10 == 9)
        out.append(
            Sample(
                seconds=3.0 * i,
                shards=i,
                rss_mb=400 + wander + growth_mb_per_hour * i / 1200,
                descriptors=9 + int(leak * i / 20) + (0 if quiet else int(rng.integers(0, 30))),
                threads=8,
                shm=0,
                under_way=0 if quiet else int(rng.integers(0, 30)),
                temp=0,
                quiet=quiet,
            )
        )
    return out


def test_flat_is_flat_however_busy_it_is() -> None:
    samples = series(0, noise=0.5)
    found = verdicts(samples, samples[9], samples[9])
    assert found["rss"]["low"] < 0 < found["rss"]["high"]
    assert is_flat(found)


@pytest.mark.parametrize("growth", [40.0, 400.0])
def test_growth_is_found_and_its_interval_holds_the_truth(growth: float) -> None:
    line = fit([s.seconds for s in series(growth)], [s.rss_mb for s in series(growth)])
    assert line.low < growth < line.high
    assert line.growth > soak.GROWTH
    samples = series(growth)
    assert not is_flat(verdicts(samples, samples[9], samples[9]))


def test_too_much_noise_to_tell_is_not_flat() -> None:
    samples = series(0, noise=40)
    assert not is_flat(verdicts(samples, samples[9], samples[9]))


def test_a_slow_leak_of_descriptors_is_found_under_their_noise() -> None:
    samples = series(0, noise=0.5, leak=0.2)
    found = verdicts(samples, samples[9], samples[9])
    assert not found["counts"]["descriptors"]["flat"]
    assert not is_flat(found)


def test_what_is_left_at_the_end_counts() -> None:
    samples = series(0, noise=0.5, leak=0)
    worse = Sample(**{**{f: getattr(samples[9], f) for f in Sample.__slots__}, "temp": 1})
    assert not is_flat(verdicts(samples, samples[9], worse))


def test_enough_is_what_the_verdict_needs() -> None:
    samples = series(0)
    for count in (0, 1, 9, 10, 30, 49, 50, 60):
        some = samples[:count]
        try:
            verdicts(some, samples[9], samples[9])
            judged = True
        except (ValueError, IndexError):
            judged = False
        assert soak.enough(some) == judged, count
    assert soak.enough(samples[:60])
    assert not soak.enough([s for s in samples if not s.quiet])


def test_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit(list(range(30)), [1.0] * 30)


def test_a_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    soak.run(soak.Config(minutes=0.001, every=0.05, logs=2))  # the samples decide how long, not the clock
    found = results.load("soak")
    assert found is not None
    assert found["passes"] >= 2
    assert found["shards"] == 2 * found["passes"]
    assert all(left["clean"] for left in found["left"].values()), found["left"]
    for name in ("under_way", "temp", "shm"):
        assert found["counts"][name]["second"] == found["left"][name]["before"]
    rows = (tmp_path / "soak.csv").read_text().splitlines()
    assert len(rows) == found["samples"] + 1
