"""The aggregator: alternating attention within each frame and across all frames (Wang et al. 2025, section 3.2).

Layer i is a frame block, then a global block. Its output is the residual stream after either of them, side by side:
channels [0, C) are the frame block's, [C, 2C) the global block's, with no norm applied. Only the layers that are asked
for are kept; all 24 of a 294 x 518 frame would be 154 MB.

Legend: B windows, S frames, P tokens of a frame (camera, 4 registers, patches row by row), C channels.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from teachers.device import constant, kept
from teachers.vggt.geometry import PATCH, PATCH_START, REGISTERS, VGGTNetworkConfig
from teachers.vggt.layers import Block, rotary
from teachers.vggt.patch_encoder import patch_encoder

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics of RGB in [0, 1], on which DINOv2 was trained."""


class Aggregator(nn.Module):
    """Images to tokens."""

    def __init__(self, config: VGGTNetworkConfig) -> None:
        super().__init__()
        self.head_dim = config.embed_dim // config.heads
        self.patch_embed = patch_encoder(config)
        # Two variants of each: of the first frame, which is the reference, and of every other one.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, config.embed_dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, REGISTERS, config.embed_dim))
        self.frame_blocks = nn.ModuleList(
            Block(config.embed_dim, config.heads, qk_norm=True) for _ in range(config.depth)
        )
        self.global_blocks = nn.ModuleList(
            Block(config.embed_dim, config.heads, qk_norm=True) for _ in range(config.depth)
        )

    def forward(self, images_BS3HW: Tensor, keep: Collection[int]) -> dict[int, Tensor]:
        """The tokens of the layers in `keep`: float32 [B, S, P, 2C] by layer index.

        Layers behind the last one of `keep` are not run.
        """
        batch, frames, _, height, width = images_BS3HW.shape
        rows, cols = height // PATCH, width // PATCH
        mean, std = _statistics(images_BS3HW.device)
        patches_BSLC: Tensor = self.patch_embed(((images_BS3HW - mean) / std).flatten(0, 1)).unflatten(0, (batch, -1))
        special_BSKC = self._special(batch, frames)
        tokens = torch.cat((special_BSKC, patches_BSLC), dim=2)
        length = tokens.shape[2]

        of_frame = rotary(rows, cols, PATCH_START, self.head_dim, 1, tokens.device)
        of_window = rotary(rows, cols, PATCH_START, self.head_dim, frames, tokens.device)
        kept: dict[int, Tensor] = {}
        for index in range(max(keep, default=-1) + 1):
            local_BSPC: Tensor = self.frame_blocks[index](tokens.flatten(0, 1), of_frame).view(tokens.shape)
            tokens = self.global_blocks[index](local_BSPC.flatten(1, 2), of_window).unflatten(1, (frames, length))
            if index in keep:
                kept[index] = torch.cat((local_BSPC, tokens), dim=-1)
        return kept

    def _special(self, batch: int, frames: int) -> Tensor:
        """Camera and register tokens of every frame: [B, S, 5, C]."""
        variants = torch.cat((self.camera_token, self.register_token), dim=2)
        first, other = variants[:, :1], variants[:, 1:]
        return torch.cat((first, other.expand(-1, frames - 1, -1, -1)), dim=1).expand(batch, -1, -1, -1)


@kept
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an image's channels, each float32 [3, 1, 1]."""
    return constant(_MEAN, device)[:, None, None], constant(_STD, device)[:, None, None]
