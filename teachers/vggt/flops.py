"""VGGT's floating-point operations for one scene (one window of S frames), by part; see `teachers.flops` for the rule.

At the published size, 294 x 518 pixels and S = 1, the aggregator takes 1.598 TFLOP, of which 1.418 are linear maps and
convolutions and 0.180 attention (spec/vggt.md section 5); the share of global attention grows with S.
"""

from __future__ import annotations

from dataclasses import dataclass

from teachers.flops import attention, block, convolution, linear
from teachers.vggt.config import VGGTConfig
from teachers.vggt.geometry import DINOV2, PATCH, PATCH_START, REGISTERS, CameraHeadConfig, DepthHeadConfig

_POSE, _STEPS = 9, 4  # numbers of a pose encoding, and refinements of it (`camera_head`)
_READOUT = 32  # channels before the last convolution of the depth head (`depth_head`)


@dataclass(frozen=True, slots=True)
class VGGTFlops:
    """Operations for one window, by part.

    Attributes:
        patches: the patch encoder on every frame.
        aggregator: the frame and global blocks that are run, without `global_attention`.
        global_attention: the two products of the global blocks' attention, which grow with the square of S.
        camera: the camera head, in all its steps; 0 where it is not run.
        depth: the depth head on every frame; 0 where it is not run.
    """

    patches: int
    aggregator: int
    global_attention: int
    camera: int
    depth: int

    @property
    def tokens(self) -> int:
        """Images to tokens, without the heads."""
        return self.patches + self.aggregator + self.global_attention

    @property
    def total(self) -> int:
        """All of it."""
        return self.tokens + self.camera + self.depth


def vggt(config: VGGTConfig) -> int:
    """Operations of the teacher for one scene."""
    return parts(config).total


def parts(config: VGGTConfig) -> VGGTFlops:
    """Operations of the teacher for one scene, by part; layers behind the last one that is read are not run."""
    network, frames, (rows, columns) = config.built, config.frames, config.patch_grid
    width, tokens = network.embed_dim, rows * columns + PATCH_START
    read = set(config.layer_indices)
    read |= set() if network.camera is None else {network.depth - 1}
    read |= set() if network.depth_head is None else set(network.depth_head.layers)
    layers = max(read) + 1
    one = block(frames, tokens, width, 4 * width)
    product = attention(1, frames * tokens, frames * tokens, width)
    everywhere = block(1, frames * tokens, width, 4 * width) - product
    camera, depth = network.camera, network.depth_head
    return VGGTFlops(
        patches=frames * _patches(network.patch_encoder, width, rows, columns),
        aggregator=layers * (one + everywhere),
        global_attention=layers * product,
        camera=0 if camera is None else _camera(camera, 2 * width, frames),
        depth=0 if depth is None else frames * _depth(depth, 2 * width, rows, columns),
    )


def _patches(encoder: str, width: int, rows: int, columns: int) -> int:
    """One frame through the patch encoder."""
    projection = convolution((rows, columns), (PATCH, PATCH), 3, width)
    if encoder == "conv":
        return projection
    _, blocks, _ = DINOV2[encoder]
    return projection + blocks * block(1, 1 + REGISTERS + rows * columns, width, 4 * width)


def _camera(config: CameraHeadConfig, width: int, frames: int) -> int:
    """One window's camera tokens: pose in, modulation, trunk, pose out, four times over."""
    step = (
        linear(frames, _POSE, width)
        + linear(frames, width, 3 * width)
        + config.depth * block(1, frames, width, 4 * width)
        + linear(frames, width, width // 2)
        + linear(frames, width // 2, _POSE)
    )
    return _STEPS * step


def _depth(config: DepthHeadConfig, width: int, rows: int, columns: int) -> int:
    """One frame through the dense prediction head: four levels, reduced, fused from coarse to fine, and read out."""
    grid, channels, features = (rows, columns), config.out_channels, config.features
    half = (-(-rows // 2), -(-columns // 2))
    levels = ((4 * rows, 4 * columns), (2 * rows, 2 * columns), grid, half)
    fused = ((8 * rows, 8 * columns), *levels[:3])
    total = sum(linear(rows * columns, width, c) for c in channels)
    total += convolution(grid, (4, 4), channels[0], channels[0])  # the two that enlarge are transposed
    total += convolution(grid, (2, 2), channels[1], channels[1])
    total += convolution(half, (3, 3), channels[3], channels[3])
    for place, (level, out) in enumerate(zip(levels, fused, strict=True)):
        units = 2 if place < 3 else 1  # the coarsest level has nothing coarser to be added to
        total += convolution(level, (3, 3), channels[place], features)
        total += units * 2 * convolution(level, (3, 3), features, features)
        total += convolution(out, (1, 1), features, features)
    image = (rows * PATCH, columns * PATCH)
    total += convolution(fused[0], (3, 3), features, features // 2)
    total += convolution(image, (3, 3), features // 2, _READOUT)
    return total + convolution(image, (1, 1), _READOUT, 2)
