"""Targets of latents: the grid over a teacher's feature, statistics, and what a config may not say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.reading.reader import Dataset
from shards_schema.errors import ConfigError
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics
from trainer.config import DYNAMICS, GEOMETRY
from trainer.data import DataConfig, ExampleMaker, refuse_other_rate
from trainer.latents import Adapter, LatentInputs, Statistics, TargetConfig

RNG = np.random.default_rng(0)


def spec(dims: tuple[str, ...], shape: tuple[int | None, ...]) -> TargetSpec:
    return TargetSpec(name="x", dims=dims, shape=shape, dtype="float16", unit="1", meaning="a feature")


def test_defaults_are_36_dynamics_and_12_geometry_latents() -> None:
    assert DYNAMICS.latents == 3 * 12
    assert GEOMETRY.latents == 12


def test_cells_are_averages_in_the_order_of_the_grid() -> None:
    array = RNG.standard_normal((2, 5, 6, 8)).astype(np.float16)
    target = TargetConfig(column="c", target="t", grid={"row": 3, "time": 2, "col": 4})
    tokens = target.tokens(array, ("time", "channel", "row", "col"))
    assert tokens.shape == (24, 5)
    assert tokens.dtype == np.float32
    for row in range(3):
        for time in range(2):
            for col in range(4):
                cell = array[time, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].astype(np.float32).mean((1, 2))
                np.testing.assert_allclose(tokens[row * 8 + time * 4 + col], cell, atol=1e-6)


@pytest.mark.parametrize(("size", "cells"), [(2, 3), (9, 3), (16, 4), (7, 3), (1, 3)])
def test_uneven_axes_pool_as_torch_does(size: int, cells: int) -> None:
    array = RNG.standard_normal((size, 4)).astype(np.float32)
    tokens = TargetConfig(column="c", target="t", grid={"time": cells}).tokens(array, ("time", "channel"))
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(array).T, cells).T
    np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-6)


def test_select_takes_one_view() -> None:
    array = RNG.standard_normal((3, 12, 8)).astype(np.float16)
    target = TargetConfig(column="c", target="t", grid={"token": 12}, select={"view": 1})
    np.testing.assert_array_equal(target.tokens(array, ("view", "token", "channel")), array[1].astype(np.float32))


def test_a_dataset_of_another_rate_is_refused(shards: str) -> None:
    dataset = Dataset(shards)
    refuse_other_rate(dataset)
    dataset.manifest = replace(dataset.manifest, source={**dataset.manifest.source, "rate": 10})
    with pytest.raises(ConfigError, match="10 frames a second"):
        ExampleMaker(dataset, DataConfig(), {})


def test_each_dimension_is_named_once() -> None:
    target = TargetConfig(column="c", target="t", grid={"row": 2})
    target.check(spec(("row", "channel"), (4, 8)))
    with pytest.raises(ConfigError, match="each dimension has to be named once"):
        target.check(spec(("view", "row", "channel"), (2, 4, 8)))
    with pytest.raises(ConfigError, match="ragged"):
        target.check(spec(("row", "channel"), (None, 8)))


def test_statistics_in_one_pass_are_the_statistics() -> None:
    rows = [RNG.normal(50, 3, (n, 4)).astype(np.float32) * [1, 2, 3, 0] for n in (5, 1, 30)]
    samples = ({"wm": np.asarray(r, np.float32), "geo": np.ones((2, 3), np.float32)} for r in rows)
    both = Statistics.over(samples)
    assert both.keys() == {"wm", "geo"}
    assert torch.equal(both["geo"].mean, torch.ones(3))
    stats, whole = both["wm"], np.concatenate(rows)
    np.testing.assert_allclose(stats.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.std[:3], whole.std(0)[:3], rtol=1e-4)
    assert stats.std[3] > 0  # a constant channel does not divide by zero
    x = torch.from_numpy(np.asarray(rows[2], np.float32))
    torch.testing.assert_close(stats.restore(stats.standardise(x)), x, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="no samples"):
        Statistics.over([])


def test_dead_channels_of_a_column_do_not_explode() -> None:
    values = np.stack([np.full(50, 7.0), RNG.normal(0, 1e-9, 50), RNG.normal(0, 4, 50)], 1)
    stats = Statistics.of(ChannelStatistics.of(values, 1))
    assert stats.std.tolist() == pytest.approx([4e-3, 4e-3, 4], rel=0.3)
    assert stats.std[0] == stats.std[1] == pytest.approx(1e-3 * stats.std[2].item())
    assert stats.standardise(torch.tensor(values, dtype=torch.float32)).abs().max() < 5


def test_latent_inputs_are_shared_by_the_batch_and_ordered() -> None:
    inputs = LatentInputs({"geo": 2, "wm": 3}, 8)
    assert list(inputs.counts) == ["wm", "geo"]
    out = inputs(4)
    assert out.shape == (4, 5, 8)
    assert torch.equal(out[0], out[3])


def test_adapters_read_half_precision_states() -> None:
    assert Adapter(8, 5, 16)(torch.randn(2, 3, 8).bfloat16()).shape == (2, 3, 5)
