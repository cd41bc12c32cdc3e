"""V-JEPA 2: the suite, positions against transformers' own, the traps of clips, and what a checkpoint must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shards_schema.errors import ConfigError, SampleError, WeightsError
from teachers import files, registry, vjepa2
from teachers.base import Teacher, fingerprint
from teachers.testing import TeacherConformance, bare_scene, synthetic_scene

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "weights": {"random": 0},
    "network": "tiny",
    "size": [64, 48],
    "pools": {"grid": [3, 4], "tok2": [1, 2]},
    "batch_size": 3,
}


def build(**changes: Any) -> Teacher:
    return registry.build("vjepa2", {**TINY, **changes})


def tiny_network() -> Any:
    """transformers' whole model at the tiny size, with weights large enough that attention looks somewhere."""
    config = {**vjepa2.ENCODERS["tiny"].arguments(), "pred_hidden_size": 24, "pred_num_attention_heads": 2}
    config |= {"pred_num_hidden_layers": 1, "pred_num_mask_tokens": 2}
    network = transformers.VJEPA2Model(transformers.VJEPA2Config(**config)).eval()
    files.draw(network, 3, by_name=True)
    return network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it, written by transformers itself."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_network().save_pretrained(folder)
    published = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    published |= {"rescale_factor": 0.00392156862745098, "crop_size": {"height": 256, "width": 256}}
    (folder / vjepa2.PREPROCESSOR).write_text(json.dumps(published))
    return folder


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


class TestVJEPA2(TeacherConformance):
    image_size = (192, 108)

    def make(self) -> Teacher:
        return build()

    def make_other_weights(self) -> Teacher:
        return build(weights={"random": 1})

    def make_other_config(self) -> Teacher:
        return build(steps=[-1, 0])


class TestTwoViewsInBfloat16(TestVJEPA2):
    rtol: ClassVar[dict[str, float]] = {"float16": 2e-2, "float32": 2e-2}

    def make(self) -> Teacher:
        return build(views=["CAM_F0", "CAM_L0"], dtype="bfloat16")

    def make_other_weights(self) -> Teacher:
        return build(views=["CAM_F0", "CAM_L0"], dtype="bfloat16", weights={"random": 1})


