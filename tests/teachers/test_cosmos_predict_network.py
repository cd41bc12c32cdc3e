"""The Video2World transformer, cut at a block: parity with diffusers' own forward, and the traps of the spec."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from shards_schema.errors import WeightsError
from teachers.cosmos.foresight import Foresight, noise
from teachers.cosmos.predict_config import CosmosPredictConfig
from teachers.cosmos.transformer import DEFAULTS, build_transformer, describe_transformer, make_transformer

TRANSFORMS = "diffusers.models.transformers.transformer_cosmos.transforms"
"""By name: the module takes long to import."""
MODELS = ["predict2", "predict2.5"]
GRID = (4, 6)  # latent cells of SIZE
SIZE = (48, 32)


@pytest.fixture
def resize(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function of torchvision that diffusers' whole forward needs; ours runs without."""
    nearest = SimpleNamespace(
        functional=SimpleNamespace(resize=lambda mask, size, interpolation: functional.interpolate(mask, size)),
        InterpolationMode=SimpleNamespace(NEAREST=None),
    )
    monkeypatch.setattr(TRANSFORMS, nearest, raising=False)


def config(**fields: Any) -> CosmosPredictConfig:
    base: dict[str, Any] = {"weights": {"random": 0}, "network": "tiny", "size": SIZE, "pool": 2, "token_pool": (2, 3)}
    return CosmosPredictConfig(**{**base, **fields})


