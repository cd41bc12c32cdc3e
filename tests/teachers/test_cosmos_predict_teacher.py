"""The Cosmos-Predict teacher: config errors, the conformance suite, history only, one encode, provenance."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards_schema.errors import ConfigError, SampleError, ShardsError, WeightsError
from shards_schema.records import Scene
from teachers import cosmos, registry
from teachers.base import Teacher, TeacherInput, fingerprint
from teachers.cosmos.checkpoint import build_network, describe
from teachers.cosmos.encoder import VideoEncoder
from teachers.cosmos.predict import CosmosPredictTeacher
from teachers.cosmos.predict_config import CosmosPredictConfig
from teachers.cosmos.transformer import build_transformer, describe_transformer, make_transformer
from teachers.testing import TeacherConformance, synthetic_image, synthetic_scene

TINY: dict[str, Any] = {
    "weights": {"random": 0},
    "network": "tiny",
    "size": [48, 32],
    "pool": 2,
    "token_pool": [2, 1],
}


def make(**fields: Any) -> CosmosPredictTeacher:
    return cosmos.build_predict({**TINY, **fields})


def loaded(**fields: Any) -> CosmosPredictTeacher:
    teacher = make(**fields)
    teacher.load("cpu")
    return teacher


def item(teacher: Teacher, scene: Scene) -> TeacherInput:
    images = [teacher.preprocess(synthetic_image(scene, request)) for request in teacher.requests(scene)]
    return TeacherInput(scene, np.stack(images))


class TestConformance(TeacherConformance):
    config: dict[str, Any] = {**TINY, "layout": "D", "batch_size": 3}  # noqa: RUF012

    def build(self, **changes: Any) -> Teacher:
        return registry.build("cosmos_predict", {**self.config, **changes})

    def make(self) -> Teacher:
        return self.build()

    def make_other_weights(self) -> Teacher:
        return self.build(weights={"random": 1})

    def make_other_config(self) -> Teacher:
        return self.build(block=0)


class TestConformanceOfForesightAlone(TestConformance):
    config: dict[str, Any] = {  # noqa: RUF012
        **TINY,
        "model": "predict2.5",
        "layout": [0],
        "latents": False,
        "horizon": 1,
        "batch_size": 2,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": list(range(12))}, "12 frames is not 1 \\+ 4n.*9 or 13"),
        ({"layout": list(range(-3, 9))}, "12 frames is not 1 \\+ 4n"),
        ({"layout": "C"}, "given 1 or 5 frames.*9 are up to now"),
        ({"layout": [-6, -5, -4, -3, -2]}, "the last of them now"),
        ({"layout": [1, 2, 3, 4, 5]}, "0 are up to now"),
        ({"layout": "A", "latents": False}, r"nothing reads the frames after now; take \[0\]"),
        ({"layout": "B", "latents": False}, r"take \[-4, -3, -2, -1, 0\]"),
        ({"block": 4}, "blocks 0 to 3, got 4"),
        ({"network": "2b", "block": 28}, "blocks 0 to 27, got 28"),
        ({"sigma": 100.0}, "trained from 0.002 to 80"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": float("inf"), "model": "predict2.5"}, "sigma"),
        ({"horizon": 23}, "at most 22 latents after the 2 given"),
        ({"horizon": 0}, "horizon"),
        ({"token_pool": [2, 2]}, r"token_pool: \[2, 2\] \(rows, columns\) does not divide the token grid 2x3"),
        ({"token_pool": 2}, "token_pool"),
        ({"pool": 5}, "pool: 5 does not divide the latent grid 6x4"),
        ({"size": [500, 288]}, "size: width and height must be multiples of 16"),
        ({"size": [1936, 1088]}, "positions for 1920 px"),
        ({"channel": "CAM_X"}, "channel: expected one of CAM_F0"),
        ({"model": "predict1"}, "model"),
        ({"network": "7b"}, "network"),
        ({"weights": {"random": 0, "path": "/x"}}, "exactly one"),
        ({"weights": {"hub": "nvidia/x"}}, "needs a revision"),
        ({"weights": {"path": "/x", "file": "y.safetensors"}}, "file is for one network"),
        ({"fps": 16}, "fps"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_an_impossible_config_is_refused_at_construction(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**fields)


def test_the_default_targets_at_the_default_size() -> None:
    teacher = cosmos.build_predict({"weights": {"random": 0}})
    specs = {spec.name: spec for spec in teacher.specs}
    assert {name: spec.shape for name, spec in specs.items()} == {
        "foresight": (4, 9, 16, 2048),
        "foresight_role": (4,),
        "latent": (4, 16, 36, 64),
        "latent_pool": (4, 16, 9, 16),
        "frame_idx": (13,),
        "frame_valid": (13,),
        "latent_role": (4,),
    }
    assert specs["foresight"].dims == ("foresight_time", "token_row", "token_col", "token_channel")
    assert specs["foresight"].dtype == "float16"
    assert teacher.config.read_block == 19
    assert teacher.config.time == 80 / 81


@pytest.mark.parametrize(
    ("fields", "times", "given"),
    [
        ({"layout": "A"}, 3, 1),
        ({"layout": "A", "horizon": 1}, 2, 1),
        ({"layout": "D", "horizon": 3}, 5, 2),
        ({"layout": "B"}, 4, 2),
    ],
)
def test_what_is_given_follows_from_the_layout(fields: dict[str, Any], times: int, given: int) -> None:
    teacher = make(**fields)
    assert teacher.config.given == given
    assert teacher.specs[0].shape == (times, 1, 3, 48)


@pytest.fixture(scope="module")
def both() -> CosmosPredictTeacher:
    return loaded(layout="B", batch_size=3)


def test_targets_are_as_specified_and_roles_show_padding(both: CosmosPredictTeacher) -> None:
    scenes = [synthetic_scene(1), synthetic_scene(1, before=1)]
    padded, real = both.compute([item(both, scene) for scene in scenes])
    for targets in (padded, real):
        assert list(targets) == [spec.name for spec in both.specs]
        for spec in both.specs:
            spec.check(targets[spec.name])
    assert padded["foresight_role"].tolist() == [0, 1, 2, 2]
    assert real["foresight_role"].tolist() == [1, 1, 2, 2]
    assert (padded["latent_role"].tolist(), padded["frame_valid"][0]) == ([0, 1, 2, 2], 0)


def test_no_bit_of_foresight_depends_on_the_future(both: CosmosPredictTeacher) -> None:
    """Prefix causality through the whole teacher: other pixels after now change nothing but the future's latents."""
    one = item(both, synthetic_scene(2, before=1))
    images = one.images.copy()
    images[5:] = 255 - images[5:]
    want, got = both.compute([one])[0], both.compute([TeacherInput(one.scene, images)])[0]
    assert np.array_equal(got["foresight"], want["foresight"])
    assert np.array_equal(got["latent"][:2], want["latent"][:2])
    for later in (2, 3):
        assert not np.array_equal(got["latent"][later], want["latent"][later])
    images = one.images.copy()
    images[0] = 255 - images[0]
    changed = both.compute([TeacherInput(one.scene, images)])[0]["foresight"]
    assert all(not np.array_equal(changed[time], want["foresight"][time]) for time in range(4)), (
        "all of it sees the past"
    )


