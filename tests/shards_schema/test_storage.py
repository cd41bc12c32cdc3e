"""Storage choices and channel statistics: what is refused, what is lost, and that the rule is the one in the docs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shards_schema.errors import ConfigError, SampleError
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics, measured
from shards_schema.storage import (
    BFLOAT16_NAN,
    computed_specs,
    decode,
    encode,
    possible,
    read_specs,
    rule,
    storage_of,
    stored_specs,
)

GRID = TargetSpec(
    name="grid", dims=("row", "channel"), shape=(3, 300), dtype="float32", unit="1", meaning="tokens", finite=True
)
LATENT = TargetSpec(
    name="latent", dims=("time", "channel", "row"), shape=(2, 16, 5), dtype="float16", unit="1", meaning="latents"
)
PATH = TargetSpec(name="path", dims=("n",), shape=(None,), dtype="int16", unit="1", meaning="a ragged one")
SPECS = (GRID, LATENT, PATH)


def of(spec: TargetSpec, choice: str) -> TargetSpec:
    """What is stored under the target's own name."""
    return stored_specs([spec], {spec.name: choice})[0]


def test_specs_without_storage_are_what_they_were() -> None:
    assert stored_specs(SPECS, {}) == stored_specs(SPECS, {"grid": "float32", "latent": "float16"}) == SPECS
    assert set(GRID.to_json()) == {"name", "dims", "shape", "dtype", "unit", "meaning", "finite"}
    assert storage_of(SPECS) == {}
    assert read_specs(SPECS) == computed_specs(SPECS) == SPECS


@pytest.mark.parametrize("storage", [{"grid": "int8", "latent": "int8"}, {"grid": "bfloat16"}, {"grid": "float16"}])
def test_stored_specs_say_all_of_it(storage: dict[str, str]) -> None:
    stored = stored_specs(SPECS, storage)
    assert tuple(TargetSpec.from_json(s.to_json()) for s in stored) == stored
    assert computed_specs(stored) == SPECS
    assert storage_of(stored) == storage
    assert stored_specs(computed_specs(stored), storage_of(stored)) == stored
    assert [s.name for s in read_specs(stored)] == [s.name for s in SPECS]
    computed = {s.name: s.dtype for s in SPECS}
    for spec in read_specs(stored):
        choice = storage.get(spec.name, computed[spec.name])
        assert spec.encoding is None
        assert spec.dtype == ("float32" if choice in ("int8", "bfloat16") else choice)


def test_scales_have_the_channel_axis_in_groups() -> None:
    _, scale = stored_specs([GRID], {"grid": "int8"})
    assert (scale.name, scale.dims, scale.shape) == ("grid_scale", ("row", "channel_group"), (3, 3))
    _, scale = stored_specs([LATENT], {"latent": "int8"})
    assert (scale.dims, scale.shape) == (("time", "channel_group", "row"), (2, 1, 5))
    assert rule(of(GRID, "int8")) == (
        "value = this * grid_scale, where each scale holds for 128 neighbours along channel"
    )
    assert rule(GRID) is None


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ({"grif": "int8"}, "there is no target 'grif'; there are grid, latent, path"),
        ({"grid": "int4"}, "expected one of float32, float16, bfloat16, int8, got 'int4'"),
        ({"latent": "float32"}, "the teacher gives float16, and storage only narrows"),
        ({"latent": "bfloat16"}, "only narrows"),
        ({"path": "int8"}, "only floating-point targets"),
        ("int8", "expected target: choice, got 'int8'"),
    ],
)
def test_impossible_choices_are_refused(storage: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stored_specs(SPECS, storage)


def test_int8_needs_channels_a_fixed_shape_and_finite_values() -> None:
    for spec in (
        replace(GRID, dims=("row", "pose")),
        replace(GRID, shape=(None, 300)),
        replace(GRID, finite=False),
    ):
        assert possible(spec) == ("float32", "float16", "bfloat16")
        with pytest.raises(ConfigError, match="int8 needs a fixed shape, finite values and a channel axis"):
            stored_specs([spec], {"grid": "int8"})
    with pytest.raises(ConfigError, match="the name of another"):
        stored_specs([GRID, replace(GRID, name="grid_scale")], {"grid": "int8"})


def test_bfloat16_is_torchs() -> None:
    spec = of(replace(GRID, finite=False), "bfloat16")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 300)) * 10.0 ** rng.integers(-40, 38, (3, 300))).astype(np.float32)
    x[0, :6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8]
    x.view(np.uint32)[0, 6] = 0x7F800001  # a NaN whose payload lies in the low half alone
    stored = encode(spec, x)["grid"]
    want = torch.from_numpy(x).bfloat16()
    good = ~np.isnan(x)
    assert np.array_equal(stored[good], want.view(torch.int16).numpy().view(np.uint16)[good])
    assert (stored[~good] == BFLOAT16_NAN).all()
    assert np.array_equal(decode(spec, {"grid": stored}), want.float().numpy(), equal_nan=True)