def whole_network(given: CosmosPredictConfig) -> Any:
    """diffusers' network with all its blocks, randomly initialised as `given` says."""
    network = make_transformer(describe_transformer(given), None).to_empty(device="cpu")
    cut = build_transformer(config(**{**given.model_dump(), "block": 3}), describe_transformer(given), torch.float32)
    network.load_state_dict(cut.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in (*network.norm_out.parameters(), *network.proj_out.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    return network.eval()


def saved(path: Path, subfolder: str = "transformer", model: str = "predict2", **options: Any) -> CosmosPredictConfig:
    """A whole tiny network in ``path/subfolder`` as save_pretrained writes it, and the config that reads it."""
    whole_network(config(model=model)).save_pretrained(path / subfolder, **options)
    return config(model=model, weights={"path": str(path)})


def foresight(given: CosmosPredictConfig) -> Foresight:
    return Foresight(given, describe_transformer(given), "cpu")


def inputs(batch: int = 1, given: int = 2, horizon: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    latents = np.stack([noise(f"latents {i}", 0, given, GRID) for i in range(batch)])
    return torch.from_numpy(latents), torch.from_numpy(
        np.stack([noise(f"scene {i}", 0, horizon, GRID) for i in range(batch)])
    )


def whole_forward(
    network: Any,
    given: CosmosPredictConfig,
    latents: torch.Tensor,
    drawn: torch.Tensor,
    *,
    fps: int | None = None,
    text_tokens: int = 1,
    padding_batch: int = 1,
) -> dict[int, torch.Tensor]:
    """The output of each block in diffusers' own forward, its inputs built as in the published pipeline."""
    batch, count = latents.shape[0], latents.shape[2]
    sigma = given.sigma
    indicator = torch.zeros(1, 1, count + drawn.shape[2], 1, 1)
    indicator[:, :, :count] = 1
    known = torch.cat([latents, torch.zeros_like(drawn)], dim=2)
    eps = torch.cat([torch.zeros_like(latents), drawn], dim=2)
    clock = torch.full((batch, 1, indicator.shape[2], 1, 1), sigma / (1 + sigma))
    if given.model == "predict2":
        noisy, conditioned = (sigma * eps) * (1 - sigma / (1 + sigma)), 1e-4 / (1 + 1e-4)
    else:
        noisy, conditioned = sigma / (1 + sigma) * eps, 1e-4
    width = 32 if given.model == "predict2.5" else 16
    blocks: dict[int, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda _m, _a, output, k=k: blocks.__setitem__(k, output))
        for k, block in enumerate(network.transformer_blocks)
    ]
    try:
        with torch.inference_mode():
            network(
                hidden_states=indicator * known + (1 - indicator) * noisy,
                timestep=indicator * conditioned + (1 - indicator) * clock,
                encoder_hidden_states=torch.zeros(batch, text_tokens, width),
                condition_mask=indicator.expand(batch, 1, -1, *GRID).contiguous(),
                padding_mask=torch.zeros(padding_batch, 1, SIZE[1], SIZE[0]),
                fps=fps,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return {k: tokens.unflatten(1, (-1, GRID[0] // 2, GRID[1] // 2)) for k, tokens in blocks.items()}


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.usefixtures("resize")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("layout", "given", "horizon"), [("D", 2, 2), ("A", 1, 3)])
def test_each_cut_network_equals_the_hook_in_the_whole_forward(
    model: str, layout: str, given: int, horizon: int
) -> None:
    base = {"model": model, "layout": layout, "horizon": horizon}
    network, tensors = whole_network(config(**base)), inputs(3, given, horizon)
    blocks = whole_forward(network, config(**base), *tensors)
    assert sorted(blocks) == [0, 1, 2, 3]
    for block, want in blocks.items():
        got = foresight(config(**base, block=block)).tokens(*tensors)
        assert tuple(got.shape) == (3, given + horizon, 2, 3, 48)
        # To the bit, but for Predict2's noise: (sigma * eps) * (1 - t) is t * eps less a rounding.
        assert relative(got, want) < (1e-6 if model == "predict2" else 1e-30), block
    assert relative(blocks[2], blocks[3]) > 0.1, "blocks differ, or this test shows nothing"


@pytest.mark.usefixtures("resize")
@pytest.mark.parametrize("model", MODELS)
def test_fps_is_unset_which_is_24_and_not_the_pipelines_16(model: str) -> None:
    network, tensors = whole_network(config(model=model)), inputs()
    ours = foresight(config(model=model)).tokens(*tensors)
    for fps in (None, 24):
        assert relative(whole_forward(network, config(model=model), *tensors, fps=fps)[2], ours) < 1e-6
    for fps in (16, 10, 2):
        assert relative(whole_forward(network, config(model=model), *tensors, fps=fps)[2], ours) > 1e-3


@pytest.mark.usefixtures("resize")
@pytest.mark.parametrize("model", MODELS)
def test_one_token_of_null_text_is_as_good_as_512(model: str) -> None:
    network, tensors = whole_network(config(model=model)), inputs()
    one, many = (whole_forward(network, config(model=model), *tensors, text_tokens=n)[2] for n in (1, 512))
    assert relative(one, many) < 5e-6
    assert relative(foresight(config(model=model)).tokens(*tensors), many) < 5e-6


@pytest.mark.usefixtures("resize")
def test_the_padding_mask_of_the_whole_forward_stops_at_a_batch_of_one_and_ours_does_not() -> None:
    network, tensors = whole_network(config()), inputs(2)
    with pytest.raises(RuntimeError, match="size"):
        whole_forward(network, config(), *tensors, padding_batch=2)
    assert relative(foresight(config()).tokens(*tensors), whole_forward(network, config(), *tensors)[2]) < 1e-6


def test_it_runs_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TRANSFORMS, raising=False)
    assert torch.isfinite(foresight(config()).tokens(*inputs())).all()


@pytest.mark.parametrize(("model", "given_time"), [("predict2", 1e-4 / 1.0001), ("predict2.5", 1e-4)])
def test_what_the_network_is_shown(model: str, given_time: float) -> None:
    mine = foresight(config(model=model, sigma=3.0))
    latents, drawn = inputs(2)
    seen: dict[str, Any] = {}
    mine.network.register_forward_pre_hook(lambda _m, _a, kwargs: seen.update(kwargs), with_kwargs=True)
    mine.tokens(latents, drawn)
    assert torch.equal(seen["hidden_states"][:, :, :2], latents), "the past is clean"
    torch.testing.assert_close(seen["hidden_states"][:, :, 2:], 0.75 * drawn)
    assert tuple(seen["condition_mask"].shape) == (2, 2, 4, *GRID)
    assert seen["condition_mask"][:, 0].amax(dim=(2, 3)).tolist() == [[1, 1, 0, 0]] * 2
    assert seen["condition_mask"][:, 0].amin(dim=(2, 3)).tolist() == [[1, 1, 0, 0]] * 2
    assert not seen["condition_mask"][:, 1].any(), "no pixel is padding"
    assert tuple(seen["timestep"].shape) == (2, 1, 4, 1, 1)
    assert seen["timestep"].dtype == torch.float32
    assert seen["timestep"].flatten().tolist() == pytest.approx([given_time, given_time, 0.75, 0.75] * 2)
    assert seen["fps"] is None
    assert not seen["encoder_hidden_states"].any()
    assert seen["encoder_hidden_states"].shape[1] == 1


@pytest.mark.parametrize("model", MODELS)
def test_together_is_as_one_by_one(model: str) -> None:
    mine, (latents, drawn) = foresight(config(model=model)), inputs(3)
    together = mine.features(latents, drawn)
    for i in range(3):
        alone = mine.features(latents[i : i + 1], drawn[i : i + 1])
        assert float((together[i] - alone[0]).abs().max()) <= 2e-5 * float(alone.abs().max())
    assert relative(together[0], together[1]) > 0.1


def test_features_are_normalised_then_pooled() -> None:
    tensors = inputs(2)
    tokens = foresight(config()).tokens(*tensors)
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    normal = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    want = torch.stack([normal[:, :, :, :1].mean(3), normal[:, :, :, 1:2].mean(3), normal[:, :, :, 2:].mean(3)], dim=3)
    want = (want[:, :, 0:1] + want[:, :, 1:2]) / 2
    got = foresight(config(token_pool=[2, 1])).features(*tensors)
    assert tuple(got.shape) == (2, 4, 1, 3, 48)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert float(foresight(config(token_pool=[1, 1])).features(*tensors).abs().max()) <= 48**0.5, "safe in float16"


def test_the_time_that_is_told_and_the_noise_change_the_features() -> None:
    latents, drawn = inputs()
    base = foresight(config()).features(latents, drawn)
    assert relative(foresight(config(sigma=1.0)).features(latents, drawn), base) > 1e-2
    assert relative(foresight(config()).features(latents, -drawn), base) > 1e-2
    assert relative(foresight(config()).features(-latents, drawn), base) > 1e-2


def test_bfloat16_is_close_to_float32() -> None:
    tensors = inputs(2)
    half = foresight(config(dtype="bfloat16"))
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert half.tokens(*tensors).dtype == torch.bfloat16
    assert 0 < relative(half.features(*tensors), foresight(config()).features(*tensors)) < 5e-2


@pytest.mark.parametrize("model", MODELS)
def test_later_blocks_are_neither_built_nor_computed(model: str) -> None:
    flops = []
    for block in range(4):
        mine = foresight(config(model=model, block=block))
        assert len(mine.network.transformer_blocks) == block + 1
        assert not list(mine.network.norm_out.parameters()) + list(mine.network.proj_out.parameters())
        with FlopCounterMode(display=False) as counter:
            mine.tokens(*inputs())
        flops.append(counter.get_total_flops())
    steps = np.diff(flops)
    assert (steps == steps[0]).all()
    assert 0 < flops[0] - steps[0] < steps[0], "before the blocks there is little"


def test_later_blocks_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = saved(tmp_path)
    read: list[str] = []

    open_file = safetensors.safe_open

    class Recorder:
        def __init__(self, file: Path, **options: Any) -> None:
            self.file = open_file(file, **options)

        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Recorder)
    foresight(given.model_copy(update={"block": 1}))
    prefixes = {".".join(name.split(".")[:2]) for name in read}
    assert "transformer_blocks.1" in prefixes
    assert not {
        p for p in prefixes if p.startswith(("transformer_blocks.2", "transformer_blocks.3", "norm_out", "proj_"))
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("subfolder", ["", "transformer"])
def test_a_saved_network_reads_back(tmp_path: Path, model: str, subfolder: str) -> None:
    given, tensors = saved(tmp_path, subfolder, model), inputs()
    assert torch.equal(foresight(given).tokens(*tensors), foresight(config(model=model)).tokens(*tensors))


def test_a_network_in_parts_reads_back_and_is_named_by_its_parts(tmp_path: Path) -> None:
    from teachers.cosmos.transformer import FILES
    from teachers.files import identity

    given, tensors = saved(tmp_path, max_shard_size="100KB"), inputs()
    files = sorted(path.name for path in (tmp_path / "transformer").glob("*.safetensors"))
    assert len(files) > 2
    assert torch.equal(foresight(given).tokens(*tensors), foresight(config()).tokens(*tensors))
    digests = identity(given.weights, *FILES)["files"]
    assert sorted(digests) == files
    (tmp_path / "transformer" / files[-1]).unlink()
    with pytest.raises(WeightsError, match=f"no {files[-1]} beside"):
        foresight(given)
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(WeightsError, match="expected an index"):
        foresight(given)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}])
def test_a_hub_repository_is_read_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Through the hub's own client, offline, from a cache as it lays one out."""
    revision = "0123456789" * 4
    snapshot = tmp_path / "models--someone--predict" / "snapshots" / revision
    saved(snapshot, **options)
    missing = tmp_path / "models--someone--predict" / ".no_exist" / revision / "transformer"
    missing.mkdir(parents=True)
    if options:
        (missing / "diffusion_pytorch_model.safetensors").touch()  # the cache's note that the hub has no such file
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    given = config(weights={"hub": "someone/predict", "revision": revision})
    assert torch.equal(foresight(given).tokens(*inputs()), foresight(config()).tokens(*inputs()))


def test_half_precision_files_are_read_as_the_config_says(tmp_path: Path) -> None:
    given = saved(tmp_path)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file)
    for dtype in (torch.float32, torch.bfloat16):
        wanted = given.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
        assert {p.dtype for p in foresight(wanted).network.parameters()} == {dtype}