def test_foresight_is_the_same_where_there_is_no_future(both: CosmosPredictTeacher) -> None:
    scene = synthetic_scene(3)
    unseen = dataclasses.replace(scene, frames=scene.frames[:4])
    with pytest.raises(SampleError) as caught:
        both.requests(unseen)
    assert caught.value.code == "missing_frame"
    history = loaded(layout="D")
    short, long = history.compute([item(history, unseen)])[0], both.compute([item(both, scene)])[0]
    assert np.array_equal(short["foresight"], long["foresight"])
    assert np.array_equal(short["foresight_role"], long["foresight_role"])
    assert np.array_equal(short["latent"], long["latent"][:2])


def test_one_encode_serves_both_and_latents_are_those_of_the_teacher_cosmos(
    both: CosmosPredictTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = VideoEncoder.encode
    monkeypatch.setattr(VideoEncoder, "encode", lambda self, video: calls.append(video.shape) or original(self, video))
    inputs = [item(both, synthetic_scene(seed, before=1)) for seed in (0, 1)]
    results = both.compute(inputs)
    assert calls == [(2, 3, 13, 32, 48)]
    plain = cosmos.build({k: TINY[k] for k in ("weights", "network", "size", "pool")} | {"model": "wan", "layout": "B"})
    plain.load("cpu")
    for got, want in zip(results, plain.compute(inputs), strict=True):
        assert set(got) - set(want) == {"foresight", "foresight_role"}
        assert all(np.array_equal(got[name], array) for name, array in want.items())


def test_without_latents_the_column_is_foresight_and_its_frames(both: CosmosPredictTeacher) -> None:
    alone = loaded(layout="D", latents=False)
    assert [spec.name for spec in alone.specs] == ["foresight", "foresight_role", "frame_idx", "frame_valid"]
    scene = synthetic_scene(3)
    targets = alone.compute([item(alone, scene)])[0]
    assert np.array_equal(targets["foresight"], both.compute([item(both, scene)])[0]["foresight"])


def test_noise_follows_the_token_whatever_is_beside_it(both: CosmosPredictTeacher) -> None:
    scene = synthetic_scene(4)
    renamed = dataclasses.replace(scene.current, token="f" * 16)
    twin = dataclasses.replace(scene, frames=(*scene.frames[:3], renamed, *scene.frames[4:]))
    one = item(both, scene)
    pair = both.compute([one, TeacherInput(twin, one.images)])
    assert np.array_equal(pair[0]["latent"], pair[1]["latent"])
    assert not np.array_equal(pair[0]["foresight"], pair[1]["foresight"])
    swapped = both.compute([TeacherInput(twin, one.images), one])
    np.testing.assert_allclose(
        swapped[1]["foresight"].astype(np.float32), pair[0]["foresight"].astype(np.float32), atol=4e-3
    )
    other = loaded(layout="B", noise_seed=1).compute([one])[0]
    assert not np.array_equal(other["foresight"], pair[0]["foresight"])


def test_compute_needs_load() -> None:
    teacher = make()
    with pytest.raises(ShardsError, match="call load"):
        teacher.compute([item(teacher, synthetic_scene())])


def test_bfloat16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="bfloat16 does not run on the CPU"):
        make(dtype="bfloat16").load("cpu")


