"""Weights go to the device tensor by tensor. The device here is torch's meta one, which takes no memory for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shards_schema.errors import WeightsError
from teachers import files, registry, vjepa2
from teachers.cosmos.checkpoint import build_network, describe
from teachers.cosmos.config import CosmosConfig
from teachers.cosmos.encoder import VideoEncoder
from teachers.cosmos.foresight import Foresight
from teachers.cosmos.predict_config import CosmosPredictConfig
from teachers.cosmos.transformer import build_transformer, describe_transformer, make_transformer

ROOT = Path(__file__).parents[2]
LAYERS, WIDTH = 24, 1024  # 24 matrices of 4 MiB

GROWTH = f"""
import json, sys
import torch
from pathlib import Path
from teachers import files
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

def growth(fill):
    with torch.device("meta"):
        network = torch.nn.Sequential(*(torch.nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is what is there now
    before = memory("VmRSS:")
    fill(network)
    return memory("VmHWM:") - before

growth(lambda network: files.draw(network, 0, by_name=True, dtype=torch.bfloat16, device=sys.argv[2]))  # first calls
print(json.dumps({{
    f"{{way}} {{device}}": growth(fill)
    for device in sys.argv[2:]
    for way, fill in {{
        "file": lambda network: files.load(network, [Path(sys.argv[1])], torch.bfloat16, device=device),
        "drawn": lambda network: files.draw(network, 0, by_name=True, dtype=torch.bfloat16, device=device),
    }}.items()
}}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_host_never_holds_the_network(device: str, tmp_path: Path) -> None:
    """The same gauge sees the 48 MiB of a network that stays on the CPU, in bfloat16, so it would see a detour."""
    file = tmp_path / "network.safetensors"
    save_file({f"{i}.weight": torch.full((WIDTH, WIDTH), float(i)) for i in range(LAYERS)}, file)
    network = LAYERS * WIDTH * WIDTH * 2
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back, and seen to be
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(file), device, "cpu"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    grown = json.loads(done.stdout)
    for way in ("file", "drawn"):
        assert grown[f"{way} cpu"] > 0.9 * network, grown
        pages = file.stat().st_size if way == "file" and device != "meta" else 0  # mapped, not ours; meta reads none
        assert grown[f"{way} {device}"] - pages < 0.5 * network, grown  # one tensor of 4 MiB


def on(network: nn.Module) -> set[tuple[str, torch.dtype]]:
    return {(t.device.type, t.dtype) for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()}


def predict(**fields: Any) -> CosmosPredictConfig:
    base = {"weights": {"random": 0}, "network": "tiny", "size": (48, 32), "pool": 2, "token_pool": (2, 3)}
    return CosmosPredictConfig(**{**base, **fields})


def tiny_vae(**fields: Any) -> CosmosConfig:
    return CosmosConfig(**{"weights": {"random": 0}, "network": "tiny", "size": (64, 48), "pool": 2, **fields})


@pytest.mark.parametrize("origin", ["random", "path"])
def test_each_network_is_filled_on_the_device_where_it_will_run(origin: str, tmp_path: Path) -> None:
    weights: dict[str, Any] = {"random": 0}
    if origin == "path":
        whole = make_transformer(describe_transformer(predict()), None)
        files.draw(whole, 0, by_name=True)
        whole.save_pretrained(tmp_path / "transformer")
        weights = {"path": str(tmp_path)}
    config = predict(weights=weights, vae={"random": 0}, dtype="bfloat16")
    transformer = Foresight(config, describe_transformer(config), "meta").network
    assert on(transformer) == {("meta", torch.bfloat16)}

    if origin == "path":
        build_network(tiny_vae(), describe(tiny_vae()))[0].save_pretrained(tmp_path)
    vae = tiny_vae(weights=weights, network="tiny" if origin == "random" else None, dtype="bfloat16")
    assert on(VideoEncoder(vae, describe(vae), "meta")._vae) == {("meta", torch.bfloat16)}


def test_v_jepa_is_filled_on_the_device_where_it_will_run() -> None:
    pytest.importorskip("transformers")
    teacher = registry.build("vjepa2", {"weights": {"random": 0}, "network": "tiny", "size": [64, 48], "pools": {}})
    assert isinstance(teacher, vjepa2.VJEPA2Teacher)
    teacher.load("meta")
    assert on(teacher._encoder) == {("meta", torch.float32)}


def test_values_are_those_of_the_file_rounded_once_and_draws_those_of_float32(tmp_path: Path) -> None:
    config = predict()
    description = describe_transformer(config)
    drawn = build_transformer(config, description, torch.float32).state_dict()
    narrow = build_transformer(config, description, torch.bfloat16).state_dict()
    assert all(torch.equal(narrow[name], drawn[name].bfloat16()) for name in drawn)

    whole = make_transformer(description, None)
    files.draw(whole, 0, by_name=True)
    whole.save_pretrained(tmp_path / "transformer")
    stored = load_file(tmp_path / "transformer" / files.TENSORS)
    read = predict(weights={"path": str(tmp_path)}, vae={"random": 0})
    for dtype in (torch.float32, torch.bfloat16):
        got = build_transformer(read, describe_transformer(read), dtype).state_dict()
        assert all(torch.equal(got[name], stored[name].to(dtype)) for name in got)


class Rotary(nn.Module):
    """A table that is computed when it is built, and stands in no file."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def test_a_table_that_no_file_holds_goes_along_or_is_missed(tmp_path: Path) -> None:
    save_file(Rotary().state_dict(), tmp_path / "x.safetensors")
    for device in ("cpu", "meta"):
        network = Rotary()
        files.load(network, [tmp_path / "x.safetensors"], torch.float32, device=device)
        assert on(network) == {(device, torch.float32)}
    network = Rotary()
    files.draw(network, 0)
    assert torch.equal(network.table, torch.arange(3.0))
    with torch.device("meta"):
        empty = Rotary()
    with pytest.raises(WeightsError, match=r"Rotary as installed computes table when it is built"):
        files.load(empty, [tmp_path / "x.safetensors"], torch.float32)
    with pytest.raises(WeightsError, match=r"computes table"):
        files.draw(empty, 0)


@pytest.mark.parametrize("model", ["cv8x8x8", "cv4x8x8", "wan"])
def test_an_encoder_alone_has_the_values_of_the_whole_and_the_decoder_is_checked(model: str, tmp_path: Path) -> None:
    drawn = tiny_vae(model=model)
    whole, _ = build_network(drawn, describe(drawn))
    whole.save_pretrained(tmp_path)
    read = tiny_vae(model=model, weights={"path": str(tmp_path)}, network=None)
    for config in (drawn, read):
        alone, _ = build_network(config, describe(config), decoder=False)
        want = {k: v for k, v in whole.state_dict().items() if not k.startswith(("decoder.", "post_quant_conv."))}
        got = alone.state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
    tensors = load_file(tmp_path / files.TENSORS)
    del tensors[next(name for name in tensors if name.startswith("decoder."))]
    save_file(tensors, tmp_path / files.TENSORS)
    with pytest.raises(WeightsError, match=r"missing decoder\."):
        build_network(read, describe(read), decoder=False)


def test_a_tensor_that_stands_in_two_files_is_refused(tmp_path: Path) -> None:
    names = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, names[0])
    save_file({"bias": torch.ones(2)}, names[1])
    with pytest.raises(WeightsError, match="more than one of them holds bias"):
        files.load(nn.Linear(2, 2), names, torch.float32)


@pytest.mark.parametrize("built", ["cpu", "meta"])
def test_tied_weights_are_drawn_once_and_stay_equal(built: str) -> None:
    with torch.device(built):
        network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        network[1].weight = network[0].weight
    files.draw(network, 0, by_name=True)
    alone = nn.Sequential(nn.Linear(3, 3))
    files.draw(alone, 0, by_name=True)
    assert torch.equal(network[0].weight, alone[0].weight)
    assert torch.equal(network[1].weight, alone[0].weight)
