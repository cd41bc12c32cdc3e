"""The depth head: a dense prediction transformer (Ranftl et al. 2021) over four aggregator layers.

The four layers become maps at 4, 2, 1 and 1/2 times the patch grid, which are fused coarse to fine, resized to the
image, and read out as depth = exp(x) and confidence = 1 + exp(y). A sine-cosine embedding of the pixel's place in the
image, scaled by 0.1, is added to each level and before the read-out. Always float32. Frames do not see each other here,
so they are run in chunks that bound the memory (a 128-channel map of a 294 x 518 frame is 78 MB).

Legend: N frames, L patches, C channels of the tokens, h x w patch grid, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers.device import kept
from teachers.vggt.geometry import PATCH, DepthHeadConfig

_CHUNK = 8
_READOUT = 32
_EMBEDDING_GAIN = 0.1
_EMBEDDING_BASE = 100.0


def _sin_cos(position: Tensor, channels: int) -> Tensor:
    """Sine then cosine of `position` [n] at channels/2 frequencies 100^(-2i/channels): float32 [channels, n]."""
    half = channels // 2
    frequency = _EMBEDDING_BASE ** -(torch.arange(half, dtype=torch.float64, device=position.device) / half)
    angle = frequency[:, None] * position.double()
    return torch.cat((angle.sin(), angle.cos())).float()


def add_position(map_NChw: Tensor, aspect: float) -> Tensor:
    """`map_NChw` plus the embedding of each cell's centre; the first half of the channels has x, the second y.

    Coordinates span the image, whose half diagonal is 1: x in +-a/sqrt(1 + a^2), y in +-1/sqrt(1 + a^2), a = W/H.
    """
    channels, rows, cols = map_NChw.shape[-3:]
    return torch.add(map_NChw, _places(channels, rows, cols, aspect, map_NChw.device), alpha=_EMBEDDING_GAIN)


@kept
def _places(channels: int, rows: int, cols: int, aspect: float, device: torch.device) -> Tensor:
    """The embedding of each cell's centre: float32 [channels, rows, cols]."""
    diagonal = (aspect**2 + 1) ** 0.5

    def centres(count: int, span: float) -> Tensor:
        end = span * (count - 1) / count
        return torch.linspace(-end, end, count, device=device)

    x = _sin_cos(centres(cols, aspect / diagonal), channels // 2)[:, None, :].expand(-1, rows, -1)
    y = _sin_cos(centres(rows, 1 / diagonal), channels // 2)[:, :, None].expand(-1, -1, cols)
    return torch.cat((x, y))


def _resize(map_NChw: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(map_NChw, size=size, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions on the rectified input, added to the *rectified* input.

    The published network rectifies in place, so that its skip path is rectified too; the weights were trained so.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] of the same shape."""
        x = functional.relu(x)
        out: Tensor = x + self.conv2(functional.relu(self.conv1(x)))
        return out


class Fusion(nn.Module):
    """The coarser map, plus this level's, refined and resized."""

    def __init__(self, features: int, *, coarsest: bool) -> None:
        super().__init__()
        if not coarsest:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: tuple[int, int]) -> Tensor:
        """[N, features, h, w] to [N, features, *size]."""
        fused = level if coarser is None else coarser + self.resConfUnit1(level)
        out: Tensor = self.out_conv(_resize(self.resConfUnit2(fused), size))
        return out


class Scratch(nn.Module):
    """The convolutional part; the name is the checkpoint's."""

    def __init__(self, config: DepthHeadConfig) -> None:
        super().__init__()
        features = config.features
        for level, channels in enumerate(config.out_channels, start=1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
        for level in (1, 2, 3, 4):
            self.add_module(f"refinenet{level}", Fusion(features, coarsest=level == 4))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, _READOUT, 3, padding=1), nn.ReLU(), nn.Conv2d(_READOUT, 2, 1)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Four maps, fine to coarse, to [N, features/2, 2h, 2w] of the finest one's h x w."""
        reduced: list[Tensor] = [self.get_submodule(f"layer{i}_rn")(level) for i, level in enumerate(levels, start=1)]
        rows, cols = reduced[0].shape[-2:]
        sizes = [(2 * rows, 2 * cols), *(_size(level) for level in reduced[:3])]
        fused: Tensor | None = None
        for level in (4, 3, 2, 1):
            fused = self.get_submodule(f"refinenet{level}")(reduced[level - 1], fused, sizes[level - 1])
        out: Tensor = self.output_conv1(fused)
        return out


def _size(map_NChw: Tensor) -> tuple[int, int]:
    return map_NChw.shape[-2], map_NChw.shape[-1]


class DepthHead(nn.Module):
    """Patch tokens of four layers to depth and its confidence."""

    def __init__(self, dim: int, config: DepthHeadConfig) -> None:
        super().__init__()
        channels = config.out_channels
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config)

    def forward(self, levels_NLC: Sequence[Tensor], rows: int, cols: int) -> tuple[Tensor, Tensor]:
        """Patch tokens of the four layers, each float32 [N, rows * cols, C], to depth and confidence.

        Returns:
            Depth, float32 [N, H, W], in the units of the pose encoding's translation; confidence of the same shape,
            at least 1.
        """
        starts = range(0, len(levels_NLC[0]), _CHUNK)
        maps = torch.cat([self._chunk([x[i : i + _CHUNK] for x in levels_NLC], rows, cols) for i in starts])
        return maps[:, 0].exp(), 1 + maps[:, 1].exp()

    def _chunk(self, levels_NLC: Sequence[Tensor], rows: int, cols: int) -> Tensor:
        """The two channels before their activation: [N, 2, H, W]."""
        aspect = cols / rows
        maps = []
        for tokens, project, resize in zip(levels_NLC, self.projects, self.resize_layers, strict=True):
            grid = self.norm(tokens).transpose(1, 2).unflatten(2, (rows, cols))
            maps.append(resize(add_position(project(grid), aspect)))
        image = _resize(self.scratch(maps), (rows * PATCH, cols * PATCH))
        out: Tensor = self.scratch.output_conv2(add_position(image, aspect))
        return out