def test_provenance_says_what_decides_the_bits() -> None:
    provenance = make().provenance()
    assert provenance["weights"] == provenance["clip"]["weights"] == {"random": True, "seed": 0}
    assert provenance["class"] == "CosmosTransformer3DModel"
    assert provenance["network"]["arguments"]["rope_scale"] == [1.0, 3.0, 3.0]
    told = provenance["foresight"]
    assert (told["block"], told["of_blocks"], told["given"], told["horizon"]) == (2, 4, 2, 2)
    assert (told["sigma"], told["t"], told["noise_seed"], told["fps"]) == (80.0, 80 / 81, 0, None)
    assert provenance["clip"]["layout"]["steps"] == list(range(-4, 9))
    assert make().random_weights


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "predict2.5"},
        {"network": "2b"},
        {"weights": {"random": 1}},
        {"vae": {"random": 1}},
        {"channel": "CAM_L0"},
        {"layout": "D"},
        {"size": [96, 64]},
        {"latents": False, "layout": "D"},
        {"pool": None},
        {"block": 1},
        {"sigma": 79.0},
        {"horizon": 3},
        {"noise_seed": 1},
        {"token_pool": [1, 3]},
        {"batch_size": 5},
        {"dtype": "bfloat16"},
        {"name": "foresight_b"},
    ],
)
def test_every_field_changes_the_fingerprint(fields: dict[str, Any]) -> None:
    assert fingerprint(make(**fields)) != fingerprint(make())


