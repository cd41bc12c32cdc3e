"""The VAEs: loading and its errors, random weights, causality, normalisation, mode."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from shards_schema.errors import ConfigError, SpecError, WeightsError
from teachers import cosmos
from teachers.cosmos.checkpoint import build_network, describe
from teachers.cosmos.config import VAES, CosmosConfig
from teachers.cosmos.encoder import VideoEncoder, slow_convolutions
from teachers.cosmos.statistics import Statistics

MODELS = ["cv8x8x8", "cv4x8x8", "wan"]
SIZE = (64, 48)


def config(**fields: Any) -> CosmosConfig:
    base: dict[str, Any] = {"weights": {"random": 0}, "network": "tiny", "size": SIZE, "pool": 2}
    return CosmosConfig(**{**base, **fields})


def saved(path: Path, model: str, **fields: Any) -> CosmosConfig:
    """A tiny network of `model` in the folder `path`, and the config that reads it."""
    network, _ = build_network(config(model=model), describe(config(model=model)))
    network.save_pretrained(path)
    return config(model=model, weights={"path": str(path)}, network=None, **fields)


def encoder(given: CosmosConfig) -> VideoEncoder:
    return VideoEncoder(given, describe(given), "cpu")


def video(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, frames, 3, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(frames, SIZE[1], SIZE[0]), mode="trilinear")


@pytest.mark.parametrize("model", MODELS)
def test_latents_are_causal(model: str) -> None:
    """Later frames change no bit of earlier latents; another length changes nothing but the rounding."""
    vae, k = encoder(config(model=model, layout=[0] * 17)), VAES[model].temporal
    whole = video(17)
    long = vae.encode(whole)
    assert tuple(long.shape) == (1, 16, 1 + 16 // k, 6, 8)
    for frames in (1, 9):
        short = vae.encode(whole[:, :, :frames])
        torch.testing.assert_close(short, long[:, :, : short.shape[2]], rtol=0, atol=1e-5)
    changed = whole.clone()
    changed[:, :, -1] *= -1
    last = vae.encode(changed)
    assert torch.equal(last[:, :, :-1], long[:, :, :-1])
    assert not torch.equal(last[:, :, -1], long[:, :, -1])


class _Copies(TorchDispatchMode):
    """Counts copies of whole activations."""

    made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += any(f"aten.{name}." in str(func) for name in ("cat", "repeat", "constant_pad_nd", "clone"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", MODELS)
def test_the_encoder_copies_for_padding_that_is_there_and_has_diffusers_bits(model: str) -> None:
    given = config(model=model)
    theirs, _ = build_network(given, describe(given))
    ours = encoder(given)._vae
    clips = torch.cat([video(9), video(9, 1)])
    with torch.inference_mode():
        with _Copies() as before:
            want = theirs.encode(clips).latent_dist.mode()
        with _Copies() as after:
            got = ours.encode(clips).latent_dist.mode()
    assert torch.equal(got, want)
    assert after.made <= before.made
    assert model == "wan" or after.made < before.made / 2


@pytest.mark.parametrize("model", MODELS)
def test_channels_last_is_the_same_but_for_the_last_bits(model: str) -> None:
    plain, last = encoder(config(model=model)), encoder(config(model=model, channels_last=True))
    kernels = [module.weight for module in last._vae.encoder.modules() if isinstance(module, torch.nn.Conv3d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
    want, got = plain.encode(video(9)), last.encode(video(9))
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def test_a_cudnn_that_unfolds_videos_is_told_of() -> None:
    cuda, low = torch.device("cuda"), torch.bfloat16
    for version in (90800, 91002, 91400):
        assert "channels_last: true" in str(slow_convolutions(cuda, low, version))
    for fine in (
        (cuda, low, 91500),
        (cuda, low, 90701),
        (cuda, torch.float32, 91002),
        (torch.device("cpu"), low, None),
    ):
        assert slow_convolutions(*fine) is None


@pytest.mark.parametrize("model", MODELS)
def test_a_clip_whose_tail_would_be_dropped_is_refused(model: str) -> None:
    with pytest.raises(SpecError, match="12 frames"):
        encoder(config(model=model)).encode(video(12))


@pytest.mark.parametrize("model", MODELS)
def test_together_is_as_one_by_one(model: str) -> None:
    vae = encoder(config(model=model))
    clips = [video(9, seed) for seed in range(3)]
    together = vae.encode(torch.cat(clips))
    for i, clip in enumerate(clips):
        alone = vae.encode(clip)
        assert float((together[i] - alone[0]).abs().max()) <= 2e-5 * float(alone.abs().max())


def test_wan_gives_the_mean_and_not_a_sample() -> None:
    vae = encoder(config(model="wan"))
    clip = video(9)
    assert torch.equal(vae.encode(clip), vae.encode(clip))
    raw, _ = build_network(config(model="wan"), describe(config(model="wan")))
    with torch.inference_mode():
        posterior = raw.encode(clip).latent_dist
    assert float(posterior.std.min()) > 0, "a distribution with spread, or this test shows nothing"
    mean = torch.tensor(raw.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(raw.config.latents_std).view(1, 16, 1, 1, 1)
    torch.testing.assert_close(vae.encode(clip), (posterior.mean - mean) / std)


def test_cv8_statistics_are_channel_major() -> None:
    given = config(layout=[0] * 17)
    raw, statistics = build_network(given, describe(given))
    assert statistics is not None
    assert statistics.times == 16
    with torch.inference_mode():
        latents = raw.encode(video(17)).latent_dist.mode()
    means, stds = torch.tensor(raw.config.latents_mean), torch.tensor(raw.config.latents_std)
    want = (latents - means.view(1, 16, 16, 1, 1)[:, :, :3]) / stds.view(1, 16, 16, 1, 1)[:, :, :3]
    got = encoder(given).encode(video(17))
    torch.testing.assert_close(got, want)
    # The trap: the first 16 of the 256 values are channel 0's times, not the channels.
    trap = (latents - means[:16].view(1, 16, 1, 1, 1)) / stds[:16].view(1, 16, 1, 1, 1)
    assert not torch.allclose(got, trap, atol=1e-2)


def test_a_table_of_statistics() -> None:
    values = tuple(float(i) for i in range(1, 13))
    table = Statistics("config", 3, values, values).table("mean", 2)
    assert table == [[1.0, 2.0], [5.0, 6.0], [9.0, 10.0]]
    assert Statistics("config", 3, values[:3], values[:3]).table("std", 2) == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    with pytest.raises(ConfigError, match="5 latent frames"):
        Statistics("config", 3, values, values).table("mean", 5)
    with pytest.raises(ConfigError, match="got 4 and 4"):
        Statistics("config", 3, values[:4], values[:4])
    with pytest.raises(ConfigError, match="stds positive"):
        Statistics("config", 1, (0.0,), (0.0,))


def test_a_model_without_statistics_is_raw_unless_they_are_given() -> None:
    raw = config(model="cv4x8x8")
    assert describe(raw).identity()["normalised"] is False
    given = config(model="cv4x8x8", latents_mean=[0.5] * 16, latents_std=[2.0] * 16)
    assert describe(given).identity()["normalised"] is True
    clip = video(9)
    torch.testing.assert_close(encoder(given).encode(clip), (encoder(raw).encode(clip) - 0.5) / 2.0)


@pytest.mark.parametrize("model", MODELS)
def test_random_weights_follow_the_seed_and_nothing_else(model: str) -> None:
    state = torch.get_rng_state()
    first, _ = build_network(config(model=model), describe(config(model=model)))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        second, _ = build_network(config(model=model), describe(config(model=model)))
    other = config(model=model, weights={"random": 1})
    third, _ = build_network(other, describe(other))
    differ = 0
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.isfinite(a).all()
        differ += not torch.equal(a, c)
    assert differ > 10


def test_random_weights_have_known_bits() -> None:
    """The same on every machine: uniform floats are exact, so a value may be written down."""
    network, _ = build_network(config(), describe(config()))
    generator = torch.Generator().manual_seed(0)
    first_name, first = min(network.named_parameters())
    want = torch.empty_like(first).uniform_(generator=generator)
    assert first_name == "decoder.conv_in.conv_s.bias"
    assert torch.equal(first, (want - 0.5) * 0.1)
    assert float(want.flatten()[0]) == 0.49625658988952637


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_a_saved_network_reads_back(tmp_path: Path, model: str, subfolder: str) -> None:
    given = saved(tmp_path / "repo" / subfolder, model)
    given = given.model_copy(update={"weights": type(given.weights)(path=str(tmp_path / "repo"))})
    clip = video(9)
    assert torch.equal(encoder(given).encode(clip), encoder(config(model=model)).encode(clip))


@pytest.mark.parametrize("subfolder", ["", "vae"])
@pytest.mark.parametrize("named", [False, True])
def test_a_hub_repository_is_read_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str, named: bool
) -> None:
    """Through the hub's own client, offline, from a cache as it lays one out."""
    revision = "0123456789" * 4
    saved(tmp_path / "models--someone--cosmos" / "snapshots" / revision / subfolder, "cv8x8x8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    weights = {"hub": "someone/cosmos", "revision": revision}
    if named:
        weights["file"] = str(Path(subfolder) / "diffusion_pytorch_model.safetensors")
    given = config(network=None, weights=weights)
    assert torch.equal(encoder(given).encode(video(9)), encoder(config()).encode(video(9)))


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    saved(tmp_path, "wan")
    given = config(model="wan", network=None, weights={"path": str(tmp_path / "diffusion_pytorch_model.safetensors")})
    assert tuple(encoder(given).encode(video(5)).shape) == (1, 16, 2, 6, 8)


def test_half_precision_files_are_read_into_float32(tmp_path: Path) -> None:
    given = saved(tmp_path, "cv8x8x8")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(halves, file)
    network, _ = build_network(given, describe(given))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.quant_conv.weight, halves["quant_conv.weight"].float())


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    given = saved(tmp_path, "cv8x8x8")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["surplus.weight"] = tensors.pop("quant_conv.weight")
    tensors["quant_conv.bias"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(WeightsError) as caught:
        encoder(given)
    for part in ("missing quant_conv.weight", "unexpected surplus.weight", "another shape quant_conv.bias (3,)"):
        assert part in str(caught.value)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    given = saved(tmp_path, "cv8x8x8")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(WeightsError, match="readable safetensors"):
        encoder(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "is a AutoencoderKLCosmos, but this is a 'AutoencoderKLWan'"),
        ({"temporal_compression_ratio": 4}, "has temporal_compression_ratio 8, but this checkpoint has 4"),
        ({"latent_channels": 6}, "has latent_channels 16, but this checkpoint has 6"),
        ({"latents_mean": [0.0] * 5, "latents_std": [1.0] * 5}, "expected 16 values"),
        ({"latents_mean": None}, "expected 16 values"),
        ({"new_argument": 1}, "knows no .*new_argument"),
        ({"num_layers": "two"}, "makes no AutoencoderKLCosmos"),
    ],
)
def test_a_config_json_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = saved(tmp_path, "cv8x8x8")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        encoder(given)


