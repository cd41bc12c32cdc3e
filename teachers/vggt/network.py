"""The VGGT network: images in, aggregator tokens, pose encodings and depth out.

An independent implementation of Wang et al., "VGGT: Visual Geometry Grounded Transformer" (CVPR 2025), with the
parameter names of the published checkpoint, held against recorded outputs of the published code by its tests. Left out
on purpose: the point head and the track head, which no target needs; and training, but for `VGGTNetwork.run`.

The heads run in float32 whatever surrounds them; the aggregator runs under autocast when asked to.

Legend: B windows, S frames (the first is the reference), P tokens of a frame, C = embed_dim, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards_schema.errors import ConfigError
from teachers.vggt.aggregator import Aggregator
from teachers.vggt.camera_head import CameraHead
from teachers.vggt.depth_head import DepthHead
from teachers.vggt.geometry import PATCH, PATCH_START, VGGTNetworkConfig

REVISION = 1
"""Counts changes of this network that change its outputs; part of the teacher's identity."""


@dataclass(frozen=True, slots=True, eq=False)
class VGGTOutput:
    """What the network gives for B windows of S frames; all float32.

    Attributes:
        tokens: [B, S, P, 2C] by layer, of the layers asked for and no others.
        patch_start: index of the first patch token; before it stand the camera token and the registers.
        pose_enc: [B, S, 9] (see `camera_head`), None without a camera head.
        depth: [B, S, H, W], None without a depth head.
        depth_conf: [B, S, H, W], at least 1, None without a depth head.
    """

    tokens: dict[int, Tensor]
    patch_start: int
    pose_enc: Tensor | None
    depth: Tensor | None
    depth_conf: Tensor | None


class VGGTNetwork(nn.Module):
    """VGGT of any geometry. Build it under ``torch.device("meta")`` when weights are to be read anyway."""

    def __init__(self, config: VGGTNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        if config.camera is not None:
            self.camera_head = CameraHead(2 * config.embed_dim, config.camera)
        if config.depth_head is not None:
            self.depth_head = DepthHead(2 * config.embed_dim, config.depth_head)

    def forward(
        self, images_BS3HW: Tensor, layers: Collection[int] = (), autocast: torch.dtype | None = None
    ) -> VGGTOutput:
        """Run the network.

        Args:
            images_BS3HW: float [B, S, 3, H, W], RGB in [0, 1]; H and W multiples of 14.
            layers: aggregator layers whose tokens are wanted, 0 to depth - 1; others are kept only while a head
                needs them.
            autocast: the dtype in which the aggregator's matrix products run; None for float32.

        Raises:
            ConfigError: images or layers that the network cannot take.
        """
        with torch.inference_mode():
            return self.run(images_BS3HW, layers, autocast)

    def run(
        self, images_BS3HW: Tensor, layers: Collection[int] = (), autocast: torch.dtype | None = None
    ) -> VGGTOutput:
        """As `forward`, with gradients: for who trains it (`pretraining`)."""
        check_images(images_BS3HW)
        wanted = check_layers(layers, self.config.depth)
        kind = images_BS3HW.device.type
        with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
            tokens = self.aggregator(images_BS3HW.float(), wanted | self._read_by_heads())
        with torch.autocast(kind, enabled=False):
            pose_enc = self._pose(tokens)
            depth, depth_conf = self._depth(tokens, images_BS3HW.shape)
        return VGGTOutput({i: tokens[i] for i in sorted(wanted)}, PATCH_START, pose_enc, depth, depth_conf)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of patch encoder and aggregator, which do nearly all of the work."""
        aggregator = self.aggregator
        encoder = getattr(aggregator.patch_embed, "blocks", ())
        return [*encoder, *aggregator.frame_blocks, *aggregator.global_blocks]

    def _read_by_heads(self) -> frozenset[int]:
        camera = frozenset() if self.config.camera is None else frozenset({self.config.depth - 1})
        depth = frozenset() if self.config.depth_head is None else frozenset(self.config.depth_head.layers)
        return camera | depth

    def _pose(self, tokens: dict[int, Tensor]) -> Tensor | None:
        if self.config.camera is None:
            return None
        pose: Tensor = self.camera_head(tokens[self.config.depth - 1][:, :, 0])
        return pose

    def _depth(self, tokens: dict[int, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if self.config.depth_head is None:
            return None, None
        batch, frames, _, height, width = shape
        levels = [tokens[i][:, :, PATCH_START:].flatten(0, 1) for i in self.config.depth_head.layers]
        depth, conf = self.depth_head(levels, height // PATCH, width // PATCH)
        return depth.unflatten(0, (batch, frames)), conf.unflatten(0, (batch, frames))


def check_images(images: Tensor) -> None:
    """Refuse what is not a float [B, S, 3, H, W] with H and W positive multiples of 14.

    Raises:
        ConfigError: it is not.
    """
    shape = tuple(images.shape)
    if len(shape) != 5 or shape[2] != 3 or 0 in shape or not images.is_floating_point():
        raise ConfigError(f"VGGT: expected float images [B, S, 3, H, W] in [0, 1], got {images.dtype} {list(shape)}")
    if shape[3] % PATCH or shape[4] % PATCH:
        raise ConfigError(f"VGGT: image height and width must be multiples of {PATCH}, got {shape[3]} x {shape[4]}")


def check_layers(layers: Collection[int], depth: int) -> frozenset[int]:
    """`layers` as a set, all of them within 0 to depth - 1.

    Raises:
        ConfigError: one is not.
    """
    bad = sorted(i for i in layers if not 0 <= i < depth)
    if bad:
        raise ConfigError(f"VGGT: layers must lie in 0..{depth - 1} (this network has {depth}), got {bad}")
    return frozenset(layers)