def test_two_spellings_of_one_teacher_are_one() -> None:
    assert fingerprint(make(block=2, sigma=80, vae={"random": 0})) == fingerprint(make())


def repository(path: Path, seed: int = 0) -> None:
    """A Predict2 repository in small: transformer/ and vae/ as save_pretrained writes them."""
    config = CosmosPredictConfig(**{**TINY, "weights": {"random": seed}, "block": 3})
    whole = make_transformer(describe_transformer(config), None).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    cut = build_transformer(config, describe_transformer(config), torch.float32)
    whole.load_state_dict(cut.state_dict(), strict=False)
    whole.save_pretrained(path / "transformer")
    build_network(config.clip, describe(config.clip))[0].save_pretrained(path / "vae")


def test_a_repository_is_read_whole_and_its_place_is_not_identity(tmp_path: Path) -> None:
    repository(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    at = {place: make(layout="D", weights={"path": str(tmp_path / place)}) for place in "ab"}
    assert fingerprint(at["a"]) == fingerprint(at["b"])
    provenance = at["a"].provenance()
    assert len(provenance["weights"]["sha256"]) == len(provenance["clip"]["weights"]["sha256"]) == 64
    assert provenance["weights"]["sha256"] != provenance["clip"]["weights"]["sha256"]
    assert str(tmp_path) not in json.dumps(provenance)
    assert not at["a"].random_weights
    at["a"].load("cpu")
    random = loaded(layout="D")
    one = item(random, synthetic_scene())
    got, want = at["a"].compute([one])[0], random.compute([one])[0]
    assert all(np.array_equal(got[name], array) for name, array in want.items())
    shutil.move(tmp_path / "b" / "vae", tmp_path / "wan")
    apart = make(layout="D", weights={"path": str(tmp_path / "b")}, vae={"path": str(tmp_path / "wan")})
    assert fingerprint(apart) == fingerprint(at["a"])
    assert make(layout="D", weights={"path": str(tmp_path / "b")}, vae={"random": 0}).random_weights


def test_weights_that_change_after_they_were_identified_are_refused(tmp_path: Path) -> None:
    repository(tmp_path)
    teacher = make(layout="D", weights={"path": str(tmp_path)}, vae={"random": 0})
    fingerprint(teacher)
    repository(tmp_path, seed=7)
    with pytest.raises(WeightsError, match="changed since"):
        teacher.load("cpu")


def test_a_folder_of_the_transformer_alone_needs_the_vae_named(tmp_path: Path) -> None:
    repository(tmp_path)
    with pytest.raises(WeightsError, match="is a AutoencoderKLWan, but this is a 'CosmosTransformer3DModel'"):
        make(weights={"path": str(tmp_path / "transformer")}).provenance()
    teacher = make(weights={"path": str(tmp_path / "transformer")}, vae={"path": str(tmp_path / "vae")})
    assert fingerprint(teacher) == fingerprint(make(weights={"path": str(tmp_path)}))


@pytest.mark.gpu
class TestConformanceOnCuda(TestConformance):
    device = "cuda"
    rtol = {"float16": 5e-2}  # noqa: RUF012  bfloat16 has 8 bits, and kernels differ by batch; not run yet

    config: dict[str, Any] = {**TINY, "layout": "D", "batch_size": 3, "dtype": "bfloat16"}  # noqa: RUF012


@pytest.mark.slow
def test_the_full_2b_network_runs() -> None:
    teacher = cosmos.build_predict({"weights": {"random": 0}, "vae": {"random": 0}, "layout": [0], "size": [64, 64]})
    teacher.load("cpu")
    targets = teacher.compute([item(teacher, synthetic_scene())])[0]
    for spec in teacher.specs:
        spec.check(targets[spec.name])
