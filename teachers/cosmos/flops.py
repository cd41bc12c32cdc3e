"""Floating-point operations of the Cosmos teachers for one scene; see `teachers.flops` for the rule.

The networks are diffusers' own, whose layers are added up here as its forward runs them: the encoders of the Cosmos and
the Wan VAE on a whole clip, and the Video2World transformer up to the block that is read. A network that a checkpoint's
config.json describes is counted by it. Two things are counted as run, though a thriftier forward could spare them: the
Wan encoder's padding in time, and the transformer's modulation, which every token computes for its own latent frame.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from teachers.cosmos.checkpoint import describe
from teachers.cosmos.config import CHANNELS_OUT, CosmosConfig
from teachers.cosmos.predict_config import CosmosPredictConfig
from teachers.cosmos.transformer import describe_transformer
from teachers.flops import attention, convolution, linear

_COSMOS = {
    "encoder_block_out_channels": (128, 256, 512, 512),
    "attention_resolutions": (32,),
    "resolution": 1024,
    "num_layers": 2,
    "patch_size": 4,
    "patch_type": "haar",
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 8,
}
_WAN = {
    "base_dim": 96,
    "z_dim": CHANNELS_OUT,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "temperal_downsample": (False, True, True),  # sic
}
_TRANSFORMER = {
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "crossattn_proj_in_channels": 1024,
    "encoder_hidden_states_channels": 1024,
}
"""The classes' defaults, for what the arguments leave out."""

Grid = tuple[int, int, int]
"""Times, rows, columns."""


def cosmos(config: CosmosConfig) -> int:
    """Operations of the VAE's encoder on one clip.

    Raises:
        WeightsError: the network is described by a checkpoint that cannot be found.
    """
    arguments = describe(config).arguments
    grid = (len(config.frame_layout.steps), config.size[1], config.size[0])
    if config.model == "wan":
        return _wan({**_WAN, **arguments}, grid)
    return _cosmos({**_COSMOS, **arguments}, grid)


def predict(config: CosmosPredictConfig) -> int:
    """Operations of the VAE on one clip, and of the transformer on its past and the noise that stands for its future.

    Raises:
        WeightsError: a network is described by a checkpoint that cannot be found.
    """
    return cosmos(config.clip) + transformer(config)


def transformer(config: CosmosPredictConfig) -> int:
    """Operations of the Video2World transformer for one scene, up to the block that is read; one token of null text."""
    arguments: dict[str, Any] = {**_TRANSFORMER, **describe_transformer(config).arguments}
    times, (rows, columns) = config.given + config.horizon, config.token_grid
    tokens, width = times * rows * columns, config.architecture.width
    lora, text = arguments["adaln_lora_dim"], arguments["text_embed_dim"]
    hidden = int(width * arguments["mlp_ratio"])
    modulation = linear(tokens, width, lora) + linear(tokens, lora, 3 * width)
    block = (
        3 * modulation
        + linear(tokens, width, 4 * width)
        + attention(1, tokens, tokens, width)
        + linear(tokens, width, 2 * width)  # of the attention to the text: queries and output
        + linear(1, text, 2 * width)
        + attention(1, tokens, 1, width)
        + 2 * linear(tokens, width, hidden)
    )
    embedding = linear(tokens, 4 * (CHANNELS_OUT + 2), width)  # patches of 2 x 2 cells, and two masks
    clock = linear(times, width, width) + linear(times, width, 3 * width)
    projection = 0
    if arguments["use_crossattn_projection"]:
        projection = linear(1, arguments["crossattn_proj_in_channels"], arguments["encoder_hidden_states_channels"])
    return embedding + clock + projection + (config.read_block + 1) * block


