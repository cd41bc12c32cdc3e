"""The Cosmos teacher: one camera's clip around now, encoded once by a frozen video VAE.

The latents of the true future are the dynamics target; those of the history come with them at no price, because the
VAE is causal in time: history latents are the same with or without the future behind them.
`latent_role` says which is which: future latents supervise, and are never an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from shards_schema.errors import WeightsError
from shards_schema.records import Image, Scene
from shards_schema.specs import TargetSpec
from teachers import images
from teachers.base import ImageRequest, Needs, Targets, TeacherInput
from teachers.cosmos import frames
from teachers.cosmos.checkpoint import FILES, describe
from teachers.cosmos.config import CHANNELS_OUT, CosmosConfig
from teachers.cosmos.encoder import VideoEncoder
from teachers.device import PhasedCompute, Rows

REVISION = 1
"""Raised whenever the same config and weights give other targets."""


class CosmosTeacher(PhasedCompute[list[frames.Clip]]):
    """Video-VAE latents of one camera; see `teachers.base.PhasedTeacher` for the methods."""

    def __init__(self, config: CosmosConfig) -> None:
        self.config = config
        self.name, self.batch_size, self.specs = config.name, config.batch_size, _specs(config)
        self.random_weights = config.weights.random is not None
        steps = config.frame_layout.required  # of the clip, less the one that may be padding
        past = "D" if config.vae.temporal == 4 else list(frames.PAST_OF_C)
        rather = f"layout: {past} looks at the past alone" if steps[-1] > 0 else "set layout"
        self.needs = Needs.of([ImageRequest(step, config.channel) for step in steps], rather)
        self._weights: dict[str, Any] | None = None
        self._encoder: VideoEncoder | None = None

    def provenance(self) -> dict[str, Any]:
        """JSON identity. Weights are named by digest alone, so that hub and path are the same teacher."""
        config = self.config
        if self._weights is None:
            self._weights = config.weights.provenance(*FILES)
        return {
            "kind": "cosmos",
            "revision": REVISION,
            "model": config.model,
            "class": config.vae.class_name,
            "weights": self._weights,
            **describe(config).identity(),
            "channel": config.channel,
            "layout": {
                "name": config.layout if isinstance(config.layout, str) else None,
                "steps": list(config.frame_layout.steps),
                "optional_first": config.frame_layout.optional_first,
            },
            "size": list(config.size),
            **images.RULE,
            "pool": config.pool,
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            **({"channels_last": True} if config.channels_last else {}),
        }

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """The clip's distinct frames, oldest first."""
        clip = self._clip(scene)
        return [ImageRequest(step, self.config.channel) for step in clip.distinct]

    def preprocess(self, image: Image) -> Image:
        """uint8 [h, w, 3] at `size`, by `teachers.images.fit`."""
        return images.fit(image, self.config.size)

    def load(self, device: str) -> None:
        """Build the VAE, read its weights, drop its decoder."""
        if self._encoder is None or self._encoder.device != torch.device(device):
            if self._weights is not None and (found := self.config.weights.provenance(*FILES)) != self._weights:
                raise WeightsError(f"the weights have changed since they were identified: {self._weights}, now {found}")
            self._encoder = VideoEncoder(self.config, describe(self.config), device)
        self.use(device)

    def gather(self, batch: Sequence[TeacherInput]) -> tuple[dict[str, Rows], list[frames.Clip]]:
        """The frames of each scene's clip, uint8 [T, h, w, 3], and the clips."""
        clips = [self._clip(item.scene) for item in batch]
        parts = [(item.parts, clip.index) for item, clip in zip(batch, clips, strict=True)]
        return {"images": [[images[place] for place in index] for images, index in parts]}, clips

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode the batch's clips together."""
        return self.tensors(self.encode(inputs["images"]))

    def encode(self, images_BTHW3: torch.Tensor) -> torch.Tensor:
        """Latents of uint8 clips on the device: float32 [B, 16, T_lat, H/8, W/8]."""
        assert self._encoder is not None, "a lane is there after load only"
        return self._encoder.encode(images.to_video(images_BTHW3, self._encoder.dtype))

    def tensors(self, latents_BCTHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """The targets that are made of latents, float16 [B, ...] by name."""
        latents_BTCHW = latents_BCTHW.transpose(1, 2).contiguous()
        tensors = {"latent": latents_BTCHW}
        if self.config.pool is not None:
            side = self.config.pool
            tensors["latent_pool"] = functional.avg_pool3d(latents_BTCHW, (1, side, side))
        return {name: tensor.half() for name, tensor in tensors.items()}

    def scatter(self, arrays: Mapping[str, NDArray[Any]], clips: list[frames.Clip]) -> list[Targets]:
        """Each scene's rows, and what its clip's frames stand for."""
        rows = super().scatter(arrays, clips)
        return [row | self._labels(clip) for row, clip in zip(rows, clips, strict=True)]

    def _clip(self, scene: Scene) -> frames.Clip:
        return frames.clip_of(scene, self.config.frame_layout, self.config.channel)

    def _labels(self, clip: frames.Clip) -> Targets:
        return {
            "frame_idx": np.asarray(clip.steps, dtype=np.int16),
            "frame_valid": np.asarray(clip.valid, dtype=np.uint8),
            "latent_role": np.asarray(frames.latent_roles(clip, self.config.vae.temporal), dtype=np.uint8),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_encoder": None}


def _specs(config: CosmosConfig) -> tuple[TargetSpec, ...]:
    count, latents, (rows, columns) = len(config.frame_layout.steps), config.latents, config.latent_grid
    shape = latents, CHANNELS_OUT, rows, columns
    what = f"Mode of the {config.model} VAE's latents of the clip, (z - mean) / std where it has statistics."
    specs = [TargetSpec.of("latent", "time channel row col", shape, "float16", "1", what)]
    if (side := config.pool) is not None:
        shape = latents, CHANNELS_OUT, rows // side, columns // side
        what = f"Mean of latent over squares of {side}x{side} cells, taken in float32."
        specs.append(TargetSpec.of("latent_pool", "time channel pool_row pool_col", shape, "float16", "1", what))
    place = "Frame of each place of the clip, steps of 0.5 s from now."
    valid = "0 where the frame repeats another as padding, else 1."
    role = "0 padding only, 1 history and now, 2 some of the future."
    return (
        *specs,
        TargetSpec.of("frame_idx", "frame", (count,), "int16", "0.5 s", place),
        TargetSpec.of("frame_valid", "frame", (count,), "uint8", "1", valid),
        TargetSpec.of("latent_role", "time", (latents,), "uint8", "1", role),
    )
