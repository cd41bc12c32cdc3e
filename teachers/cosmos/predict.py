"""The Cosmos-Predict teacher: one encode of a scene's clip gives VAE latents and, from its past, foresight features.

`foresight` is what a frozen Video2World transformer holds in its middle when it is about to imagine what comes next. It
follows from the frames up to now alone, bit for bit: the VAE is causal, the transformer is given the latents up to now
and no others, and its noise follows from the scene's token. So unlike `latent` it may be an input, and with the layout
D it is computed where there is no future (a test split). `foresight_role` says which of its times were given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards_schema.errors import WeightsError
from shards_schema.records import Image, Scene
from shards_schema.specs import TargetSpec
from teachers import execution, files
from teachers.base import ImageRequest, Targets, TeacherInput
from teachers.cosmos import frames
from teachers.cosmos.encoder import DTYPES
from teachers.cosmos.foresight import RULE, Foresight, noise
from teachers.cosmos.predict_config import CosmosPredictConfig
from teachers.cosmos.teacher import CosmosTeacher
from teachers.cosmos.transformer import CLASS, FILES, describe_transformer
from teachers.device import PhasedCompute, Rows

REVISION = 1
"""Raised whenever the same config and weights give another `foresight`; the latents have a revision of their own."""

IMAGINED = 2
"""Role of a foresight time that was noise at the input; those that were given have the role of their latent."""


class CosmosPredictTeacher(PhasedCompute[list[frames.Clip]]):
    """VAE latents and foresight features of one camera; see `teachers.base.PhasedTeacher` for the methods."""

    def __init__(self, config: CosmosPredictConfig) -> None:
        self.config = config
        self._clips = CosmosTeacher(config.clip)
        self.name, self.batch_size, self.specs = config.name, config.batch_size, _specs(config, self._clips.specs)
        self.random_weights = config.weights.random is not None or self._clips.random_weights
        self.fixed_batch = config.batch_size if config.compile else None
        ahead = "layout: D with latents: false looks at the past alone"
        self.needs = replace(self._clips.needs, rather=ahead if self._clips.needs.last > 0 else "set layout")
        self._weights: dict[str, Any] | None = None
        self._foresight: Foresight | None = None
        self._attention: execution.Context = contextlib.nullcontext

    def provenance(self) -> dict[str, Any]:
        """JSON identity. Weights are named by digest alone, so that hub and path are the same teacher."""
        config = self.config
        if self._weights is None:
            self._weights = files.identity(config.weights, *FILES)
        return {
            "kind": "cosmos_predict",
            "revision": REVISION,
            "model": config.model,
            "class": CLASS,
            "weights": self._weights,
            "network": describe_transformer(config).identity(),
            "foresight": {
                **RULE,
                "block": config.read_block,
                "of_blocks": config.architecture.blocks,
                "given": config.given,
                "given_t": config.given_time,
                "horizon": config.horizon,
                "sigma": config.sigma,
                "t": config.time,
                "noise_seed": config.noise_seed,
                "token_pool": list(config.token_pool),
            },
            "clip": self._clips.provenance(),
            "latents": config.latents,
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            **execution.provenance(config.attention, config.compile),
        }

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """The clip's distinct frames, oldest first."""
        return self._clips.requests(scene)

    def preprocess(self, image: Image) -> Image:
        """uint8 [h, w, 3] at `size`, by `teachers.images.fit`."""
        return self._clips.preprocess(image)

    def load(self, device: str) -> None:
        """Build both networks and read their weights, but not the decoder and the blocks that nothing reads."""
        config = self.config
        width = config.architecture.head_width
        self._attention = execution.attention_context(config.attention, device, DTYPES[config.dtype], width)
        self._clips.load(device)
        if self._foresight is None or self._foresight.device != torch.device(device):
            if self._weights is not None and (found := files.identity(config.weights, *FILES)) != self._weights:
                raise WeightsError(f"the weights have changed since they were identified: {self._weights}, now {found}")
            self._foresight = Foresight(config, describe_transformer(config), device)
            if config.compile:
                execution.compile_blocks(self._foresight.network.transformer_blocks, self._attention)
        self.use(device)

    def gather(self, batch: Sequence[TeacherInput]) -> tuple[dict[str, Rows], list[frames.Clip]]:
        """The frames of each scene's clip and its noise; and the clips."""
        config, grid = self.config, self.config.clip.latent_grid
        arrays, clips = self._clips.gather(batch)
        drawn = [noise(item.scene.token, config.noise_seed, config.horizon, grid) for item in batch]
        return {**arrays, "noise": drawn}, clips

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode the batch's clips together, and run the transformer on their past together."""
        assert self._foresight is not None, "a lane is there after load only"
        latents_BCTHW = self._clips.encode(inputs["images"])
        with self._attention():
            features_BTRQD = self._foresight.features(latents_BCTHW[:, :, : self.config.given], inputs["noise"])
        made = {"foresight": features_BTRQD.half(), **self._clips.tensors(latents_BCTHW)}
        return {spec.name: made[spec.name] for spec in self.specs if spec.name in made}

    def scatter(self, arrays: Mapping[str, NDArray[Any]], clips: list[frames.Clip]) -> list[Targets]:
        """Each scene's rows, and what its frames and times stand for."""
        results = []
        for clip, targets in zip(clips, self._clips.scatter(arrays, clips), strict=True):
            targets["foresight_role"] = self._roles(clip)
            results.append({spec.name: targets[spec.name] for spec in self.specs})
        return results

    def _roles(self, clip: frames.Clip) -> NDArray[np.uint8]:
        given = frames.latent_roles(clip, self.config.clip.vae.temporal)[: self.config.given]
        return np.asarray(given + (IMAGINED,) * self.config.horizon, dtype=np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_foresight": None, "_attention": contextlib.nullcontext}


def _specs(config: CosmosPredictConfig, clip_specs: tuple[TargetSpec, ...]) -> tuple[TargetSpec, ...]:
    times = config.given + config.horizon
    (rows, columns), (row, column) = config.token_grid, config.token_pool
    shape = times, rows // row, columns // column, config.architecture.width
    dims = "foresight_time token_row token_col token_channel"
    what = (
        f"Tokens after block {config.read_block} of {config.model} {config.network} Video2World, of frames up to now "
        f"and noise (sigma {config.sigma:g}); normalised over channels, mean of {row}x{column} tokens."
    )
    given = "0 given, padding only; 1 given, history and now; 2 imagined: noise at the input."
    foresight = TargetSpec.of("foresight", dims, shape, "float16", "1", what)
    role = TargetSpec.of("foresight_role", "foresight_time", (times,), "uint8", "1", given)
    kept = (spec for spec in clip_specs if config.latents or spec.name not in ("latent", "latent_pool", "latent_role"))
    return (foresight, role, *kept)
