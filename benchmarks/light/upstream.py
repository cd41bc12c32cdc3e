"""VGGT as an upstream-style loop runs it: the baseline, written from a description of it.

One scene a batch; float32 weights under autocast to bfloat16; a float32 residual stream; the tokens of all layers,
frame half and global half side by side, kept in a list to the end (154 MB a frame at the published size) though one
layer is read; float32 heads; a blocking copy each way. The mathematics is that of `teachers.vggt`, whose parameter
names it has (a test loads one into the other), but the code is apart from it, so that the baseline stays when the
teacher gets faster. It is kinder than most: rotations are computed once a forward, tokens are pooled on the device.

Legend: S frames, P tokens of a frame, L patches, C channels, H heads, D = C / H.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from teachers.vggt.camera_head import CameraHead
from teachers.vggt.config import VGGTConfig
from teachers.vggt.depth_head import DepthHead
from teachers.vggt.geometry import DINOV2, PATCH, PATCH_START, REGISTERS, VGGTNetworkConfig

_SIDE = 37
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_NPC: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        count, length, dim = x_NPC.shape
        qkv = self.qkv(x_NPC).reshape(count, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = _turned(q, *turn), _turned(k, *turn)
        mixed = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, length, dim))
        return out


class _Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, qk_norm: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn, self.mlp = _Attention(dim, heads, qk_norm), _Mlp(dim)
        self.ls1, self.ls2 = _Scale(dim), _Scale(dim)

    def forward(self, x_NPC: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x_NPC = x_NPC + self.attn(self.norm1(x_NPC), turn) * self.ls1.gamma
        hidden = functional.gelu(self.mlp.fc1(self.norm2(x_NPC)))
        out: Tensor = x_NPC + self.mlp.fc2(hidden) * self.ls2.gamma
        return out


def _turned(x_NHPD: Tensor, cos_P2d: Tensor, sin_P2d: Tensor) -> Tensor:
    """Half of a head's channels turned with the row, half with the column."""
    axes = x_NHPD.reshape(*x_NHPD.shape[:-1], 2, -1)
    first, second = axes.chunk(2, dim=-1)
    return (axes * cos_P2d + torch.cat((-second, first), dim=-1) * sin_P2d).flatten(-2)