@given(st.integers(1, 300), st.floats(-30, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_int8_is_within_half_a_step_and_never_clips(channels: int, exponent: float, seed: int) -> None:
    spec = of(replace(GRID, shape=(3, channels)), "int8")
    x = (np.random.default_rng(seed).standard_t(3, (3, channels)) * 10.0**exponent).astype(np.float32)
    x = np.clip(x, -8e6, 8e6)  # 127 x 65504 is the largest magnitude that has a scale
    x[1] = 0
    stored = encode(spec, x)
    codes, scale = stored["grid"], stored["grid_scale"]
    assert (str(codes.dtype), str(scale.dtype), scale.shape) == ("int8", "float16", (3, -(-channels // 128)))
    assert codes.min() >= -127
    assert (scale[1] == 0).all()
    # a plain reader, with the rule and nothing of ours
    plain = codes * np.repeat(scale, 128, axis=-1)[:, :channels].astype(np.float32)
    assert np.array_equal(decode(spec, stored), plain)
    step = np.repeat(scale, 128, axis=-1)[:, :channels].astype(np.float64)
    assert (np.abs(plain - x.astype(np.float64)) <= 0.5 * step * (1 + 1e-6)).all()
    seen = np.abs(x).max(-1) > 2.0**-25  # half the smallest scale
    assert (np.abs(codes).max(-1)[seen] > 0).all()


def test_int8_along_an_inner_axis() -> None:
    spec = of(LATENT, "int8")
    x = np.random.default_rng(1).standard_normal((2, 16, 5)).astype(np.float16)
    stored = encode(spec, x)
    assert stored["latent_scale"].shape == (2, 1, 5)
    assert np.allclose(stored["latent"] * stored["latent_scale"].astype(np.float32), x, atol=0.02)
    assert np.array_equal(decode(spec, stored), stored["latent"] * stored["latent_scale"].astype(np.float32))


@pytest.mark.parametrize(
    ("choice", "fits", "beyond"),
    [("float16", 65504.0, 65520.0), ("bfloat16", 3.38e38, 3.4e38), ("int8", 127 * 65504.0, 127 * 65520.0)],
)
def test_what_a_choice_cannot_hold_is_an_error_of_the_sample(choice: str, fits: float, beyond: float) -> None:
    spec = of(GRID, choice)
    x = np.zeros((3, 300), np.float32)
    x[1, 5] = -fits
    assert np.isclose(decode(spec, encode(spec, x))[1, 5], -fits, rtol=0.01)
    x[1, 5] = -beyond
    with pytest.raises(
        SampleError, match=rf"target grid: 1 (of 900 values|groups of 128).* beyond what {choice} holds"
    ) as caught:
        encode(spec, x)
    assert caught.value.code == "overflow"


def test_statistics_merge_to_those_of_all_values() -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((7, 2, 16, 5)) * 0.1 + 3000).astype(np.float32)  # a mean that would eat the variance
    whole = ChannelStatistics.of(x[0], 1)
    for sample in x[1:]:
        whole = whole.merged(ChannelStatistics.of(sample, 1))
    rows: NDArray[np.float64] = np.moveaxis(x, 2, -1).reshape(-1, 16).astype(np.float64)
    assert whole.count == len(rows) == 70
    assert np.allclose(whole.mean, rows.mean(0), rtol=1e-14)
    assert np.allclose(whole.std, rows.std(0), rtol=1e-10)
    assert np.array_equal(whole.min, rows.min(0))
    assert np.array_equal(whole.max, rows.max(0))


def test_which_targets_are_measured() -> None:
    specs = (*SPECS, replace(GRID, name="pose", dims=("row", "pose")), replace(GRID, name="gaps", finite=False))
    assert [s.name for s in measured(specs)] == ["grid", "latent"]
    assert [s.dtype for s in measured(stored_specs(specs, {"latent": "int8"}))] == ["float32", "float32"]
