"""Parity with the published code: our network against recorded outputs.

A recording holds no weights. They are filled by a rule from a seed and the parameter's official name, and the images
come from the same seed, so a recording made elsewhere pins every number of the network:

    parameter = RandomState(crc32("seed:name")).standard_normal(shape) as float32, times 0.02 where it has two or more
    axes or is a bias, else 1 + 0.1 times it;    images = RandomState(seed).rand(*shape) as float32

Which geometry: the recorded `special` tokens are twice the embedding wide, and one preset has that width. A
recorded array has three errors: the largest, over the largest recorded magnitude; the relative L2; and the largest over
the recorded range, which shows what a nearly constant map would hide. A float16 recording is first forgiven its own
rounding (half a unit in the last place of each value), and nothing else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from shards_schema.errors import DatasetError
from teachers.vggt.geometry import PATCH, PATCH_START, PRESETS, VGGTNetworkConfig
from teachers.vggt.network import VGGTNetwork, VGGTOutput

TOLERANCE = 1e-4
_GEOMETRIES = ("1b", "small")
_OUTPUTS = ("first", "tokens", "grid", "special", "pose_enc", "depth", "depth_conf")


@dataclass(frozen=True, slots=True)
class Parity:
    """How far one recorded output is from ours; see the module's docstring for the three measures."""

    name: str
    of_max: float
    l2: float
    of_range: float


def rule_value(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The parameter `name` as the recordings' rule fills it, float32."""
    generator = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    value = torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
    if len(shape) >= 2 or name.endswith(".bias"):
        return value.mul_(np.float32(0.02).item())
    return value.mul_(np.float32(0.1).item()).add_(1)


def rule_network(config: VGGTNetworkConfig, seed: int) -> VGGTNetwork:
    """The network with every parameter filled by the recordings' rule."""
    with torch.device("meta"):
        network = VGGTNetwork(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: rule_value(name, shape, seed) for name, shape in shapes.items()}, assign=True)
    return network.requires_grad_(False).eval()


def geometry_of(recorded: dict[str, NDArray[Any]], path: Path) -> VGGTNetworkConfig:
    """The preset whose token width the recording has.

    Raises:
        DatasetError: the file is not a recording, or of no known geometry.
    """
    missing = sorted({"seed", "shape", "special"} - recorded.keys())
    if missing:
        raise DatasetError(f"{path}: not a recording of VGGT outputs: no {', '.join(missing)} in it")
    width = recorded["special"].shape[-1]
    for name in _GEOMETRIES:
        if 2 * PRESETS[name].embed_dim == width:
            return PRESETS[name]
    widths = {name: 2 * PRESETS[name].embed_dim for name in _GEOMETRIES}
    raise DatasetError(f"{path}: special tokens are {width} wide; the known geometries are {widths}")


def compare(name: str, ours: NDArray[Any], recorded: NDArray[Any]) -> Parity:
    """The errors of `ours` against `recorded`, which may group the leading axes, or hold singleton ones, otherwise.

    Raises:
        DatasetError: the shapes differ in more than that.
    """
    if ours.size != recorded.size or [n for n in ours.shape if n > 1][-1:] != [n for n in recorded.shape if n > 1][-1:]:
        raise DatasetError(f"{name}: expected shape {list(ours.shape)}, recorded is {list(recorded.shape)}")
    want = recorded.astype(np.float64)
    error = np.abs(ours.reshape(recorded.shape).astype(np.float64) - want)
    if recorded.dtype == np.float16:
        error = np.maximum(error - 0.5 * np.abs(np.spacing(recorded)).astype(np.float64), 0.0)
    tiny = np.finfo(np.float64).tiny
    return Parity(
        name,
        float(error.max() / max(float(np.abs(want).max()), tiny)),
        float(np.linalg.norm(error) / max(float(np.linalg.norm(want)), tiny)),
        float(error.max() / max(float(np.ptp(want)), tiny)),
    )


def outputs(out: VGGTOutput, rows: int, last: int, grid: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Our arrays under the recordings' names; `rows` patch rows a frame, `grid` the pooled rows and columns."""
    tokens = out.tokens[last]
    patches = tokens[:, :, PATCH_START:].flatten(0, 1).transpose(1, 2)
    patches = patches.reshape(*patches.shape[:2], rows, -1)
    found = {
        "first": out.tokens[0],
        "tokens": tokens,
        "grid": functional.adaptive_avg_pool2d(patches, grid).permute(0, 2, 3, 1),
        "special": tokens[:, :, :PATCH_START],
        "pose_enc": out.pose_enc,
        "depth": out.depth,
        "depth_conf": out.depth_conf,
    }
    return {name: value.numpy() for name, value in found.items() if value is not None}


def check(path: Path) -> list[Parity]:
    """Run the network of the recording at `path` and compare every output that it holds.

    Raises:
        DatasetError: the file is not a recording.
    """
    with np.load(path) as file:
        recorded = {name: file[name] for name in file.files}
    config = geometry_of(recorded, path)
    seed = int(recorded["seed"])
    shape = tuple(int(n) for n in recorded["shape"])
    network = rule_network(config, seed)
    images = torch.from_numpy(np.random.RandomState(seed).rand(*shape).astype(np.float32))
    last = config.depth - 1
    rows, cols = recorded["grid"].shape[-3:-1] if "grid" in recorded else (1, 1)
    ours = outputs(network(images, layers=(0, last)), shape[3] // PATCH, last, (rows, cols))
    return [compare(name, ours[name], recorded[name]) for name in _OUTPUTS if name in recorded]
