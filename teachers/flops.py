"""Floating-point operations of a teacher for one scene, as torch counts them in the real network on the meta device.

A multiplication and its addition are two operations. Counted are matrix products, convolutions and the two products of
attention, which is what a device's matrix rate is compared with; norms, activations, rotations and pooling are not.
Nothing is computed and no weights are read, but a full-size network takes a second or some to be built.

A teacher that has a method ``flops() -> int`` answers for itself; the built-in ones are run as `_RUNS` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from teachers.base import Teacher
    from teachers.cosmos.config import CosmosConfig
    from teachers.cosmos.predict_config import CosmosPredictConfig
    from teachers.vggt.config import VGGTConfig
    from teachers.vjepa2 import VJEPA2Config


def flops_of(teacher: Teacher) -> int | None:
    """Operations of `teacher` for one scene; None where nobody counts them (it is no network, or another's).

    Raises:
        WeightsError: the network is described by a checkpoint that cannot be found.
    """
    own = getattr(teacher, "flops", None)
    if callable(own):
        return int(own())
    config: Any = getattr(teacher, "config", None)
    run = _RUNS.get(type(config).__name__)
    return None if run is None else counted(lambda: run(config))


def counted(call: Callable[[], object]) -> int:
    """What torch's counter sees in a call. Attention runs by its definition, since fused kernels are not all seen."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def _run_vggt(config: VGGTConfig) -> None:
    """Part by part, since `VGGTNetwork.forward` asks for autocast, which the meta device has not."""
    from teachers.vggt.network import VGGTNetwork

    built, width = config.built, 2 * config.built.embed_dim
    with torch.device("meta"):
        network = VGGTNetwork(built).requires_grad_(False)
    read = set(config.layer_indices)
    if built.camera is not None:
        read.add(built.depth - 1)
        network.camera_head(_meta(1, config.frames, width))
    if built.depth_head is not None:
        read |= {*built.depth_head.layers}
        rows, columns = config.patch_grid
        network.depth_head([_meta(config.frames, rows * columns, width)] * 4, rows, columns)
    network.aggregator(_meta(1, config.frames, 3, config.image_height, config.width), read)


def _run_cosmos(config: CosmosConfig) -> None:
    import diffusers

    from teachers.cosmos.checkpoint import describe

    # moved there, and not made there: diffusers keeps the first model's wavelets for all that come after it
    vae = getattr(diffusers, config.vae.class_name)(**describe(config).arguments).to("meta")
    vae.encode(_meta(1, 3, len(config.frame_layout.steps), config.size[1], config.size[0]))


def _run_predict(config: CosmosPredictConfig) -> None:
    """The VAE on one clip; the transformer, up to its block, on the past and the noise that stands for the future."""
    from teachers.cosmos.transformer import describe_transformer, make_transformer

    _run_cosmos(config.clip)
    network: Any = make_transformer(describe_transformer(config), config.read_block + 1).requires_grad_(False)
    grid = (config.given + config.horizon, *config.clip.latent_grid)
    projected = network.config["use_crossattn_projection"]
    network(
        hidden_states=_meta(1, 16, *grid),
        timestep=_meta(1, 1, grid[0], 1, 1),
        encoder_hidden_states=_meta(
            1, 1, network.config["crossattn_proj_in_channels" if projected else "text_embed_dim"]
        ),
        condition_mask=_meta(1, 2, *grid),
        fps=None,
        return_dict=False,
    )


def _run_vjepa2(config: VJEPA2Config) -> None:
    import transformers

    from teachers.vjepa2 import PATCH, encode

    with torch.device("meta"):
        network: Any = transformers.VJEPA2Model(transformers.VJEPA2Config(**config.encoder.arguments()))
    video = _meta(len(config.views), len(config.steps), 3, config.size[1], config.size[0])
    encode(network.requires_grad_(False).encoder, video, config.encoder.crop // PATCH)


def _meta(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device="meta")


_RUNS: dict[str, Callable[[Any], None]] = {
    "CosmosConfig": _run_cosmos,
    "CosmosPredictConfig": _run_predict,
    "VGGTConfig": _run_vggt,
    "VJEPA2Config": _run_vjepa2,
}
"""The config's class -> one scene through its network, on the meta device."""
