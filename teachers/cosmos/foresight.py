"""What a frozen Video2World transformer expects to see: its hidden states, from the past alone.

It is given the latents up to now, clean, and noise for those to come, as at the first step of generating a video, and
block k's tokens are read. One forward, no text encoder, no scheduler, nothing generated.

    x[:, :, :given] = latents           mask 1   clock 1e-4
    x[:, :, given:] = t * noise         mask 0   clock t = sigma / (1 + sigma)

The released training form is (z0 + sigma * noise) * (1 - t) in Predict2 and (1 - t) * z0 + t * noise in 2.5; with
nothing known of the future z0 is 0, and both are t * noise. Text is the null text of training, zeros; since all its
tokens are equal, one is as good as 512. ``fps`` stays unset: the released models do not modulate by it.

Letters: B scenes, C latent channels, T latents (given + horizon), H W latent cells, R Q token rows, columns, D width.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from teachers.cosmos.config import CHANNELS_OUT
from teachers.cosmos.encoder import DTYPES
from teachers.cosmos.predict_config import CosmosPredictConfig
from teachers.cosmos.transformer import TransformerDescription, build_transformer, tokens_of

NORM_EPS = 1e-6

RULE = {
    "read": "output of the block, LayerNorm over channels without gain or bias (eps 1e-6), mean over token_pool",
    "noise": "standard normal, numpy Philox, key sha256(seed:token)[:16], drawn as [time, channel, row, col]",
    "to_come": "t * noise",
    "text": "zeros, one token",
    "fps": None,
    "padding_mask": "zeros",
}
"""The rules in words, for the records. Changing what this file does means changing them."""


class Foresight:
    """One transformer, up to the block that is read, on one device.

    Args:
        config: block, noise and pools.
        description: what `teachers.cosmos.transformer.describe_transformer` says of it.
        device: "cpu", "cuda", "cuda:1".

    Raises:
        WeightsError: the checkpoint does not fit.
    """

    def __init__(self, config: CosmosPredictConfig, description: TransformerDescription, device: str) -> None:
        import diffusers

        self._attention: Any = diffusers.attention_backend
        self.config = config
        self.device = torch.device(device)
        self.dtype = DTYPES[config.dtype]
        self.network = build_transformer(config, description, self.dtype, self.device)
        projected = self.network.config.use_crossattn_projection
        self._text_width = self.network.config["crossattn_proj_in_channels" if projected else "text_embed_dim"]

    def tokens(self, latents_BCTHW: torch.Tensor, noise_BCTHW: torch.Tensor) -> torch.Tensor:
        """The tokens after block k.

        Args:
            latents_BCTHW: float32, normalised, of the past: T is the config's `given`.
            noise_BCTHW: float32, standard normal: T is the config's `horizon`.

        Returns:
            `dtype` [B, T, R, Q, D], T = given + horizon.
        """
        batch, _, given, height, width = latents_BCTHW.shape
        x_BCTHW = torch.cat([latents_BCTHW, self.config.time * noise_BCTHW.to(latents_BCTHW)], dim=2)
        times = x_BCTHW.shape[2]
        masks_B2THW = x_BCTHW.new_zeros(batch, 2, times, height, width)  # conditioning, padding
        masks_B2THW[:, 0, :given] = 1.0
        clock_B1T11 = x_BCTHW.new_full((batch, 1, times, 1, 1), self.config.time)
        clock_B1T11[:, :, :given] = self.config.given_time
        # torch's own attention, whatever DIFFUSERS_ATTN_BACKEND says: which of its kernels is the config's to choose
        with torch.inference_mode(), self._attention("native"):
            sample_BETHW = self.network(
                hidden_states=x_BCTHW.to(self.dtype),
                timestep=clock_B1T11,  # float32: bfloat16 would round t = 0.98765 to 0.98828
                encoder_hidden_states=x_BCTHW.new_zeros(batch, 1, self._text_width, dtype=self.dtype),
                condition_mask=masks_B2THW.to(self.dtype),
                fps=None,
                return_dict=False,
            )[0]
        return tokens_of(sample_BETHW)

    def features(self, latents_BCTHW: torch.Tensor, noise_BCTHW: torch.Tensor) -> torch.Tensor:
        """The tokens, normalised and pooled: float32 [B, T, R / r, Q / q, D] for token_pool (r, q)."""
        tokens_BTRQD = self.tokens(latents_BCTHW, noise_BCTHW).float()
        normal_BTRQD = functional.layer_norm(tokens_BTRQD, tokens_BTRQD.shape[-1:], eps=NORM_EPS)
        rows, columns = self.config.token_pool
        batch, times, height, width, channels = normal_BTRQD.shape
        windows = (batch, times, height // rows, rows, width // columns, columns, channels)
        return normal_BTRQD.reshape(windows).mean(dim=(3, 5))


def noise(token: str, seed: int, times: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Standard normal [16, times, H, W] for the scene `token`: a function of the arguments alone.

    Drawn time by time, so that a longer horizon begins with the noise of a shorter one.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}:{token}".encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    drawn_TCHW = generator.standard_normal((times, CHANNELS_OUT, *grid), dtype=np.float32)
    return np.ascontiguousarray(drawn_TCHW.transpose(1, 0, 2, 3))
