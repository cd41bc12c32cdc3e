"""The Cosmos teacher's config, and what is fixed about each VAE that it knows.

Everything that can be known without the checkpoint is checked here, at construction: the clip's length against the
VAE's temporal factor, the image size, the statistics. What a checkpoint then says must agree (`checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from shards_schema.records import CHANNELS
from teachers.base import ColumnName
from teachers.cosmos import frames
from teachers.cosmos.statistics import Statistics
from teachers.weights import WeightsConfig

SPATIAL = 8
"""Pixels a latent cell, on each side, in every VAE here."""

CHANNELS_OUT = 16
"""Latent channels of every VAE here."""


@dataclass(frozen=True, slots=True)
class Vae:
    """What is fixed about one VAE.

    Attributes:
        class_name: diffusers' class.
        temporal: frames a latent frame, after the first.
        fixed: constructor arguments that make it this VAE; a checkpoint's config.json must say the same.
        full: the released network's constructor arguments, where they are not the class's defaults.
        tiny: those of a network for tests, of the same structure.
        scalable: the arguments that `network` may set.
        own_statistics: whether its releases (and the class's defaults) carry statistics that are its own.
    """

    class_name: str
    temporal: int
    fixed: Mapping[str, Any]
    full: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    scalable: frozenset[str] = frozenset()
    own_statistics: bool = True


_COSMOS_BLOCKS = ("encoder_block_out_channels", "decode_block_out_channels", "attention_resolutions", "resolution")
_COSMOS = frozenset((*_COSMOS_BLOCKS, "num_layers", "patch_size", "patch_type"))
_WAN = frozenset(("base_dim", "decoder_base_dim", "dim_mult", "num_res_blocks", "attn_scales", "dropout"))


def _cosmos_fixed(temporal: int) -> dict[str, Any]:
    ratios = {"spatial_compression_ratio": SPATIAL, "temporal_compression_ratio": temporal}
    return {"in_channels": 3, "latent_channels": CHANNELS_OUT, **ratios}


VAES: Mapping[str, Vae] = MappingProxyType(
    {
        "cv8x8x8": Vae(
            class_name="AutoencoderKLCosmos",
            temporal=8,
            fixed=_cosmos_fixed(8),
            tiny={
                "encoder_block_out_channels": [16, 16, 32, 32],
                "decode_block_out_channels": [16, 16, 16, 32],
                "num_layers": 1,
            },
            scalable=_COSMOS,
        ),
        # The released file sizes fit [2, 4] multipliers, not the class's defaults. It has no
        # statistics of its own; a config.json may still carry the class's defaults, which are those of CV8x8x8-1.0.
        "cv4x8x8": Vae(
            class_name="AutoencoderKLCosmos",
            temporal=4,
            fixed=_cosmos_fixed(4),
            full={"encoder_block_out_channels": [128, 256, 512], "decode_block_out_channels": [256, 512, 512]},
            tiny={
                "encoder_block_out_channels": [16, 16, 32],
                "decode_block_out_channels": [16, 16, 32],
                "num_layers": 1,
            },
            scalable=_COSMOS,
            own_statistics=False,
        ),
        "wan": Vae(
            class_name="AutoencoderKLWan",
            temporal=4,
            fixed={
                "in_channels": 3,
                "z_dim": CHANNELS_OUT,
                "temperal_downsample": [False, True, True],  # sic
                "is_residual": False,
                "patch_size": None,
                "scale_factor_spatial": SPATIAL,
                "scale_factor_temporal": 4,
            },
            tiny={"base_dim": 8, "num_res_blocks": 1},
            scalable=_WAN,
        ),
    }
)
"""CV8x8x8 (Cosmos 1.0), CV4x8x8 (Cosmos 0.1), and the Wan 2.1 VAE that Predict2 and 2.5 use."""

LayoutName = Literal["A", "B", "C", "D"]


def as_tuple(value: object) -> object:
    """A list, as YAML gives one, as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


_Side = Annotated[int, Field(le=16_384)]


class CosmosConfig(StrictModel):
    """What a Cosmos teacher encodes, and with what."""

    name: ColumnName = "cosmos"
    """The column."""
    weights: WeightsConfig
    """``random``, ``hub`` with ``revision``, or ``path`` to a folder in the hub's layout, with or without the subfolder
    ``vae``: a ``config.json`` beside the safetensors file."""
    model: Literal["cv8x8x8", "cv4x8x8", "wan"] = "cv8x8x8"
    """Which VAE."""
    network: Literal["full", "tiny"] | dict[str, Any] | None = None
    """Of random weights only: ``full`` (default), ``tiny``, or constructor arguments on top of the preset that
    ``preset`` names. A checkpoint's network is in its config.json."""
    latents_mean: tuple[float, ...] | None = None
    """Statistics in place of the checkpoint's: 16 values, or 16 * N channel-major."""
    latents_std: tuple[float, ...] | None = None
    """Likewise."""
    channel: str = "CAM_F0"
    """The camera."""
    layout: LayoutName | Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = "A"
    """A, B, C or D of `teachers.cosmos.frames`, or the steps themselves."""
    size: tuple[_Side, _Side] = (512, 288)
    """Width and height [px] of the encoded frames, multiples of 16."""
    pool: int | None = Field(default=4, ge=1)
    """Side of the square of latent cells that `latent_pool` averages; None for no such target."""
    batch_size: int = Field(default=4, ge=1)
    """Scenes encoded together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network; statistics are applied in float32 always. bfloat16 needs a GPU."""
    channels_last: bool = False
    """Whether the network's activations lie in memory with their channels side by side, as tensor cores want them: the
    same numbers but for their last bits."""

    @model_validator(mode="after")
    def _possible(self) -> CosmosConfig:
        if self.channel not in CHANNELS:
            raise ConfigError(f"channel: expected one of {', '.join(CHANNELS)}, got {self.channel!r}")
        if min(self.size) < 16 or any(side % 16 for side in self.size):
            raise ConfigError(f"size: width and height must be multiples of 16 [px], got {list(self.size)}")
        if self.pool is not None and any(side // SPATIAL % self.pool for side in self.size):
            raise ConfigError(
                f"pool: {self.pool} does not divide the latent grid {self.latent_grid[1]}x{self.latent_grid[0]} "
                f"(width x height) of size {list(self.size)}"
            )
        self._check_network()
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ConfigError("latents_mean and latents_std: give both or neither")
        self._check_length()
        return self

    def _check_network(self) -> None:
        if self.network is not None and self.weights.random is None:
            raise ConfigError("network: a checkpoint's network is in its config.json; leave this out, or use random")
        if isinstance(self.network, dict):
            given = set(self.network) - {"preset"}
            if unknown := given - self.vae.scalable:
                known = ", ".join(sorted(self.vae.scalable))
                raise ConfigError(f"network: {self.model} has no argument {sorted(unknown)}; known: preset, {known}")
            if self.network.get("preset", "full") not in ("full", "tiny"):
                raise ConfigError(f"network: preset must be full or tiny, got {self.network['preset']!r}")

    def _check_length(self) -> None:
        given, latents = self.given_statistics, self.latents
        if given is not None:
            given.check_times(latents)
        elif self.model == "cv8x8x8" and latents > 16:
            raise ConfigError(
                f"layout: {latents} latent frames, but the statistics of CV8x8x8 end after 16 (121 frames); take "
                "a shorter layout, or give latents_mean and latents_std of 16 values"
            )

    @property
    def vae(self) -> Vae:
        """The facts of `model`."""
        return VAES[self.model]

    @property
    def frame_layout(self) -> frames.Layout:
        """`layout`, resolved."""
        return frames.LAYOUTS[self.layout] if isinstance(self.layout, str) else frames.Layout(self.layout)

    @property
    def latents(self) -> int:
        """T_lat, the latent frames of a clip.

        Raises:
            ConfigError: the layout's length is not 1 + kn.
        """
        return frames.latent_count(len(self.frame_layout.steps), self.vae.temporal)

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        return self.size[1] // SPATIAL, self.size[0] // SPATIAL

    @property
    def given_statistics(self) -> Statistics | None:
        """The statistics that this config gives, if it does."""
        if self.latents_mean is None:
            return None
        return Statistics("config", CHANNELS_OUT, self.latents_mean, self.latents_std)

    def random_network(self) -> dict[str, Any]:
        """Constructor arguments of a randomly initialised network, over the class's defaults."""
        network = {"preset": self.network or "full"} if not isinstance(self.network, dict) else dict(self.network)
        preset = self.vae.tiny if network.pop("preset", "full") == "tiny" else self.vae.full
        return {**self.vae.fixed, **preset, **network}
