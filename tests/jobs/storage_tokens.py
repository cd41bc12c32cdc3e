"""Tokens to measure storage on: heavy-tailed synthetic ones, and VGGT's with random weights.

The synthetic kinds are what is known to break small formats (Sun et al., "Massive Activations
in Large Language Models", 2024, section 5, on vision transformers): heavy tails, tokens of very different norms, and a
few channels that dwarf the others, in every token or in a few. They are float32, as a teacher computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from reports.storage.figures import Samples
from shards_schema.specs import TargetSpec
from teachers.vggt.checkpoint import fill_random
from teachers.vggt.config import VGGTConfig
from teachers.vggt.network import VGGTNetwork
from teachers.weights import WeightsConfig

CHANNELS, TOKENS = 2048, 192
"""Of a synthetic sample: VGGT's width, and about one view's 10 x 18 grid with its special tokens."""

KINDS = {
    "normal": "normal, every channel and token alike",
    "heavy": "Student-t(3), log-normal token scale, 4 channels x200",
    "massive": "Student-t(3), log-normal token scale, 4 channels x1000",
    "sinks": "normal, in 1 token of 50 2 channels x1000",
    "large": "Student-t(3), 4 channels x3e4: beyond float16",
}


def synthetic(kind: str, samples: int, seed: int) -> tuple[TargetSpec, Samples]:
    """One of `KINDS`: its spec and its samples, float32 [192, 2048]."""
    return _spec(kind, KINDS[kind], (TOKENS, CHANNELS)), partial(_synthetic, kind, samples, seed)


def _synthetic(kind: str, samples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    channels = np.random.default_rng([seed, 0]).permutation(CHANNELS)
    for sample in range(samples):
        rng = np.random.default_rng([seed, 1 + sample])
        tails = kind in ("heavy", "massive", "large")
        shape = TOKENS, CHANNELS
        x = rng.standard_t(3, shape) if tails else rng.standard_normal(shape)
        if kind in ("heavy", "massive"):
            x *= rng.lognormal(0, 1, (TOKENS, 1))
        if tails:
            x[:, channels[:4]] *= {"heavy": 200, "massive": 1000, "large": 3e4}[kind]
        elif kind == "sinks":
            x[np.ix_(rng.random(TOKENS) < 0.02, channels[:2])] *= 1000
        yield x.astype(np.float32)


def random_vggt(network: str, scenes: int, seed: int) -> Iterator[tuple[TargetSpec, Samples]]:
    """Raw patch tokens, their 10 x 18 pool, and special tokens of the last layer of VGGT with random weights.

    Args:
        network: a preset of `teachers.vggt`.
        scenes: of three generated images each (smooth shapes and texture), 518 x 294.
        seed: of weights and images.
    """
    config = VGGTConfig(weights=WeightsConfig(random=seed), network=network, heads=())
    with torch.device("meta"):
        built = VGGTNetwork(config.built)
    fill_random(built, seed, "cpu")
    built.requires_grad_(False).eval()
    patches: list[NDArray[Any]] = []
    pools: list[NDArray[Any]] = []
    special: list[NDArray[Any]] = []
    (layer,) = config.layer_indices
    for scene in range(scenes):
        out = built(_images(config, seed + scene), (layer,))
        tokens_SPC = out.tokens[layer][0]
        patches.append(tokens_SPC[:, out.patch_start :].numpy())
        special.append(tokens_SPC[:, : out.patch_start].numpy())
        maps = tokens_SPC[:, out.patch_start :].unflatten(1, config.patch_grid).permute(0, 3, 1, 2)
        pools.append(functional.adaptive_avg_pool2d(maps, (10, 18)).permute(0, 2, 3, 1).contiguous().numpy())
    for name, meaning, arrays in (
        ("patches", f"VGGT {network}, random weights, layer {layer}: patch tokens", patches),
        ("grid", f"VGGT {network}, random weights, layer {layer}: 10 x 18 pool", pools),
        ("special", f"VGGT {network}, random weights, layer {layer}: camera and register tokens", special),
    ):
        yield _spec(name, meaning, arrays[0].shape), partial(iter, arrays)


def _images(config: VGGTConfig, seed: int) -> torch.Tensor:
    """Float [1, 3, 3, H, W] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    size = config.image_height, config.width
    total = torch.zeros(3, 3, *size)
    for cells, gain in ((4, 0.5), (16, 0.25), (64, 0.15), (256, 0.1)):
        noise = torch.rand((3, 3, max(2, cells * size[0] // size[1]), cells), generator=generator)
        total += gain * functional.interpolate(noise, size, mode="bilinear", align_corners=False)
    return total.clamp(0, 1)[None]


def _spec(name: str, meaning: str, shape: tuple[int, ...]) -> TargetSpec:
    dims: Any = {2: ("token", "channel"), 3: ("view", "token", "channel"), 4: ("view", "row", "col", "channel")}
    return TargetSpec(name=name, dims=dims[len(shape)], shape=shape, dtype="float32", unit="1", meaning=meaning)