def test_a_square_clip_is_transformers_own_forward() -> None:
    network = tiny_network()
    video = torch.randn(2, 4, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = network(video, skip_predictor=True).last_hidden_state
        got = vjepa2.encode(network.encoder, video, side=16)
    assert got.shape == (2, 2 * 16 * 16, 32)
    assert torch.equal(got, want)


def test_a_wide_clip_has_the_positions_that_it_shows() -> None:
    """Each token's time, row and column, as the rotary embedding itself takes them apart; left to itself it errs."""
    network = tiny_network()
    attention, seen = network.encoder.layer[0].attention, []
    found = attention.get_position_ids
    attention.get_position_ids = lambda x, masks: seen.append(found(x, masks=masks)) or seen[-1]
    video = torch.randn(1, 4, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = vjepa2.encode(network.encoder, video, side=16)
        naive = network(video, skip_predictor=True).last_hidden_state
    times, rows, columns = (ids[0, 0].tolist() for ids in seen[0])
    assert list(zip(times, rows, columns, strict=True)) == [
        (t, r, q) for t in range(2) for r in range(3) for q in range(4)
    ]
    assert seen[1][0].max() == 0  # transformers: all 24 tokens in the first two rows of one moment
    assert seen[1][1].max() == 1
    assert (ours - naive).norm() / naive.norm() > 0.01


def test_the_targets_are_means_of_tokens() -> None:
    suite = TestVJEPA2()
    teacher = suite.make()
    assert isinstance(teacher, vjepa2.VJEPA2Teacher)
    teacher.load("cpu")
    targets = suite.run(teacher, suite.scenes()[:2])[1]
    grid = targets["grid"].astype(np.float32)
    assert grid.shape == (1, 2, 3, 4, 32)
    np.testing.assert_allclose(targets["mean"][0], grid.mean((0, 1, 2, 3)), atol=2e-3)
    np.testing.assert_allclose(targets["tok2"][0, :, 0, 1], grid[0, :, :, 2:].mean((1, 2)), atol=4e-3)
    # and the tokens are what the published preprocessing gives: (x / 255 - mean) / std
    pixels = torch.from_numpy(suite.inputs(teacher, suite.scenes()[1:2])[0].images).permute(0, 3, 1, 2)[None]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (vjepa2.MEAN, vjepa2.STD))
    with torch.inference_mode():
        tokens = vjepa2.encode(teacher._encoder, (pixels / 255 - mean) / std, side=16)[0]
    np.testing.assert_allclose(grid[0].reshape(24, 32), tokens.numpy(), rtol=1e-3, atol=1e-3)


def test_nothing_after_now_is_asked_for_and_no_history_is_a_reason() -> None:
    assert {request.step for request in build().requests(synthetic_scene())} == {-3, -2, -1, 0}
    with pytest.raises(SampleError, match="no frame at step -3"):
        build().requests(synthetic_scene(history=2))
    with pytest.raises(SampleError):
        build().requests(bare_scene())


def test_the_defaults_are_vitl_on_the_whole_front_camera() -> None:
    teacher = registry.build("vjepa2", {"weights": {"random": 0}})
    shapes = {spec.name: (spec.fixed_shape, spec.dtype) for spec in teacher.specs}
    assert shapes == {
        "grid": ((1, 2, 9, 16, 1024), "float16"),
        "tok12": ((1, 2, 3, 4, 1024), "float16"),
        "mean": ((1, 1024), "float32"),
    }
    assert teacher.preprocess(np.zeros((1080, 1920, 3), np.uint8)).shape == (144, 256, 3)


@pytest.mark.slow
def test_vitl_at_full_size() -> None:
    suite = TestVJEPA2()
    exact, rough = (registry.build("vjepa2", {"weights": {"random": 0}, "dtype": d}) for d in ("float32", "bfloat16"))
    exact.load("cpu")
    rough.load("cpu")
    want, got = (suite.run(teacher, suite.scenes()[:1])[0] for teacher in (exact, rough))
    for spec in exact.specs:
        spec.check(want[spec.name])
        error = np.linalg.norm(got[spec.name].astype(np.float64) - want[spec.name]) / np.linalg.norm(
            want[spec.name].astype(np.float64)
        )
        assert error < 0.03


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [-2, -1, 0]}, "an even number of them"),
        ({"steps": [0, -1]}, "ascending"),
        ({"size": [64, 40]}, "multiples of 16"),
        ({"size": [512, 288]}, "at most 256 px"),
        ({"pools": {"grid": [4, 4]}}, r"at most the token grid \[3, 4\]"),
        ({"pools": {"mean": [1, 1]}}, "any name but mean"),
        ({"views": ["CAM_F0", "CAM_F0"]}, "different ones"),
        ({"views": ["LIDAR"]}, "different ones"),
        ({"network": "vitb"}, "network"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(**change)


def test_a_target_must_have_a_name_that_readers_can_take() -> None:
    with pytest.raises(ConfigError, match="target name"):
        build(pools={"Grid.1": [1, 1]})


def test_a_checkpoint_is_read_without_its_predictor(checkpoint: Path) -> None:
    teacher = build(weights={"path": str(checkpoint)})
    assert not teacher.random_weights
    assert teacher.provenance()["weights"]["file"] == "model.safetensors"
    assert fingerprint(teacher) != fingerprint(build())
    teacher.load("cpu")
    assert isinstance(teacher, vjepa2.VJEPA2Teacher)
    want = {k.removeprefix("encoder."): v for k, v in tiny_network().state_dict().items() if k.startswith("encoder.")}
    got = teacher._encoder.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_hub_and_a_path_are_the_same_teacher(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub as its own cache has it on disk; a commit that is there is not asked for again."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in checkpoint.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    teacher = build(weights={"hub": "somebody/tiny", "revision": revision})
    assert fingerprint(teacher) == fingerprint(build(weights={"path": str(checkpoint)}))
    teacher.load("cpu")


def test_two_files_of_weights_are_the_same_network(checkpoint: Path, own: Path) -> None:
    tensors = load_file(own / "model.safetensors")
    names = sorted(tensors)
    (own / "model.safetensors").unlink()
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, own / file)
    mapping = {name: file for file, part in halves.items() for name in part}
    (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    split, whole = build(weights={"path": str(own)}), build(weights={"path": str(checkpoint)})
    assert sorted(split.provenance()["weights"]["files"]) == sorted(halves)
    suite = TestVJEPA2()
    split.load("cpu")
    whole.load("cpu")
    scene = suite.scenes()[:1]
    assert np.array_equal(suite.run(split, scene)[0]["grid"], suite.run(whole, scene)[0]["grid"])


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("config.json", "hidden_size", 64, "has hidden_size 32, this checkpoint has 64"),
        ("config.json", "tubelet_size", 1, "tubelet_size"),
        ("config.json", "mlp_ratio", None, "has mlp_ratio 4.0, this checkpoint has None"),
        ("config.json", "crop_size", 384, "crop_size 256, this checkpoint has 384"),
        ("config.json", "model_type", "vjepa21", "expected model_type 'vjepa2'"),
        ("config.json", "auto_map", {"AutoModel": "evil.Model"}, "without code of its own"),
        (vjepa2.PREPROCESSOR, "image_mean", [0.5, 0.5, 0.5], "normalises with image_mean"),
        (vjepa2.PREPROCESSOR, "image_std", "imagenet", "normalises with image_std"),
        (vjepa2.PREPROCESSOR, "rescale_factor", 1.0, "normalises with rescale_factor"),
    ],
)
def test_another_checkpoint_is_refused_before_it_is_read(own: Path, file: str, key: str, value: Any, said: str) -> None:
    content = json.loads((own / file).read_text())
    (own / file).write_text(json.dumps({**content, key: value}))
    with pytest.raises(WeightsError, match=said):
        build(weights={"path": str(own)}).provenance()