def test_missing_files_are_named(tmp_path: Path) -> None:
    given = saved(tmp_path / "vae", "cv8x8x8")
    with pytest.raises(WeightsError, match="no weights at"):
        encoder(config(network=None, weights={"path": str(tmp_path / "nowhere")}))
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        encoder(given)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config.json beside"):
        encoder(given)


def test_a_wan_2_2_vae_is_refused(tmp_path: Path) -> None:
    given = saved(tmp_path, "wan")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"z_dim": 48, "patch_size": 2}))
    with pytest.raises(WeightsError, match="has z_dim 16, but this checkpoint has 48"):
        encoder(given)


def test_statistics_of_a_checkpoint_and_of_none(tmp_path: Path) -> None:
    given = saved(tmp_path / "one", "cv8x8x8")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    path = tmp_path / "two" / "config.json"
    parsed = json.loads(path.read_text())
    assert describe(given).identity()["statistics"]["origin"] == "checkpoint"
    other = config(network=None, weights={"path": str(tmp_path / "two")})
    path.write_text(json.dumps(parsed | {"latents_mean": None, "latents_std": None}))
    assert describe(other).identity()["normalised"] is False
    path.write_text(json.dumps({k: v for k, v in parsed.items() if not k.startswith("latents_")}))
    assert describe(other).identity()["statistics"] == {"origin": "diffusers", "diffusers": diffusers.__version__}
    assert torch.equal(encoder(other).encode(video(9)), encoder(given).encode(video(9)))


