"""A frozen video VAE's encoder: clips in, normalised latents out. The decoder is not read.

This is all of a Cosmos model that turns pixels into latents, apart from the teacher that stores them, so that a
teacher which runs the diffusion transformer on these latents can share it.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shards_schema.errors import ConfigError, SpecError
from teachers import execution
from teachers.cosmos.checkpoint import Description, build_network
from teachers.cosmos.config import CHANNELS_OUT, SPATIAL, CosmosConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class VideoEncoder:
    """The encoder of one VAE on one device.

    Args:
        config: the VAE, the clip's length and size, and the dtype.
        description: what `teachers.cosmos.checkpoint.describe` says of it.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: bfloat16 on the CPU; see `execution.refuse_override` too.
        WeightsError: the checkpoint does not fit.
    """

    def __init__(self, config: CosmosConfig, description: Description, device: str) -> None:
        execution.refuse_override(device)
        self.device = torch.device(device)
        self.dtype = DTYPES[config.dtype]
        if self.device.type == "cpu" and self.dtype is torch.bfloat16:
            raise ConfigError(
                "dtype: bfloat16 does not run on the CPU: torch has no avg_pool3d for it, which AutoencoderKLCosmos "
                "needs; use float32, or a GPU"
            )
        self._vae, statistics = build_network(config, description, self.dtype, self.device, decoder=False)
        lay_out(self._vae, channels_last=config.channels_last)
        why = slow_convolutions(self.device, self.dtype, torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        if why is not None and not config.channels_last:
            warnings.warn(why, stacklevel=2)
        self._temporal = config.vae.temporal
        self._mean_CT: torch.Tensor | None = None
        self._std_CT: torch.Tensor | None = None
        if statistics is not None:
            mean, std = (torch.tensor(statistics.table(which, config.latents)) for which in ("mean", "std"))
            self._mean_CT, self._std_CT = mean.to(self.device), std.to(self.device)

    def encode(self, video_B3THW: torch.Tensor) -> torch.Tensor:
        """Latents of clips in [-1, 1].

        Returns:
            float32 [B, 16, T_lat, H/8, W/8]: the distribution's mode, normalised where there are statistics.

        Raises:
            SpecError: the VAE gave another number of latent frames than 1 + (T - 1) / k, or another grid.
        """
        batch, _, frames, height, width = video_B3THW.shape
        # The same arithmetic on every GPU and in every run; TF32 would cost three digits of what float32 promises.
        with torch.inference_mode(), execution.exact(self.device), execution.steady_attention(self.device):
            latents: torch.Tensor = self._vae.encode(video_B3THW.to(self.device, self.dtype)).latent_dist.mode().float()
        want = (batch, CHANNELS_OUT, 1 + (frames - 1) // self._temporal, height // SPATIAL, width // SPATIAL)
        if tuple(latents.shape) != want or (frames - 1) % self._temporal:
            raise SpecError(f"{frames} frames of {width}x{height}: expected latents {want}, got {tuple(latents.shape)}")
        if self._mean_CT is None or self._std_CT is None:
            return latents
        if latents.shape[2] > self._mean_CT.shape[1]:
            raise SpecError(f"{latents.shape[2]} latent frames for statistics of {self._mean_CT.shape[1]}")
        times = slice(0, latents.shape[2])
        mean, std = (table[:, times, None, None] for table in (self._mean_CT, self._std_CT))
        return (latents - mean) / std


def lay_out(vae: nn.Module, *, channels_last: bool) -> None:
    """Have a VAE's convolutions read and write one memory layout, and copy for a padding that they have, no other.

    AutoencoderKLCosmos' causal convolutions repeat, join and pad before each convolution, also by nothing. Without
    these copies the bits are the same, given the contiguous memory that the copies made.
    """
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    for module in vae.modules():
        if type(module).__name__ == "CosmosCausalConv3d":
            module.forward = partial(_causal, module, layout)
        if channels_last and isinstance(module, nn.Conv3d | nn.Conv2d):
            order = layout if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=order)


def _causal(convolution: Any, layout: torch.memory_format, video_BCTHW: torch.Tensor) -> torch.Tensor:
    if convolution.temporal_pad:
        first = video_BCTHW[:, :, :1].expand(-1, -1, convolution.temporal_pad, -1, -1)
        video_BCTHW = torch.cat((first, video_BCTHW), dim=2)
    if any(convolution.spatial_pad):
        sides = (*convolution.spatial_pad, 0, 0)
        video_BCTHW = functional.pad(video_BCTHW, sides, mode=convolution.pad_mode, value=0.0)
    return nn.Conv3d.forward(convolution, video_BCTHW.contiguous(memory_format=layout))


def slow_convolutions(device: torch.device, dtype: torch.dtype, cudnn: int | None) -> str | None:
    """Why contiguous three-dimensional convolutions are slow here; None where they are not.

    Args:
        device, dtype: of the network.
        cudnn: `torch.backends.cudnn.version()`.
    """
    if device.type != "cuda" or dtype is not torch.bfloat16 or cudnn is None or not 90800 <= cudnn < 91500:
        return None
    return (
        f"cuDNN {cudnn} (9.8 to 9.14): torch does not give it bfloat16 convolutions of video in their usual layout, "
        "but unfolds them, which is slower by half; set channels_last: true for this column, or install cuDNN 9.15"
    )
