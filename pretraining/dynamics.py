"""CV8x8x8 of a small size, trained as a video autoencoder on the front camera's clips.

The loss is the mean absolute error of the pixels, and that of their change from frame to frame. A clip is seen whole or
halved, since recipes differ in the size that they encode, and cropped, since a network of convolutions learns as much
from a crop. The statistics of the latents are those of the clips that it was trained on, one mean and one deviation a
channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pretraining import steps
from pretraining.footage import Footage
from pretraining.steps import Recipe
from synthetic.geometry import rng_of
from teachers import files, images
from teachers.cosmos.config import CHANNELS_OUT, VAES

NETWORK: dict[str, Any] = {
    **VAES["cv8x8x8"].fixed,
    "encoder_block_out_channels": [32, 64, 64, 64],
    "decode_block_out_channels": [32, 64, 64, 64],
    "num_layers": 1,
}
"""Arguments of diffusers' class."""
CROP = 64, 128
"""Pixels down and across of what is seen of a clip."""


def untrained(seed: int) -> Any:
    """The network before its first step, which is the one of random weights."""
    import diffusers

    kind: Any = diffusers.AutoencoderKLCosmos
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
        network = kind(**NETWORK, latents_mean=None, latents_std=None)
    files.draw(network, seed)
    return network


def train(
    recipe: Recipe,
    footage: Sequence[Footage],
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> Any:
    """The network that has seen `footage`, frozen, its config with the statistics of its latents."""
    network = untrained(recipe.seed)
    steps.quieten(network, "conv2.conv_t.weight", "to_out.0.weight", "decoder.conv_out.conv_t.weight")

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = rng_of(recipe.seed, "dynamics", step)
        halved = rng.uniform() < 0.5
        chosen = rng.choice(len(footage), recipe.dynamics_clips, replace=recipe.dynamics_clips > len(footage))
        height, width = (2 * side if halved else side for side in CROP)
        crops = []
        for i in chosen:
            whole = footage[i].video
            top = int(rng.integers(0, whole.shape[1] - height + 1))
            left = int(rng.integers(0, whole.shape[2] - width + 1))
            crop = whole[:, top : top + height, left : left + width]
            crops.append(crop[:, :, ::-1] if rng.uniform() < 0.5 else crop)
        video_B3THW = images.to_video(torch.from_numpy(np.stack(crops)), torch.float32)
        if halved:
            video_B3THW = functional.avg_pool3d(video_B3THW, (1, 2, 2))
        error = network(video_B3THW).sample - video_B3THW
        return {"pixels": error.abs().mean(), "change": error.diff(dim=2).abs().mean()}

    steps.train(network, recipe.dynamics_steps, recipe.dynamics_rate, loss_at, progress)
    mean, std = statistics(network, footage)
    network.register_to_config(latents_mean=mean, latents_std=std)
    return network


def statistics(network: Any, footage: Sequence[Footage]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over whole clips."""
    with torch.inference_mode():
        latents = torch.cat([network.encode(video(drive)).latent_dist.mode() for drive in footage])
    flat = latents.transpose(0, 1).reshape(CHANNELS_OUT, -1).double()
    return flat.mean(1).tolist(), flat.std(1).tolist()


def video(footage: Footage) -> Tensor:
    """The clip as the network takes it: float32 [1, 3, 9, 144, 256] in [-1, 1]."""
    return images.to_video(torch.from_numpy(footage.video[None]), torch.float32)
