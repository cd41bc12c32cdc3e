"""From a network's output to a scene's target arrays: pooled tokens, special tokens, pose, depth.

Tokens are stored raw: un-normalised, both halves of the channels in order (frame block, then global block). Pooling is
an adaptive average in float32 straight from the patch grid, given as float16 or as it is (`pool_dtype`). Special tokens
are the heavy-tailed ones, so they stay float32. A value that float16 cannot hold becomes infinite, which the writer
quarantines; it is never clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shards_schema.specs import TargetSpec
from teachers.vggt.camera_head import POSE
from teachers.vggt.config import VGGTConfig
from teachers.vggt.geometry import PATCH_START
from teachers.vggt.network import VGGTOutput

CONF_FLOOR = 2.0**-23
"""Confidence - 1 is stored no lower than this, float32's step above 1: below it, 1 + exp(y) has rounded to 1."""


def target_specs(config: VGGTConfig) -> tuple[TargetSpec, ...]:
    """The targets of `config`, in the order in which they are written.

    Axes of different lengths have different names, so that a column opens as one xarray dataset.
    """
    views, channels = config.frames, 2 * config.network.embed_dim
    order = f"views: steps {list(config.window)} x {list(config.views)}, the first is the reference"
    specs: list[TargetSpec] = []

    def add(name: str, dims: str, shape: tuple[int, ...], dtype: str, unit: str, meaning: str) -> None:
        specs.append(TargetSpec.of(name, f"view {dims}", (views, *shape), dtype, unit, f"{meaning}; {order}"))

    for layer in config.layer_indices:
        for name, pool in config.pools.items():
            cells = (pool.rows * pool.cols,) if pool.flat else (pool.rows, pool.cols)
            dims = f"{name}_token channel" if pool.flat else f"{name}_row {name}_col channel"
            what = f"patch tokens of aggregator layer {layer} (frame, global half), {pool.rows} x {pool.cols} average"
            add(f"l{layer}_{name}", dims, (*cells, channels), config.pool_dtype, "1", what)
        what = f"camera token and 4 register tokens of aggregator layer {layer}"
        add(f"l{layer}_special", "special channel", (PATCH_START, channels), "float32", "1", what)
    if "camera" in config.heads:
        what = "camera from reference: translation (not metric), quaternion x y z w, vertical, horizontal FoV (rad)"
        add("pose_enc", "pose", (POSE,), "float32", "1", what)
    if "depth" in config.heads:
        cells = config.image_height // config.depth_cell, config.width // config.depth_cell
        cell = f"{config.depth_cell} x {config.depth_cell} pixel cell"
        add("depth", "cell_row cell_col", cells, "float16", "log(1)", f"log depth, not metric: median of a {cell}")
        what = f"log(confidence - 1), at least log(2^-23): median of a {cell}"
        add("depth_conf", "cell_row cell_col", cells, "float16", "log(1)", what)
    return tuple(specs)


def to_tensors(config: VGGTConfig, out: VGGTOutput) -> dict[str, Tensor]:
    """The targets of the B windows in `out` by name, each [B, ...], as `target_specs` says; where `out` is."""
    batched: dict[str, Tensor] = {}
    for layer in config.layer_indices:
        tokens_BSPC = out.tokens[layer]
        for name, pool in config.pools.items():
            pooled = _pooled(tokens_BSPC[:, :, out.patch_start :], config.patch_grid, (pool.rows, pool.cols), pool.flat)
            batched[f"l{layer}_{name}"] = pooled.half() if config.pool_dtype == "float16" else pooled
        batched[f"l{layer}_special"] = tokens_BSPC[:, :, : out.patch_start]
    if out.pose_enc is not None:
        batched["pose_enc"] = out.pose_enc
    if out.depth is not None and out.depth_conf is not None:
        batched["depth"] = _cell_median(out.depth.log(), config.depth_cell).half()
        conf = (out.depth_conf - 1).clamp(min=CONF_FLOOR).log()
        batched["depth_conf"] = _cell_median(conf, config.depth_cell).half()
    return batched


def _pooled(patches_BSLC: Tensor, grid: tuple[int, int], cells: tuple[int, int], flat: bool) -> Tensor:
    """Adaptive average of patch tokens on `grid` to `cells`: float32 [B, S, rows, cols, C] or, flat, [B, S, n, C]."""
    batch, frames, _, channels = patches_BSLC.shape
    maps = patches_BSLC.float().reshape(batch * frames, *grid, channels).permute(0, 3, 1, 2)
    pooled = functional.adaptive_avg_pool2d(maps, cells).permute(0, 2, 3, 1)
    shape = (cells[0] * cells[1],) if flat else cells
    return pooled.reshape(batch, frames, *shape, channels)


def _cell_median(map_BSHW: Tensor, cell: int) -> Tensor:
    """The median of each `cell` x `cell` block, `cell` odd: [B, S, H / cell, W / cell]. NaN in a block stays NaN."""
    batch, frames, height, width = map_BSHW.shape
    blocks = map_BSHW.reshape(batch, frames, height // cell, cell, width // cell, cell)
    return torch.median(blocks.transpose(3, 4).flatten(4), dim=-1).values