def test_tensors_that_do_not_fit_are_named_even_where_they_are_not_read(tmp_path: Path) -> None:
    given = saved(tmp_path).model_copy(update={"block": 0})
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["surplus.weight"] = tensors.pop("transformer_blocks.3.ff.net.2.weight")
    tensors["proj_out.weight"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(WeightsError) as caught:
        foresight(given)
    parts = ("missing transformer_blocks.3.ff.net.2.weight", "unexpected surplus.weight", "shape proj_out.weight (3,)")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "CosmosControlNetModel"}, "expected a CosmosTransformer3DModel"),
        ({"in_channels": 16}, "has in_channels 17, but this checkpoint has 16.*Video2World"),
        ({"num_layers": 5}, "has num_layers 4, but this checkpoint has 5"),
        ({"extra_pos_embed_type": "learnable"}, "has extra_pos_embed_type None, but this checkpoint has 'learnable'"),
        ({"use_crossattn_projection": True}, "set `model` and `network`"),
        ({"img_context_dim_in": 1152}, "img_context_dim_in is 1152: this is no Video2World"),
        ({"new_argument": 1, "mlp_ratio": "x"}, "makes no CosmosTransformer3DModel"),
    ],
)
def test_a_config_json_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = saved(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        foresight(given)


def test_a_config_json_from_before_an_argument_existed_is_read(tmp_path: Path) -> None:
    """Predict2 was released before diffusers knew the text projection of 2.5."""
    given = saved(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    newer = ("use_crossattn_projection", "crossattn_proj_in_channels", "encoder_hidden_states_channels")
    newer += ("controlnet_block_every_n", "img_context_dim_in", "img_context_num_tokens", "img_context_dim_out")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in newer}))
    assert torch.equal(foresight(given).tokens(*inputs()), foresight(config()).tokens(*inputs()))


