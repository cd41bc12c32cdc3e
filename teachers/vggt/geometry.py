"""The geometry of a VGGT network as frozen config, and the presets. No torch here.

`1b` is the published network. Every size can be set, so that the same code runs scaled down on two cores; what is
fixed is what the published weights fix: patches of 14 pixels, 4 register tokens, MLPs of 4 times the width, two-axis
RoPE of base 100, camera refinement in 4 steps.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from shards_schema.inputs.models import StrictModel

PATCH = 14
"""Pixels a side of a patch."""
REGISTERS = 4
"""Register tokens of a frame, after the camera token."""
PATCH_START = 1 + REGISTERS
"""Index of the first patch token of a frame: camera token, registers, then patches row by row."""

PatchEncoder = Literal["conv", "dinov2_vits14_reg", "dinov2_vitb14_reg", "dinov2_vitl14_reg"]

DINOV2: dict[str, tuple[int, int, int]] = {
    "dinov2_vits14_reg": (384, 12, 6),
    "dinov2_vitb14_reg": (768, 12, 12),
    "dinov2_vitl14_reg": (1024, 24, 16),
}
"""Width, blocks and attention heads of the DINOv2 encoders with registers (Oquab et al. 2023, table 16)."""


class CameraHeadConfig(StrictModel):
    """The camera head: `depth` blocks of `heads` attention heads over the camera tokens of all frames."""

    depth: PositiveInt = 4
    heads: PositiveInt = 16


class DepthHeadConfig(StrictModel):
    """The DPT depth head."""

    layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    """The four aggregator layers that it reads, shallow to deep."""
    out_channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (256, 512, 1024, 1024)
    """Channels of the four levels, fine to coarse."""
    features: PositiveInt = 256
    """Channels in which the levels are fused."""

    @model_validator(mode="after")
    def _sin_cos_fits(self) -> DepthHeadConfig:
        # The position embedding splits the channels in sine and cosine of two axes.
        for name, channels in (*(("out_channels", c) for c in self.out_channels), ("features / 2", self.features // 2)):
            if channels % 4:
                raise ValueError(f"depth head: {name} must be a multiple of 4, got {channels}")
        return self


class VGGTNetworkConfig(StrictModel):
    """The geometry of a VGGT network; the defaults are the published one."""

    embed_dim: PositiveInt = 1024
    """C, the width of the aggregator; tokens that it gives out have 2C channels."""
    depth: PositiveInt = 24
    """Number of frame blocks, and of global blocks."""
    heads: PositiveInt = 16
    """Attention heads of an aggregator block."""
    patch_encoder: PatchEncoder = "dinov2_vitl14_reg"
    """How a patch becomes a token: one convolution, or a DINOv2 encoder of the same width."""
    camera: CameraHeadConfig | None = CameraHeadConfig()
    """The camera head, None for a network without one."""
    depth_head: DepthHeadConfig | None = DepthHeadConfig()
    """The depth head, None for a network without one."""

    @model_validator(mode="after")
    def _fits(self) -> VGGTNetworkConfig:
        # RoPE rotates pairs of channels along two axes: a head needs a multiple of 4 channels.
        if self.embed_dim % (4 * self.heads):
            raise ValueError(
                f"network: embed_dim must be a multiple of 4 x heads, got {self.embed_dim} for {self.heads} heads"
            )
        if self.patch_encoder in DINOV2 and DINOV2[self.patch_encoder][0] != self.embed_dim:
            raise ValueError(
                f"network: {self.patch_encoder} is {DINOV2[self.patch_encoder][0]} wide, embed_dim is {self.embed_dim}"
            )
        if self.camera is not None and (2 * self.embed_dim) % self.camera.heads:
            raise ValueError(
                f"network: camera head: width {2 * self.embed_dim} is not a multiple of {self.camera.heads} heads"
            )
        if self.depth_head is not None and not all(0 <= i < self.depth for i in self.depth_head.layers):
            raise ValueError(
                f"network: depth_head.layers must lie in 0..{self.depth - 1}, got {list(self.depth_head.layers)}"
            )
        return self


PRESETS: dict[str, VGGTNetworkConfig] = {
    "1b": VGGTNetworkConfig(),
    "small": VGGTNetworkConfig(
        embed_dim=384,
        depth=4,
        heads=6,
        patch_encoder="dinov2_vits14_reg",
        camera=CameraHeadConfig(depth=2, heads=6),
        depth_head=DepthHeadConfig(layers=(0, 1, 2, 3), out_channels=(16, 32, 64, 64), features=32),
    ),
    "tiny": VGGTNetworkConfig(
        embed_dim=64,
        depth=4,
        heads=4,
        patch_encoder="conv",
        camera=CameraHeadConfig(depth=1, heads=4),
        depth_head=DepthHeadConfig(layers=(0, 1, 2, 3), out_channels=(16, 32, 32, 32), features=16),
    ),
    "town": VGGTNetworkConfig(
        embed_dim=96,
        depth=4,
        heads=4,
        patch_encoder="conv",
        camera=CameraHeadConfig(depth=1, heads=4),
        depth_head=DepthHeadConfig(layers=(0, 1, 2, 3), out_channels=(32, 32, 48, 48), features=32),
    ),
}
"""`1b`: the published network. `small`: 53 M parameters, every part present. `tiny`: 0.8 M, for a CPU. `town`: 1.9 M,
whose weights come with the project (`teachers.town`)."""
