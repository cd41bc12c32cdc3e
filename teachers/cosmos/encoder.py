"""A frozen video VAE's encoder: clips in, normalised latents out. The decoder is not read.

This is all of a Cosmos model that turns pixels into latents, apart from the teacher that stores them, so that a
teacher which runs the diffusion transformer on these latents can share it.
"""

from __future__ import annotations

import torch

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
        ConfigError: bfloat16 on the CPU.
        WeightsError: the checkpoint does not fit.
    """

    def __init__(self, config: CosmosConfig, description: Description, device: str) -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[config.dtype]
        if self.device.type == "cpu" and self.dtype is torch.bfloat16:
            raise ConfigError(
                "dtype: bfloat16 does not run on the CPU: torch has no avg_pool3d for it, which AutoencoderKLCosmos "
                "needs; use float32, or a GPU"
            )
        self._vae, statistics = build_network(config, description, self.dtype, self.device, decoder=False)
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
