"""Meta's own implementation behind our network's interface, where the package ``vggt`` is installed.

It is not a dependency: its licence is not ours, and it is not on a package index. It is here to be
compared against. Its parts are assembled by hand, because its public constructor only takes the published geometry.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shards_schema.errors import ConfigError
from teachers.vggt.geometry import PATCH, VGGTNetworkConfig
from teachers.vggt.network import VGGTOutput, check_images, check_layers

REVISION = 1
"""Counts changes of this adapter that change its outputs."""


def package_record() -> dict[str, Any]:
    """JSON: version of the installed package, and its commit where it was installed from a repository.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        package = importlib.metadata.distribution("vggt")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "implementation: upstream needs Meta's package 'vggt', which is not installed here; "
            "install the extra (`pip install -e '.[vggt]'` in the clone) after reading its licence, or use "
            "implementation: ours"
        ) from error
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    return {"version": package.version, "commit": origin.get("vcs_info", {}).get("commit_id")}


class UpstreamNetwork(nn.Module):
    """As `VGGTNetwork`, by Meta's modules.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, config: VGGTNetworkConfig) -> None:
        super().__init__()
        package_record()
        from vggt.heads.camera_head import CameraHead
        from vggt.heads.dpt_head import DPTHead
        from vggt.models.aggregator import Aggregator

        self.config = config
        dim = 2 * config.embed_dim
        self.aggregator = Aggregator(
            img_size=518,
            patch_size=PATCH,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.heads,
            patch_embed=config.patch_encoder,
        )
        if config.camera is not None:
            self.camera_head = CameraHead(dim_in=dim, trunk_depth=config.camera.depth, num_heads=config.camera.heads)
        if config.depth_head is not None:
            self.depth_head = DPTHead(
                dim_in=dim,
                output_dim=2,
                activation="exp",
                conf_activation="expp1",
                features=config.depth_head.features,
                out_channels=list(config.depth_head.out_channels),
                intermediate_layer_idx=list(config.depth_head.layers),
            )

    def forward(
        self, images_BS3HW: Tensor, layers: Collection[int] = (), autocast: torch.dtype | None = None
    ) -> VGGTOutput:
        """As `VGGTNetwork.forward`.

        Raises:
            ConfigError: images or layers that the network cannot take, or layers that it did not keep.
        """
        check_images(images_BS3HW)
        wanted = check_layers(layers, self.config.depth)
        kind = images_BS3HW.device.type
        pose_enc = depth = conf = None
        with torch.inference_mode():
            with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
                tokens, patch_start = self.aggregator(images_BS3HW)
            with torch.autocast(kind, enabled=False):
                if self.config.camera is not None:
                    pose_enc = self.camera_head(tokens)[-1]
                if self.config.depth_head is not None:
                    depth, conf = self.depth_head(tokens, images=images_BS3HW, patch_start_idx=patch_start)
                    depth = depth[..., 0]
        return VGGTOutput(pick(tokens, wanted), patch_start, pose_enc, depth, conf)


def pick(tokens: Sequence[Tensor | None], layers: Collection[int]) -> dict[int, Tensor]:
    """The tokens of `layers`, float32; since May 2026 upstream keeps only the layers that its heads read.

    Raises:
        ConfigError: one of them was not kept.
    """
    kept = {i: value.float() for i, value in enumerate(tokens) if value is not None and i in layers}
    lost = sorted(set(layers) - kept.keys())
    if lost:
        raise ConfigError(
            f"layers {lost}: this version of the package 'vggt' does not keep them (it keeps "
            f"{[i for i, value in enumerate(tokens) if value is not None]}); ask for those, or use implementation: ours"
        )
    return kept