def _angles(rows: int, columns: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine for a frame's tokens, [P, 2, D/2]; camera and register tokens stand at 0, patches from 1."""
    quarter = head_dim // 4
    frequency = 100.0 ** -(torch.arange(quarter, device=device) / quarter)
    row = torch.arange(1, rows + 1, device=device).repeat_interleave(columns)
    column = torch.arange(1, columns + 1, device=device).repeat(rows)
    place = functional.pad(torch.stack((row, column), dim=-1), (0, 0, PATCH_START, 0))
    angle = (place[:, :, None] * frequency).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


class _Patches(nn.Module):
    """DINOv2 with registers; or, for small networks, its first convolution alone."""

    def __init__(self, config: VGGTNetworkConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.plain = config.patch_encoder == "conv"
        if self.plain:
            self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)
            return
        _, depth, heads = DINOV2[config.patch_encoder]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _SIDE**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, REGISTERS, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, PATCH, stride=PATCH)})
        self.blocks = nn.ModuleList(_Block(dim, heads, qk_norm=False, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images_S3HW: Tensor) -> Tensor:
        if self.plain:
            features: Tensor = self.proj(images_S3HW)
            return features.float().flatten(2).transpose(1, 2)
        grid = self.patch_embed["proj"](images_S3HW).float()
        learned = self.pos_embed[:, 1:].reshape(1, _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
        place = functional.interpolate(learned, size=grid.shape[-2:], mode="bicubic", antialias=True)
        patches = (grid + place).flatten(2).transpose(1, 2)
        count = len(patches)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        tokens = torch.cat((first, self.register_tokens.expand(count, -1, -1), patches), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)[:, 1 + REGISTERS :]
        return out


class _Aggregator(nn.Module):
    def __init__(self, config: VGGTNetworkConfig) -> None:
        super().__init__()
        dim, heads = config.embed_dim, config.heads
        self.head_dim = dim // heads
        self.patch_embed = _Patches(config)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, REGISTERS, dim))
        self.frame_blocks = nn.ModuleList(_Block(dim, heads) for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(_Block(dim, heads) for _ in range(config.depth))

    def forward(self, images_S3HW: Tensor) -> list[Tensor]:
        """Every layer's tokens, float32 [S, P, 2C]."""
        frames, _, height, width = images_S3HW.shape
        mean, std = (images_S3HW.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        patches = self.patch_embed((images_S3HW - mean) / std)
        special = torch.cat((self.camera_token, self.register_token), dim=2)[0]
        special = torch.cat((special[:1], special[1:].expand(frames - 1, -1, -1)))
        tokens = torch.cat((special, patches), dim=1)
        of_frame = _angles(height // PATCH, width // PATCH, self.head_dim, tokens.device)
        of_all = (of_frame[0].repeat(frames, 1, 1), of_frame[1].repeat(frames, 1, 1))
        kept = []
        for local, across in zip(self.frame_blocks, self.global_blocks, strict=True):
            tokens = local(tokens, of_frame)
            between = tokens
            tokens = across(tokens.reshape(1, -1, tokens.shape[-1]), of_all).view(tokens.shape)
            kept.append(torch.cat((between, tokens), dim=-1))
        return kept


class UpstreamStyle(nn.Module):
    """The network, and the loop over scenes.

    Args:
        config: geometry, views, size, heads and dtype; its layers, but for the last, and its batch size are not heeded.
        device: where the weights are made, at random, in float32.
    """

    def __init__(self, config: VGGTConfig, device: torch.device) -> None:
        super().__init__()
        network = config.built
        self.config = config
        self.grid = config.patch_grid
        with device:
            self.aggregator = _Aggregator(network)
            if network.camera is not None:
                self.camera_head = CameraHead(2 * network.embed_dim, network.camera)
            if network.depth_head is not None:
                self.depth_head = DepthHead(2 * network.embed_dim, network.depth_head)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def teach(self, scenes: Iterable[NDArray[np.uint8]], heads: bool = True) -> list[dict[str, Tensor]]:
        """Results of each scene, on the CPU; `scenes` are uint8 [S, H, W, 3]."""
        return [{name: tensor.cpu() for name, tensor in self._one(scene, heads).items()} for scene in scenes]

    def _one(self, scene: NDArray[np.uint8], heads: bool) -> dict[str, Tensor]:
        device = self.aggregator.camera_token.device
        images = torch.from_numpy(scene).to(device).permute(0, 3, 1, 2).float() / 255
        tokens = self.tokens(images)
        last = tokens[-1]
        planes = last[:, PATCH_START:].transpose(1, 2).reshape(len(last), -1, *self.grid)
        cells = (min(10, self.grid[0]), min(18, self.grid[1]))
        out = {"grid": functional.adaptive_avg_pool2d(planes, cells).half(), "special": last[:, :PATCH_START]}
        if heads and "camera" in self.config.heads:
            out["pose"] = self.camera_head(last[None, :, 0])
        if heads and "depth" in self.config.heads:
            assert self.config.network.depth_head is not None
            levels = [tokens[i][:, PATCH_START:] for i in self.config.network.depth_head.layers]
            depth, confidence = self.depth_head(levels, *self.grid)
            out |= {"depth": depth.half(), "confidence": confidence.half()}
        return out

    def tokens(self, images_S3HW: Tensor) -> list[Tensor]:
        """Every layer's tokens, float32 [S, P, 2C], of RGB in [0, 1]."""
        low = self.config.dtype == "bfloat16"
        with torch.autocast(images_S3HW.device.type, dtype=torch.bfloat16, enabled=low):
            out: list[Tensor] = self.aggregator(images_S3HW)
        return out
