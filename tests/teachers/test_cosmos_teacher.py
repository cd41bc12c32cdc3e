"""The Cosmos teacher: config errors, targets, provenance. What every teacher promises is in test_conformance.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards_schema.errors import ConfigError, SampleError, ShardsError, WeightsError
from teachers import cosmos
from teachers.base import TeacherInput, fingerprint
from teachers.cosmos.checkpoint import build_network, describe
from teachers.cosmos.config import CosmosConfig
from teachers.cosmos.teacher import CosmosTeacher
from teachers.testing import synthetic_image, synthetic_scene

TINY: dict[str, Any] = {"weights": {"random": 0}, "network": "tiny", "size": (96, 64), "pool": 2}


def make(**fields: Any) -> CosmosTeacher:
    return cosmos.build({**TINY, **fields})


def item(teacher: CosmosTeacher, **scene_fields: Any) -> TeacherInput:
    scene = synthetic_scene(**scene_fields)
    images = [teacher.preprocess(synthetic_image(scene, request)) for request in teacher.requests(scene)]
    return TeacherInput(scene, np.stack(images))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": list(range(12))}, "12 frames is not 1 \\+ 8n.*9 or 17"),
        ({"layout": list(range(12)), "model": "wan"}, "12 frames is not 1 \\+ 4n.*9 or 13"),
        ({"layout": "B"}, "13 frames is not 1 \\+ 8n"),
        ({"layout": "E"}, "layout"),
        ({"layout": [0, 2, 1, 3, 4], "model": "wan"}, "never decrease"),
        ({"layout": []}, "clip of 0 frames"),
        ({"layout": [0] * 137}, "18 latent frames.*end after 16"),
        ({"layout": [0] * 17, "latents_mean": [0.0] * 32, "latents_std": [1.0] * 32}, "end after 2"),
        ({"size": (500, 288)}, "multiples of 16"),
        ({"pool": 5}, "does not divide the latent grid 12x8"),
        ({"channel": "CAM_X"}, "CAM_F0, CAM_L0"),
        ({"model": "cv16"}, "model"),
        ({"network": {"base_dim": 8}}, "has no argument \\['base_dim'\\]"),
        ({"network": {"preset": "huge"}}, "preset must be full or tiny"),
        ({"weights": {"path": "/x"}}, "leave this out"),
        ({"weights": {"random": 0, "path": "/x"}}, "exactly one"),
        ({"weights": {"hub": "nvidia/x"}, "network": None}, "needs a revision"),
        ({"latents_mean": [0.0] * 16}, "both or neither"),
        ({"latents_mean": [0.0] * 5, "latents_std": [1.0] * 5}, "expected 16 values"),
        ({"name": "a.b"}, "name"),
        ({"frames": 9}, "frames"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_an_impossible_config_is_refused_at_construction(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**fields)


def test_a_network_that_cannot_be_built_is_a_config_error_at_load() -> None:
    teacher = make(network={"preset": "tiny", "num_layers": "two"})
    with pytest.raises(ConfigError, match="makes no AutoencoderKLCosmos"):
        teacher.load("cpu")


def test_a_scene_without_the_frames_is_a_sample_error() -> None:
    with pytest.raises(SampleError) as caught:
        make().requests(synthetic_scene(future=7))
    assert caught.value.code == "missing_frame"


def test_the_default_targets_at_the_default_size() -> None:
    specs = {spec.name: spec for spec in cosmos.build({"weights": {"random": 0}}).specs}
    assert specs["latent"].shape == (2, 16, 36, 64)
    assert specs["latent"].dims == ("time", "channel", "row", "col")
    assert specs["latent_pool"].shape == (2, 16, 9, 16)
    assert specs["frame_idx"].shape == specs["frame_valid"].shape == (9,)
    assert specs["latent_role"].shape == (2,)
    assert [specs[n].dtype for n in specs] == ["float16", "float16", "int16", "uint8", "uint8"]


def test_the_pool_can_be_off() -> None:
    assert [spec.name for spec in make(pool=None).specs] == ["latent", "frame_idx", "frame_valid", "latent_role"]


@pytest.mark.parametrize(("model", "layout"), [("cv8x8x8", "C"), ("wan", "D"), ("cv4x8x8", "B")])
def test_targets_are_as_specified_and_labelled(model: str, layout: str) -> None:
    teacher = make(model=model, layout=layout)
    teacher.load("cpu")
    padded, real = teacher.compute([item(teacher, seed=1), item(teacher, seed=1, before=1)])
    for targets in (padded, real):
        for spec in teacher.specs:
            spec.check(targets[spec.name])
    latent, pooled = padded["latent"].astype(np.float32), padded["latent_pool"].astype(np.float32)
    grid = latent.reshape(*latent.shape[:2], 4, 2, 6, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(pooled, grid, atol=2e-3 * np.abs(latent).max())
    assert padded["latent_role"][0] == 0
    if layout != "C":
        assert (padded["frame_idx"][0], padded["frame_valid"][0]) == (-3, 0)
        assert (real["frame_idx"][0], real["frame_valid"][0], real["latent_role"][0]) == (-4, 1, 1)
        assert not np.array_equal(padded["latent"][0], real["latent"][0])


def test_the_history_is_the_same_with_the_future_behind_it() -> None:
    """B and D share their first two latents: causality through the whole teacher."""
    both, history = make(model="cv4x8x8", layout="B"), make(model="cv4x8x8", layout="D")
    for teacher in (both, history):
        teacher.load("cpu")
    long, short = (teacher.compute([item(teacher, before=1)])[0]["latent"] for teacher in (both, history))
    np.testing.assert_allclose(long[:2], short, rtol=0, atol=1e-3 * np.abs(short).max())


def test_compute_needs_load() -> None:
    teacher = make()
    with pytest.raises(ShardsError, match="call load"):
        teacher.compute([item(teacher)])


def test_provenance_says_what_decides_the_bits() -> None:
    provenance = make().provenance()
    assert provenance["weights"] == {"random": True, "seed": 0}
    assert provenance["class"] == "AutoencoderKLCosmos"
    assert provenance["layout"]["steps"] == list(range(9))
    assert provenance["normalised"] is True
    given = make(latents_mean=[0.25] * 16, latents_std=[2.0] * 16).provenance()
    assert given["statistics"] == {"origin": "config", "mean": [0.25] * 16, "std": [2.0] * 16}
    assert make(model="cv4x8x8").provenance()["normalised"] is False


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": {"random": 1}},
        {"model": "wan"},
        {"network": {"preset": "tiny", "num_layers": 2}},
        {"channel": "CAM_B0"},
        {"layout": "C"},
        {"layout": [-1, *range(8)]},
        {"size": (112, 64)},
        {"pool": 4},
        {"pool": None},
        {"batch_size": 2},
        {"dtype": "bfloat16"},
        {"channels_last": True},
        {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16},
        {"name": "cosmos_b"},
    ],
)
def test_every_field_changes_the_fingerprint(fields: dict[str, Any]) -> None:
    assert fingerprint(make(**fields)) != fingerprint(make())


def checkpoint(path: Path) -> None:
    tiny = CosmosConfig(**TINY)
    build_network(tiny, describe(tiny))[0].save_pretrained(path)


def test_the_place_of_a_checkpoint_is_not_identity_but_its_content_is(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "vae")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    config_file = tmp_path / "c" / "config.json"

    def at(place: str) -> CosmosTeacher:
        return make(network=None, weights={"path": str(tmp_path / place)})

    assert fingerprint(at("a")) == fingerprint(at("b"))
    provenance = at("a").provenance()
    assert provenance["statistics"]["times"] == 16
    assert len(provenance["weights"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(provenance)
    parsed = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(parsed | {"_name_or_path": "/somewhere/else", "_diffusers_version": "0.1"}))
    assert fingerprint(at("c")) == fingerprint(at("a"))
    for change in ({"latents_std": [1.0] * 256}, {"scaling_factor": 2.0}):
        config_file.write_text(json.dumps(parsed | change))
        assert fingerprint(at("c")) != fingerprint(at("a"))


def test_weights_that_change_after_they_were_identified_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    teacher = make(network=None, weights={"path": str(tmp_path)})
    fingerprint(teacher)
    other = CosmosConfig(**{**TINY, "weights": {"random": 7}})
    build_network(other, describe(other))[0].save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="changed since"):
        teacher.load("cpu")


@pytest.mark.slow
def test_the_full_cv8_network_runs() -> None:
    teacher = cosmos.build({"weights": {"random": 0}, "size": (448, 256)})
    teacher.load("cpu")
    targets = teacher.compute([item(teacher)])[0]
    for spec in teacher.specs:
        spec.check(targets[spec.name])