def test_bfloat16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="avg_pool3d"):
        encoder(config(dtype="bfloat16"))


def test_the_decoder_is_dropped() -> None:
    vae = encoder(config())
    assert vae._vae.decoder is None
    assert vae._vae.post_quant_conv is None


@pytest.mark.parametrize("model", MODELS)
def test_the_arguments_that_may_be_scaled_are_diffusers_own(model: str) -> None:
    facts = VAES[model]
    known = set(inspect.signature(getattr(diffusers, facts.class_name).__init__).parameters)
    assert facts.scalable | set(facts.fixed) | set(facts.full) | set(facts.tiny) <= known


def test_full_networks_have_the_sizes_of_the_release() -> None:
    """Encoder parameters as published, counted without memory for them."""
    for model, want in (("cv8x8x8", 42.91e6), ("cv4x8x8", 30.1e6), ("wan", 53.60e6)):
        arguments = config(model=model, network="full").random_network()
        with torch.device("meta"):
            network = getattr(diffusers, VAES[model].class_name)(**arguments)
        count = sum(p.numel() for p in network.encoder.parameters())
        assert count == pytest.approx(want, rel=2e-3), model


def test_importing_the_package_is_cheap() -> None:
    import subprocess
    import sys

    program = "import sys, teachers.cosmos, teachers.registry; print({'torch', 'diffusers'} & set(sys.modules))"
    root = str(Path(cosmos.__file__).parents[2])
    output = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "set()"
