"""The VGGT teacher: views of a scene in, pooled tokens, pose encodings and depth cells out.

One scene is one window: len(window) x len(views) frames that attend to each other, the first of them the reference.
Membership, order and reference are part of a target's identity, so they are in the config, in every
spec's meaning and in the fingerprint. Scenes of a batch do not see each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shards_schema.errors import ConfigError, SampleError, WeightsError
from shards_schema.records import Image, Scene
from teachers import execution
from teachers.base import ImageRequest, Needs, TeacherInput
from teachers.device import PhasedCompute, Rows
from teachers.vggt import network, upstream
from teachers.vggt.checkpoint import CANDIDATES, fill_random, load_checkpoint
from teachers.vggt.config import VGGTConfig
from teachers.vggt.preprocess import preprocess
from teachers.vggt.targets import target_specs, to_tensors


class VGGTTeacher(PhasedCompute[None]):
    """A `teachers.base.PhasedTeacher`."""

    def __init__(self, config: VGGTConfig) -> None:
        self.config = config
        self._package = upstream.package_record() if config.implementation == "upstream" else None
        self.name, self.batch_size, self.specs = config.name, config.batch_size, target_specs(config)
        self.random_weights = config.weights.random is not None
        self.fixed_batch = config.batch_size if config.compile else None
        wanted = [ImageRequest(step, view) for step in config.window for view in config.views]
        self.needs = Needs.of(wanted, "set window and views")
        self._weights: dict[str, Any] | None = None
        self._network: nn.Module | None = None
        self._attention: execution.Context = contextlib.nullcontext

    def provenance(self) -> dict[str, Any]:
        """What decides the targets' bits, JSON; hashes the weights file (once a process), builds nothing.

        Raises:
            WeightsError: the checkpoint cannot be found.
        """
        config = self.config
        if self._weights is None:
            self._weights = config.weights.provenance(*CANDIDATES)
        ours = config.implementation == "ours"
        return {
            "implementation": config.implementation,
            "revision": network.REVISION if ours else upstream.REVISION,
            **({} if self._package is None else {"package": dict(self._package)}),
            "network": config.built.model_dump(mode="json"),
            "weights": dict(self._weights),
            "views": list(config.views),
            "window": list(config.window),
            "reference": {"step": config.window[0], "view": config.views[0]},
            "width": config.width,
            "height": config.image_height,
            "resize": "bicubic, antialiased, uint8; crop mode",
            "layers": list(config.layer_indices),
            "pools": {name: pool.model_dump(mode="json") for name, pool in config.pools.items()},
            "pool_rule": "adaptive average in float32 from the patch grid",
            "heads": list(config.heads),
            "depth_cell": config.depth_cell,
            "depth_rule": "median of log(depth), of log(max(confidence - 1, 2^-23))",
            "dtype": config.dtype,
            **({} if config.depth_precision == "float32" else {"depth_precision": config.depth_precision}),
            "batch_size": config.batch_size,
            **execution.provenance(config.attention, config.compile),
        }

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """One image a frame of the window: by step, then by view.

        Raises:
            SampleError: code ``missing_frame`` or ``missing_camera``.
        """
        return self.needs.requests(scene)

    def preprocess(self, image: Image) -> Image:
        """`image` fitted to the config's width; uint8 [height, width, 3].

        Raises:
            SampleError: code ``image_shape``, its aspect leads to another height than the config's.
        """
        small = preprocess(image, self.config.width)
        if small.shape[0] != self.config.image_height:
            raise SampleError(
                "image_shape",
                f"an image of {image.shape[1]} x {image.shape[0]} is {small.shape[0]} high at width "
                f"{self.config.width}, but the teacher's targets are for {self.config.image_height} (config `height`)",
            )
        return small

    def load(self, device: str) -> None:
        """Build the network on `device` and fill it; a second call only moves it.

        Raises:
            WeightsError: the checkpoint does not fit, or has changed since `provenance` was asked.
        """
        config = self.config
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        width = config.network.embed_dim // config.network.heads
        self._attention = execution.attention_context(config.attention, device, dtype, width)
        if self._network is None:
            recorded = self.provenance()["weights"]
            now = self.config.weights.provenance(*CANDIDATES)
            if recorded != now:
                raise WeightsError(f"the weights have changed since they were recorded: {recorded}, now {now}")
            self._network = self._filled(device)
        else:
            self._network.to(device)
        self.use(device)

    def _filled(self, device: str) -> nn.Module:
        config = self.config
        built: nn.Module
        if config.implementation == "upstream":
            with torch.random.fork_rng(devices=[]):
                built = upstream.UpstreamNetwork(config.built)
        else:
            with torch.device("meta"):
                built = network.VGGTNetwork(config.built)
        if config.weights.random is not None:
            fill_random(built, config.weights.random, device)
        else:
            load_checkpoint(built, config.weights.locate(*CANDIDATES), device)
        if config.dtype == "bfloat16" and isinstance(built, network.VGGTNetwork):
            execution.narrow(built.aggregator)  # the heads are in float32
        if config.compile:
            assert isinstance(built, network.VGGTNetwork), "the config has seen to it"
            execution.compile_blocks(built.blocks(), self._attention)
        return built.to(device).requires_grad_(False).eval()

    def gather(self, batch: Sequence[TeacherInput]) -> tuple[dict[str, Rows], None]:
        """The images of each scene's window: uint8 [S, height, width, 3].

        Raises:
            ConfigError: images that `requests` and `preprocess` did not make.
        """
        shape = (self.config.image_height, self.config.width, 3)
        for item in batch:
            right = [part.dtype == np.uint8 and part.shape == shape for part in item.parts]
            if right != [True] * self.config.frames:
                raise ConfigError(
                    f"scene {item.scene.token}: expected uint8 images {[self.config.frames, *shape]}, "
                    f"got {item.images.dtype} {list(item.images.shape)}"
                )
        return {"images": [item.parts for item in batch]}, None

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The targets by name, [B, ...]."""
        assert self._network is not None, "a lane is there after load only"
        images_BSHW3 = inputs["images"]
        images_BS3HW = images_BSHW3.permute(0, 1, 4, 2, 3).float() / 255
        autocast = torch.bfloat16 if self.config.dtype == "bfloat16" else None
        convolutions: execution.Precision = "tf32" if self.config.depth_precision == "tf32" else "ieee"
        with execution.exact(images_BSHW3.device, convolutions), self._attention():
            return to_tensors(self.config, self._network(images_BS3HW, self.config.layer_indices, autocast))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_network": None, "_attention": contextlib.nullcontext}
