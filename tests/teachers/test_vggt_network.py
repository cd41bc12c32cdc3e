"""The VGGT network: parity with the published code, official names, strict loading, and its symmetries."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shards_schema.errors import ConfigError, DatasetError, WeightsError
from teachers.vggt import upstream
from teachers.vggt.aggregator import Aggregator
from teachers.vggt.checkpoint import fill_random, load_checkpoint, random_parameter
from teachers.vggt.depth_head import add_position
from teachers.vggt.geometry import PRESETS, VGGTNetworkConfig
from teachers.vggt.network import VGGTNetwork
from teachers.vggt.patch_encoder import Dinov2
from tests.teachers.vggt_recordings import TOLERANCE, check, compare

DATA = Path(__file__).parents[1] / "data" / "vggt"
SMALL = DATA / "vggt_small_11.npz"
TINY = PRESETS["tiny"]


def on_meta(config: VGGTNetworkConfig) -> VGGTNetwork:
    with torch.device("meta"):
        return VGGTNetwork(config)


def random_network(config: VGGTNetworkConfig = TINY, seed: int = 5) -> VGGTNetwork:
    network = on_meta(config)
    fill_random(network, seed, "cpu")
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def network() -> VGGTNetwork:
    return random_network()


def images(frames: int = 3, height: int = 56, width: int = 98, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).rand(batch, frames, 3, height, width).astype(np.float32))


# Parity


def test_small_network_equals_the_published_code() -> None:
    results = check(SMALL)
    assert [r.name for r in results] == ["first", "tokens", "special", "pose_enc", "depth", "depth_conf"]
    for result in results:
        assert result.of_max < 1e-5, result
        assert result.l2 < 1e-5, result
        # The recorded maps are nearly constant: what counts is the error over the little that varies.
        assert result.of_range < 1e-3, result


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_network_equals_the_published_code() -> None:
    results = check(DATA / "vggt_full_11_nogrid.npz")
    assert [r.name for r in results] == ["special", "pose_enc", "depth", "depth_conf"]
    for result in results:
        assert result.of_max < TOLERANCE, result
        assert result.of_range < 1e-3, result


def altered(tmp_path: Path, **changes: np.ndarray) -> Path:
    with np.load(SMALL) as file:
        arrays = {name: file[name] for name in file.files}
    path = tmp_path / "altered.npz"
    np.savez(path, **(arrays | changes))
    return path


def test_check_fails_on_a_wrong_recording(tmp_path: Path) -> None:
    with np.load(SMALL) as file:
        pose = file["pose_enc"].copy()
    pose[0, 1, 2] += 1e-3
    results = {r.name: r.of_max for r in check(altered(tmp_path, pose_enc=pose))}
    assert results["pose_enc"] > TOLERANCE
    assert results["tokens"] <= TOLERANCE


def test_check_does_not_pass_nan(tmp_path: Path) -> None:
    with np.load(SMALL) as file:
        depth = file["depth"].copy()
    depth[0, 0, 0, 0] = np.nan
    assert not all(r.of_max <= TOLERANCE for r in check(altered(tmp_path, depth=depth)))


def test_check_says_what_is_no_recording(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", seed=1)
    with pytest.raises(DatasetError, match="no shape, special"):
        check(tmp_path / "other.npz")
    with pytest.raises(DatasetError, match="100 wide"):
        check(altered(tmp_path, special=np.zeros((1, 3, 5, 100), np.float32)))


def test_float16_recordings_are_forgiven_their_rounding_only() -> None:
    ours = np.linspace(0.9, 1.1, 1000)
    assert compare("x", ours, ours.astype(np.float16)).of_max == 0.0
    assert compare("x", ours, (ours * 1.002).astype(np.float16)).of_max > 1e-3
    assert compare("x", ours, ours.astype(np.float32)).of_max > 0.0


# Names and loading


def official() -> dict[str, tuple[int, ...]]:
    lines = (line.split(" ", 1) for line in (DATA / "state_dict_1b.txt").read_text().splitlines())
    return {name: ast.literal_eval(shape) for name, shape in lines}


def test_full_network_has_the_official_names_and_shapes() -> None:
    ours = {name: tuple(value.shape) for name, value in on_meta(PRESETS["1b"]).state_dict().items()}
    names = official()
    assert len(names) == 1797
    assert ours == {name: shape for name, shape in names.items() if not name.startswith(("point_head", "track_head"))}


def test_building_and_filling_leave_the_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    random_network()
    assert torch.equal(torch_state, torch.get_rng_state())
    assert pickle.dumps(np.random.get_state()) == numpy_state  # noqa: NPY002


def test_random_parameters_are_pinned() -> None:
    # Computed once; other bits would silently change every "random:" fingerprint's targets.
    value = random_parameter("depth_head.norm.weight", (3,), 7)
    assert value.dtype == torch.float32
    pinned = ["0x1.ecf7d40000000p-1", "0x1.03c3c00000000p+0", "0x1.1183c20000000p+0"]
    assert [float(v).hex() for v in value] == pinned
    assert torch.equal(value, random_parameter("depth_head.norm.weight", (3,), 7))
    assert not torch.equal(value, random_parameter("depth_head.norm.weight", (3,), 8))
    matrix = random_parameter("x.weight", (256, 400), 0)
    assert abs(float(matrix.std()) * 20 - 1) < 0.01
    assert abs(float(matrix.mean())) < 1e-3


EXTRA = {"point_head.norm.weight": torch.ones(2), "track_head.tracker.x": torch.ones(3)}


def write(path: Path, state: dict[str, Tensor], *, old_format: bool = False) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    return path


@pytest.mark.parametrize(("file", "old"), [("model.safetensors", False), ("model.pt", False), ("model.pt", True)])
def test_official_files_load_strictly(tmp_path: Path, network: VGGTNetwork, file: str, old: bool) -> None:
    path = write(tmp_path / file, network.state_dict() | EXTRA, old_format=old)
    loaded = on_meta(TINY)
    load_checkpoint(loaded, path, "cpu")
    path.unlink()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_half_precision_files_become_float32(tmp_path: Path, network: VGGTNetwork) -> None:
    state = {name: value.bfloat16() for name, value in network.state_dict().items()}
    loaded = on_meta(TINY)
    load_checkpoint(loaded, write(tmp_path / "model.safetensors", state), "cpu")
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())


def test_heads_that_are_off_are_ignored_in_the_file(tmp_path: Path, network: VGGTNetwork) -> None:
    path = write(tmp_path / "model.safetensors", network.state_dict())
    bare = on_meta(TINY.model_copy(update={"camera": None, "depth_head": None}))
    load_checkpoint(bare, path, "cpu")
    assert all(name.startswith("aggregator.") for name in bare.state_dict())


@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, network: VGGTNetwork, file: str) -> None:
    state = dict(network.state_dict()) | {
        "aggregator.surprise": torch.ones(1),
        "aggregator.camera_token": torch.ones(4),
    }
    del state["camera_head.trunk_norm.bias"]
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(on_meta(TINY), write(tmp_path / file, state), "cpu")
    said = str(caught.value)
    assert "missing camera_head.trunk_norm.bias" in said
    assert "unexpected aggregator.surprise" in said
    assert "aggregator.camera_token (4,) for (1, 2, 1, 64)" in said


@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_damaged_files_are_refused(tmp_path: Path, network: VGGTNetwork, file: str) -> None:
    path = write(tmp_path / file, dict(network.state_dict()))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=file):
        load_checkpoint(on_meta(TINY), path, "cpu")


def test_pickles_that_are_no_state_dict_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="expected a state dict"):
        load_checkpoint(on_meta(TINY), tmp_path / "model.pt", "cpu")


# Behaviour


def test_only_the_layers_asked_for_are_kept(network: VGGTNetwork) -> None:
    x = images()
    out = network(x, layers=(1, 3))
    assert sorted(out.tokens) == [1, 3]
    assert out.tokens[1].shape == (1, 3, 5 + 4 * 7, 128)
    assert out.patch_start == 5
    assert out.pose_enc.shape == (1, 3, 9)
    assert out.depth.shape == out.depth_conf.shape == (1, 3, 56, 98)
    assert float(out.depth_conf.min()) >= 1.0
    assert network(x).tokens == {}
    aggregator: Aggregator = network.aggregator
    assert sorted(aggregator(x, {0, 2})) == [0, 2]
    assert torch.equal(aggregator(x, {1})[1], out.tokens[1])


def test_networks_without_heads_give_tokens_only(network: VGGTNetwork) -> None:
    bare = random_network(TINY.model_copy(update={"camera": None, "depth_head": None}))
    out = bare(images(), layers=(2,))
    assert out.pose_enc is out.depth is out.depth_conf is None
    assert torch.equal(out.tokens[2], network(images(), layers=(2,)).tokens[2])


def test_other_frames_may_be_permuted_but_not_the_reference(network: VGGTNetwork) -> None:
    x = images(frames=4)
    out = network(x, layers=(3,))
    order = [0, 3, 1, 2]
    permuted = network(x[:, order], layers=(3,))
    torch.testing.assert_close(permuted.tokens[3], out.tokens[3][:, order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(permuted.pose_enc, out.pose_enc[:, order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(permuted.depth, out.depth[:, order], rtol=1e-4, atol=1e-4)
    swapped = network(x[:, [1, 0, 2, 3]], layers=(3,))
    assert float((swapped.tokens[3][:, 1] - out.tokens[3][:, 0]).abs().max()) > 0.01


def test_frame_half_of_layer_0_sees_one_frame_and_the_global_half_all(network: VGGTNetwork) -> None:
    x = images()
    changed = x.clone()
    changed[:, 2] = 1 - changed[:, 2]
    before, after = network(x, layers=(0,)).tokens[0], network(changed, layers=(0,)).tokens[0]
    assert torch.equal(before[:, :2, :, :64], after[:, :2, :, :64])
    assert float((before[:, :2, :, 64:] - after[:, :2, :, 64:]).abs().max()) > 1e-4


def test_depth_of_a_frame_does_not_depend_on_the_chunk_it_is_in(network: VGGTNetwork) -> None:
    levels = [torch.from_numpy(np.random.RandomState(i).randn(11, 6, 128).astype(np.float32)) for i in range(4)]
    depth, conf = network.depth_head(levels, 2, 3)
    alone, alone_conf = network.depth_head([level[9:10] for level in levels], 2, 3)
    assert depth.shape == (11, 28, 42)
    torch.testing.assert_close(depth[9:10], alone)
    torch.testing.assert_close(conf[9:10], alone_conf)


def test_position_embedding_is_antisymmetric_in_its_sines() -> None:
    embedding = add_position(torch.zeros(1, 8, 4, 6), aspect=1.5)[0]
    sine_x, cosine_x, sine_y = embedding[:2], embedding[2:4], embedding[4:6]
    torch.testing.assert_close(sine_x, -sine_x.flip(2))
    torch.testing.assert_close(cosine_x, cosine_x.flip(2))
    torch.testing.assert_close(sine_y, -sine_y.flip(1))
    # The outermost cell's centre in x: 1.5 / sqrt(1 + 1.5^2) * 5 / 6; frequency 1, gain 0.1.
    assert float(embedding[0, 0, 5]) == pytest.approx(0.1 * np.sin(1.5 / np.sqrt(3.25) * 5 / 6), abs=1e-6)


def test_autocast_keeps_the_residual_and_the_heads_in_float32(network: VGGTNetwork) -> None:
    x = images()
    exact, cast = network(x, layers=(3,)), network(x, layers=(3,), autocast=torch.bfloat16)
    assert cast.tokens[3].dtype == cast.pose_enc.dtype == cast.depth.dtype == torch.float32
    cosine = torch.cosine_similarity(exact.tokens[3], cast.tokens[3], dim=-1)
    assert float(cosine.min()) > 0.99
    assert not torch.equal(exact.tokens[3], cast.tokens[3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded = network(x, layers=(3,))
    assert torch.equal(surrounded.depth, exact.depth)


def test_the_norms_of_queries_and_keys_copy_nothing(network: VGGTNetwork) -> None:
    """CUDA's autocast casts what a LayerNorm gets to float32; the norm's kernel wants that contiguous, or copies it."""
    cast = []
    norms = [
        m for n, m in network.named_modules() if n.endswith((".q_norm", ".k_norm")) and isinstance(m, nn.LayerNorm)
    ]
    handles = [
        norm.register_forward_pre_hook(lambda _, args: cast.append(args[0].bfloat16().float())) for norm in norms
    ]
    network(images())
    for handle in handles:
        handle.remove()
    assert len(cast) == 2 * 2 * TINY.depth
    assert all(values.is_contiguous() for values in cast)


class _Tables(TorchDispatchMode):
    """Counts what only tables of places are made of."""

    made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += any(word in str(func) for word in ("arange", "linspace", "bicubic", "cos", "fill_"))
        return func(*args, **(kwargs or {}))


def test_tables_of_places_are_made_once_a_shape(network: VGGTNetwork) -> None:
    x = images(height=70, width=112, batch=2)
    with _Tables() as first:
        want = network(x)
    with _Tables() as second:
        again = network(x)
    assert first.made > second.made == 0
    assert torch.equal(again.depth, want.depth)
    assert torch.equal(again.pose_enc, want.pose_enc)


def small_encoder() -> Dinov2:
    encoder = Dinov2(32, 1, 2)
    with torch.no_grad():
        encoder.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    return encoder.requires_grad_(False).eval()


def test_positions_are_resized_once_a_shape_and_anew_for_other_weights() -> None:
    encoder, x = small_encoder(), images()[0]
    with torch.inference_mode():
        with _Tables() as first:
            want = encoder(x)
        with _Tables() as second:
            assert torch.equal(encoder(x), want)
        assert (first.made, second.made) == (1, 0)
        assert encoder(images(height=70)[0]).shape == (3, 5 * 7, 32)
        assert torch.equal(encoder(x), want)
        encoder.load_state_dict({**encoder.state_dict(), "pos_embed": 2 * encoder.pos_embed}, assign=True)
        assert not torch.equal(encoder(x), want)


def test_tables_made_while_nothing_is_learnt_serve_who_learns_later(network: VGGTNetwork) -> None:
    encoder, x = small_encoder(), images()
    with torch.inference_mode():
        want = encoder(x[0])
    encoder.requires_grad_(True)
    learnt = encoder(x[0])
    assert torch.equal(learnt, want)
    learnt.sum().backward()
    assert encoder.pos_embed.grad is not None
    assert float(encoder.pos_embed.grad.abs().max()) > 0
    copy = random_network()
    copy(x)
    copy.requires_grad_(True).run(x).depth.sum().backward()
    assert copy.aggregator.camera_token.grad is not None


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 3, 56, 98), "B, S, 3, H, W"), ((1, 1, 1, 56, 98), "B, S, 3, H, W"), ((1, 1, 3, 60, 98), "60 x 98")],
)
def test_impossible_images_are_refused(network: VGGTNetwork, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        network(torch.zeros(shape))


def test_bytes_and_unknown_layers_are_refused(network: VGGTNetwork) -> None:
    with pytest.raises(ConfigError, match="float images"):
        network(torch.zeros(1, 1, 3, 56, 98, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"0\.\.3 .* got \[4\]"):
        network(images(), layers=(4,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "multiple of 4 x heads"),
        ({"patch_encoder": "dinov2_vits14_reg"}, "384 wide"),
        ({"depth": 3}, "depth_head.layers"),
        ({"camera": {"heads": 5}}, "not a multiple of 5 heads"),
        ({"depth_head": {"layers": (0, 1, 2, 3), "features": 12}}, "features / 2"),
    ],
)
def test_impossible_geometries_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VGGTNetworkConfig.model_validate(TINY.model_dump() | change)


# Upstream


def test_layers_that_upstream_did_not_keep_are_refused() -> None:
    tokens = [None, torch.ones(1), None, torch.ones(1)]
    assert sorted(upstream.pick(tokens, {1, 3})) == [1, 3]
    with pytest.raises(ConfigError, match=r"layers \[2\].*keeps \[1, 3\]"):
        upstream.pick(tokens, {2, 3})


def test_upstream_implementation_agrees() -> None:
    pytest.importorskip("vggt", reason="Meta's package is an extra")
    theirs = upstream.UpstreamNetwork(TINY)
    fill_random(theirs, 5, "cpu")
    theirs.eval()
    ours = random_network()
    mine, other = ours(images(), layers=(3,)), theirs(images(), layers=(3,))
    for a, b in ((mine.tokens[3], other.tokens[3]), (mine.pose_enc, other.pose_enc), (mine.depth, other.depth)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
