"""Patch encoders: one image in, one token a 14 x 14 patch out.

`ConvPatches` is one strided convolution. `Dinov2` is DINOv2 with registers (Oquab et al. 2023; Darcet et al. 2023),
reduced to what gives the normalised patch tokens; its position embedding, learned on 37 x 37 patches, is resized to
the grid at hand by antialiased bicubic interpolation.

Legend: N images, L patches (row by row), C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers.vggt.geometry import DINOV2, PATCH, REGISTERS, VGGTNetworkConfig
from teachers.vggt.layers import Block

_SIDE = 37
"""Patches a side of the 518-pixel square that the position embedding was learned on."""


class ConvPatches(nn.Module):
    """A linear map of each patch's pixels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Float [N, 3, H, W] to float32 [N, L, C]."""
        features: Tensor = self.proj(images_N3HW)
        # Under autocast the projection is bfloat16; the residual stream that starts here is not.
        return features.float().flatten(2).transpose(1, 2)


class Dinov2(nn.Module):
    """DINOv2 with registers, up to the final LayerNorm of the patch tokens."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _SIDE**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, REGISTERS, dim))
        # Only training reads it; it is here because the checkpoint has it, and loading is strict.
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = ConvPatches(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._resized: dict[object, Tensor] = {}

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Normalised float [N, 3, H, W] to float32 [N, L, C]."""
        count, _, height, width = images_N3HW.shape
        patches = self.patch_embed(images_N3HW) + self._positions(height // PATCH, width // PATCH)
        first = self.cls_token + self.pos_embed[:, :1]
        tokens = torch.cat((first.expand(count, -1, -1), self.register_tokens.expand(count, -1, -1), patches), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens[:, 1 + REGISTERS :])
        return out

    def _positions(self, rows: int, cols: int) -> Tensor:
        """The position embedding of `rows` x `cols` patches: [1, rows * cols, C]; that of weights at rest is kept."""
        learned = self.pos_embed
        if learned.requires_grad:
            return _resized(learned, rows, cols)
        key = (rows, cols, learned.device, learned.data_ptr())
        if key not in self._resized:
            with torch.inference_mode(False):
                self._resized = {key: _resized(learned, rows, cols)}
        return self._resized[key]


def _resized(pos_embed: Tensor, rows: int, cols: int) -> Tensor:
    learned = pos_embed[:, 1:].float()
    if (rows, cols) == (_SIDE, _SIDE):
        return learned
    grid = learned.reshape(1, _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
    return functional.interpolate(grid, size=(rows, cols), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


def patch_encoder(config: VGGTNetworkConfig) -> nn.Module:
    """The patch encoder that `config` names: [N, 3, H, W], normalised, to [N, L, C]."""
    if config.patch_encoder == "conv":
        return ConvPatches(config.embed_dim)
    return Dinov2(*DINOV2[config.patch_encoder])