def test_the_defaults_are_the_classes_own() -> None:
    signature = inspect.signature(diffusers.CosmosTransformer3DModel.__init__).parameters
    for name, value in DEFAULTS.items():
        default = signature[name].default
        assert (list(default) if isinstance(default, tuple) else default) == value
    assert set(DEFAULTS) == set(config().fixed)


@pytest.mark.parametrize(
    ("model", "network", "parameters"),
    [
        ("predict2", "2b", 1.956e9),
        ("predict2", "14b", 14.265e9),
        ("predict2.5", "2b", 2.059e9),
        ("predict2.5", "14b", 14.368e9),
    ],
)
def test_full_networks_have_the_sizes_of_the_release(model: str, network: str, parameters: float) -> None:
    """As published, counted without memory for them."""
    given = CosmosPredictConfig(weights={"random": 0}, model=model, network=network)
    whole = make_transformer(describe_transformer(given), None)
    assert sum(p.numel() for p in whole.parameters()) == pytest.approx(parameters, rel=5e-4)
    assert whole.config.num_attention_heads * whole.config.attention_head_dim == given.architecture.width


def test_random_weights_follow_the_seed_and_not_the_block() -> None:
    state = torch.get_rng_state()
    shallow, deep = (foresight(config(block=k)).network.state_dict() for k in (1, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(shallow) < set(deep)
    assert all(torch.equal(deep[name], tensor) for name, tensor in shallow.items())
    other = foresight(config(weights={"random": 1})).network.state_dict()
    assert sum(not torch.equal(deep[name], tensor) for name, tensor in other.items()) > 10


def test_noise_is_a_function_of_token_and_seed() -> None:
    drawn = noise("0123456789abcdef", 0, 2, (36, 64))
    assert drawn.shape == (16, 2, 36, 64)
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn, noise("0123456789abcdef", 0, 2, (36, 64)))
    assert np.array_equal(noise("0123456789abcdef", 0, 3, (36, 64))[:, :2], drawn), "a longer horizon begins the same"
    for other in (noise("0123456789abcdee", 0, 2, (36, 64)), noise("0123456789abcdef", 1, 2, (36, 64))):
        assert abs(float(np.corrcoef(drawn.ravel(), other.ravel())[0, 1])) < 0.02
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)


def test_noise_has_known_bits() -> None:
    assert noise("0123456789abcdef", 0, 1, (1, 1))[:3, 0, 0, 0].tolist() == [
        1.5257521867752075,
        -0.7271228432655334,
        0.2066461741924286,
    ]