def _cosmos(arguments: dict[str, Any], grid: Grid) -> int:
    """AutoencoderKLCosmos's encoder: wavelets, then convolutions split in space and time, and attention likewise."""
    channels, patch = tuple(arguments["encoder_block_out_channels"]), arguments["patch_size"]
    levels = patch.bit_length() - 1
    spatial, temporal = (
        arguments[f"{axis}_compression_ratio"].bit_length() - 1 - levels for axis in ("spatial", "temporal")
    )
    total = 0
    times, rows, columns = grid[0] - 1 + patch, grid[1], grid[2]
    for level in range(levels):
        if arguments["patch_type"] == "haar":
            total += _wavelets((times, rows, columns), 3 * 8**level)
        times, rows, columns = (times + 1) // 2, (rows + 1) // 2, (columns + 1) // 2
    if arguments["patch_type"] != "haar":
        times, rows, columns = (grid[0] - 1 + patch) // patch, grid[1] // patch, grid[2] // patch
    total += _separable((times, rows, columns), 3 * patch**3, channels[0])
    resolution, last = arguments["resolution"] // patch, len(channels) - 2
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        here = (times, rows, columns)
        total += _residuals(here, inputs, outputs, arguments["num_layers"])
        if resolution in arguments["attention_resolutions"]:
            total += arguments["num_layers"] * _both_attentions(here, outputs)
        if i == last:
            break
        resolution //= 2
        if i < spatial:
            rows, columns = rows // 2, columns // 2
            total += convolution((times, rows, columns), (1, 3, 3), outputs, outputs)
        if i < temporal:
            times = (times - 1) // 2 + 1
            total += convolution((times, rows, columns), (3, 1, 1), outputs, outputs)
        if i < spatial or i < temporal:
            total += convolution((times, rows, columns), (1, 1, 1), outputs, outputs)
    here, width = (times, rows, columns), channels[-1]
    total += 2 * _residuals(here, width, width, 1) + _both_attentions(here, width)
    total += _separable(here, width, CHANNELS_OUT)
    return total + convolution(here, (1, 1, 1), CHANNELS_OUT, CHANNELS_OUT)


def _wavelets(grid: Grid, channels: int) -> int:
    """One level of the Haar transform: 2 filters in time, 4 then in height, 8 then in width, each of two taps."""
    times, rows, columns = ((side + 1) // 2 for side in grid)
    places = 2 * times * (grid[1] + 1) * (grid[2] + 1) + 4 * times * rows * (grid[2] + 1) + 8 * times * rows * columns
    return 2 * 2 * channels * places


def _separable(grid: Grid, inputs: int, outputs: int) -> int:
    """A convolution in space, then one in time."""
    return convolution(grid, (1, 3, 3), inputs, outputs) + convolution(grid, (3, 1, 1), outputs, outputs)


def _residuals(grid: Grid, inputs: int, outputs: int, count: int) -> int:
    """Residual blocks of two separable convolutions, the first from `inputs` channels."""
    total = (2 * count - 1) * _separable(grid, outputs, outputs) + _separable(grid, inputs, outputs)
    return total + (convolution(grid, (1, 1, 1), inputs, outputs) if inputs != outputs else 0)


def _both_attentions(grid: Grid, width: int) -> int:
    """Attention within each frame, then along time at each cell."""
    times, cells = grid[0], grid[1] * grid[2]
    projections = 2 * 4 * convolution(grid, (1, 1, 1), width, width)
    return projections + attention(times, cells, cells, width) + attention(cells, times, times, width)


def _wan(arguments: dict[str, Any], grid: Grid) -> int:
    """AutoencoderKLWan's encoder: the first frame, then four at a time; each convolution once at each of its outputs.

    No attention but the middle's: diffusers' forward fails with `attn_scales`, and no release has any.
    """
    base, blocks = arguments["base_dim"], arguments["num_res_blocks"]
    widths = [base, *(base * factor for factor in arguments["dim_mult"])]
    times, rows, columns = grid
    total = convolution(grid, (3, 3, 3), 3, base)
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        here = (times, rows, columns)
        total += _causal_residuals(here, inputs, outputs, blocks)
        if i == len(widths) - 2:
            break
        rows, columns = rows // 2, columns // 2
        total += convolution((times, rows, columns), (1, 3, 3), outputs, outputs)
        if arguments["temperal_downsample"][i]:
            halved = (times - 1) // 2  # the first frame stays as it is
            total += convolution((halved, rows, columns), (3, 1, 1), outputs, outputs)
            times = 1 + halved
    here, width, out = (times, rows, columns), widths[-1], 2 * arguments["z_dim"]
    total += 2 * _causal_residuals(here, width, width, 1) + _frame_attention(here, width)
    return total + convolution(here, (3, 3, 3), width, out) + convolution(here, (1, 1, 1), out, out)


def _causal_residuals(grid: Grid, inputs: int, outputs: int, count: int) -> int:
    """Residual blocks of two convolutions over space and time, the first from `inputs` channels."""
    cube = (3, 3, 3)
    total = convolution(grid, cube, inputs, outputs) + (2 * count - 1) * convolution(grid, cube, outputs, outputs)
    return total + (convolution(grid, (1, 1, 1), inputs, outputs) if inputs != outputs else 0)


def _frame_attention(grid: Grid, width: int) -> int:
    """Attention within each frame."""
    cells = grid[1] * grid[2]
    return linear(grid[0] * cells, width, 4 * width) + attention(grid[0], cells, cells, width)
