"""The transformer block that every part of VGGT is made of, and the rotary position embedding of its patches.

A pre-norm block with LayerScale: x + g1 * attention(LN x), then x + g2 * MLP(LN x). Parameter names are those of the
published checkpoint. Attention is PyTorch's fused one; under autocast the residual stream stays float32, because
LayerNorm and the LayerScale gains are.

Legend: N sequences, L tokens, C channels, H heads, D = C / H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers.device import kept


class Rotation(NamedTuple):
    """Cosine and sine of the rotary angles, each float32 [L, 1, 2, D/4]: token, any head, axis (row, column),
    frequency."""

    cos: Tensor
    sin: Tensor


@kept
def rotary(rows: int, cols: int, special: int, head_dim: int, frames: int, device: torch.device) -> Rotation:
    """The rotation of each frame's tokens: `special` unrotated ones, then `rows` x `cols` patches, row by row.

    Two-axis RoPE (Su et al. 2021; Heo et al. 2024): half of a head's channels turn with the row, half with the
    column, by position * 100^(-4i/D). Patch positions count from 1; special tokens stand at 0.
    """
    quarter = head_dim // 4
    frequency = 100.0 ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    grid = torch.cartesian_prod(
        torch.arange(1, rows + 1, device=device, dtype=torch.float32),
        torch.arange(1, cols + 1, device=device, dtype=torch.float32),
    )
    position = torch.cat((grid.new_zeros(special, 2), grid))
    angle = (position[:, :, None] * frequency).repeat(frames, 1, 1)[:, None]
    return Rotation(angle.cos(), angle.sin())


def rotate(x_NLHD: Tensor, rotation: Rotation) -> Tensor:
    """`x_NLHD` with each pair of channels (i, i + D/4) of each axis turned by the token's angle."""
    first, second = x_NLHD.reshape(*x_NLHD.shape[:-1], 2, 2, -1).unbind(-2)
    cos, sin = rotation
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2)
    return turned.flatten(-3)


class Attention(nn.Module):
    """Multi-head self-attention; with `qk_norm`, queries and keys are layer-normed per head before they are rotated."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_NLC: Tensor, rotation: Rotation | None = None) -> Tensor:
        """[N, L, C] of the same shape."""
        qkv: Tensor = self.qkv(x_NLC)
        q, k, v = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1).unbind(2)
        # As [N, L, H, D] autocast's float32 is contiguous, and a norm over D copies nothing; then heads come first.
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (x.transpose(1, 2) for x in (q.to(v.dtype), k.to(v.dtype), v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., out]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned gain a channel (Touvron et al. 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] of the same shape, in the wider of the two dtypes."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim, dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x_NLC: Tensor, rotation: Rotation | None = None) -> Tensor:
        """[N, L, C] of the same shape."""
        x_NLC = x_NLC + self.ls1(self.attn(self.norm1(x_NLC), rotation))
        out: Tensor = x_NLC + self.ls2(self.mlp(self.norm2(x_NLC)))
        return out