def test_tensors_must_fit_and_files_must_be_there(own: Path) -> None:
    tensors = load_file(own / "model.safetensors")
    del tensors["encoder.layernorm.weight"]
    save_file({**tensors, "predictor.more": torch.zeros(1)}, own / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing encoder\.layernorm\.weight; unexpected predictor\.more"):
        build(weights={"path": str(own)}).load("cpu")
    (own / vjepa2.PREPROCESSOR).unlink()
    with pytest.raises(WeightsError, match=f"no {vjepa2.PREPROCESSOR}"):
        build(weights={"path": str(own)}).provenance()
    torch.save(tensors, own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights at"):
        build(weights={"path": str(own)}).provenance()


def test_weights_that_change_after_they_were_named_are_refused(own: Path) -> None:
    teacher = build(weights={"path": str(own)})
    teacher.provenance()
    tensors = load_file(own / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, own / "model.safetensors")
    with pytest.raises(WeightsError, match="have changed"):
        teacher.load("cpu")


@pytest.mark.parametrize(
    ("network", "millions", "of_encoder"),
    [("vitl", 326.0, 303.9), ("vith", 653.9, 631.6), ("vitg", 1034.6, 1012.2)],
)
def test_the_releases_have_their_parameters(network: str, millions: float, of_encoder: float) -> None:
    """Totals as published: of ViT-L and ViT-H in cards of ports, of ViT-g by the file's 4,138,311,608 bytes."""
    with torch.device("meta"):
        model = transformers.VJEPA2Model(transformers.VJEPA2Config(**vjepa2.ENCODERS[network].arguments()))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert sum(p.numel() for p in model.encoder.parameters()) / 1e6 == pytest.approx(of_encoder, abs=0.06)
    assert model.encoder.layer[0].mlp.fc1.out_features == vjepa2.ENCODERS[network].hidden


def test_the_mean_and_deviation_are_those_that_transformers_publishes() -> None:
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert list(vjepa2.MEAN) == list(IMAGENET_DEFAULT_MEAN)
    assert list(vjepa2.STD) == list(IMAGENET_DEFAULT_STD)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[transformers\]'"):
        vjepa2.build(TINY)
