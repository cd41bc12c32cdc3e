"""The Cosmos-Predict teacher's config, and what is fixed about each Video2World transformer that it knows.

Everything that can be known without the checkpoint is checked here, at construction: the clip's length, what of it the
transformer is given, the block, the noise, the pools. What a checkpoint then says must agree (`transformer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from teachers import execution
from teachers.base import ColumnName
from teachers.cosmos.config import CHANNELS_OUT, SPATIAL, CosmosConfig, LayoutName, as_tuple
from teachers.weights import WeightsConfig

TOKEN = 2 * SPATIAL
"""Pixels a token, on each side: one VAE cell is 8, one patch is 2 x 2 cells (and one latent frame)."""

GIVEN_SIGMA = 1e-4
"""Noise level that the transformer is told for the latents it is given; they are in fact clean."""

TRAINED_SIGMAS = (0.002, 80.0)
"""The range in which Predict2 was trained."""

_SIDE_LIMIT = 1920  # max_size of every release: 240 latent cells a side
_TRAINED_LATENTS = 24  # 93 frames; the 10 fps checkpoint of Predict2 was trained on 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One size of transformer.

    Attributes:
        heads: attention heads.
        head_width: channels of a head.
        blocks: L, transformer blocks.
        block: the one that is read by default.
        rope: rope_scale (time, height, width) of Predict2; 2.5 has (1, 3, 3).
        text: channels of a text token in the blocks.
        projected: channels of a text token before 2.5's projection.
        small: further constructor arguments, of the network for tests.
    """

    heads: int
    head_width: int = 128
    blocks: int
    block: int
    rope: tuple[float, float, float] = (1.0, 3.0, 3.0)
    text: int = 1024
    projected: int = 100352
    small: Mapping[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """D, channels of a token."""
        return self.heads * self.head_width


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # Block 19 of 28 is where the published users of Predict2-2B start; 24 of 36 is as deep.
        "2b": Architecture(heads=16, blocks=28, block=19),
        "14b": Architecture(heads=40, blocks=36, block=24, rope=(20 / 24, 2.0, 2.0)),
        "tiny": Architecture(
            heads=2,
            head_width=24,
            blocks=4,
            block=2,
            text=16,
            projected=32,
            small={"mlp_ratio": 2.0, "adaln_lora_dim": 8},
        ),
    }
)
"""The releases (parameters counted in the tests), and a network for tests of the same structure."""


_Side = Annotated[int, Field(le=16_384)]


class CosmosPredictConfig(StrictModel):
    """What a Cosmos-Predict teacher is shown, and what of it is read.

    The transformer is given the clip's frames up to now, as 1 or 2 clean latents, and `horizon` latents of pure noise
    for what comes next. Frames after now never reach it: they are encoded for the targets `latent` and `latent_pool`.
    """

    name: ColumnName = "cosmos_predict"
    """The column."""
    weights: WeightsConfig
    """``random``, ``hub`` with ``revision``, or ``path`` to a folder in the hub's layout, with the subfolders
    ``transformer`` and ``vae``."""
    vae: WeightsConfig | None = None
    """Where the Wan 2.1 VAE is, if it is not in `weights`."""
    model: Literal["predict2", "predict2.5"] = "predict2"
    """Predict2 or Predict2.5, Video2World."""
    network: Literal["2b", "14b", "tiny"] = "2b"
    """Its size."""
    channel: str = "CAM_F0"
    """The camera."""
    layout: LayoutName | Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = "B"
    """A, B or D of `teachers.cosmos.frames`, or the steps themselves; 1 or 5 of them up to now."""
    size: tuple[_Side, _Side] = (512, 288)
    """Width and height [px] of the encoded frames, multiples of 16."""
    latents: bool = True
    """Whether the VAE latents of the whole clip are targets too, as the teacher `cosmos` writes them."""
    pool: int | None = Field(default=4, ge=1)
    """Side of the square of latent cells that `latent_pool` averages; None for no such target."""
    block: int | None = Field(default=None, ge=0)
    """K, the transformer block (from 0) whose output is read; None for the network's default."""
    sigma: float = Field(default=80.0, gt=0.0, allow_inf_nan=False)
    """Noise level of the latents to come; t = sigma / (1 + sigma). They hold noise alone, which is close to what the
    transformer was trained on only where sigma is high."""
    horizon: int = Field(default=2, ge=1)
    """Latents to come, of 4 frames each."""
    noise_seed: int = 0
    """With a scene's token, the seed of its noise."""
    token_pool: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (2, 2)
    """Rows and columns of the rectangle of tokens that `foresight` averages."""
    batch_size: int = Field(default=2, ge=1)
    """Scenes computed together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both networks; statistics, norm and pools are in float32 always. bfloat16 needs a GPU."""
    attention: execution.Attention = "auto"
    """The kernel of the transformer's attention; see `teachers.execution`."""
    compile: bool = False
    """Whether the transformer's blocks are compiled. Batches then have `batch_size` scenes always."""

    @model_validator(mode="after")
    def _possible(self) -> CosmosPredictConfig:
        if self.weights.file is not None:
            raise ConfigError("weights: file is for one network; this teacher has two, in the subfolders of the hub")
        self._check_clip()
        if self.read_block >= self.architecture.blocks:
            raise ConfigError(f"block: {self.network} has blocks 0 to {self.architecture.blocks - 1}, got {self.block}")
        low, high = TRAINED_SIGMAS
        if self.model == "predict2" and not low <= self.sigma <= high:
            raise ConfigError(f"sigma: Predict2 was trained from {low} to {high}, got {self.sigma}")
        if self.given + self.horizon > _TRAINED_LATENTS:
            raise ConfigError(
                f"horizon: at most {_TRAINED_LATENTS - self.given} latents after the {self.given} given, "
                f"got {self.horizon}"
            )
        rows, columns = self.token_grid
        if rows % self.token_pool[0] or columns % self.token_pool[1]:
            raise ConfigError(
                f"token_pool: {list(self.token_pool)} (rows, columns) does not divide the token grid {rows}x{columns} "
                f"of size {list(self.size)}"
            )
        return self

    def _check_clip(self) -> None:
        try:
            clip = self.clip
        except ValidationError as error:  # its fields are ours, so its messages are too
            problems = error.errors(include_url=False)
            raise ConfigError("; ".join(p["msg"].removeprefix("Value error, ") for p in problems)) from error
        if max(self.size) > _SIDE_LIMIT:
            raise ConfigError(f"size: the transformer has positions for {_SIDE_LIMIT} px a side, got {list(self.size)}")
        steps = clip.frame_layout.steps
        frames = sum(step <= 0 for step in steps)
        if frames not in (1, 5) or steps[frames - 1] != 0:
            raise ConfigError(
                "layout: the transformer is given 1 or 5 frames, the last of them now, as it was trained; of "
                f"{list(steps)}, {frames} are up to now"
            )
        if not self.latents and frames != len(steps):
            raise ConfigError(
                f"layout: without latents nothing reads the frames after now; take {list(steps[:frames])}"
            )

    @property
    def clip(self) -> CosmosConfig:
        """The config of the VAE, its clip and its targets."""
        weights = self.vae or self.weights
        network: Literal["full", "tiny"] = "tiny" if self.network == "tiny" else "full"
        return CosmosConfig(
            weights=weights,
            model="wan",
            network=None if weights.random is None else network,
            channel=self.channel,
            layout=self.layout,
            size=self.size,
            pool=self.pool if self.latents else None,
            batch_size=self.batch_size,
            dtype=self.dtype,
        )

    @property
    def architecture(self) -> Architecture:
        """The facts of `network`."""
        return ARCHITECTURES[self.network]

    @property
    def read_block(self) -> int:
        """k: `block`, or the network's default."""
        return self.architecture.block if self.block is None else self.block

    @property
    def given(self) -> int:
        """Latents that the transformer is given: 1 or 2."""
        return 1 if sum(step <= 0 for step in self.clip.frame_layout.steps) == 1 else 2

    @property
    def time(self) -> float:
        """t = sigma / (1 + sigma), the transformer's clock: 0 clean, 1 noise."""
        return self.sigma / (1.0 + self.sigma)

    @property
    def given_time(self) -> float:
        """The clock of the latents that are given: Predict2's s / (1 + s), 2.5's s, of the same s."""
        return GIVEN_SIGMA / (1.0 + GIVEN_SIGMA) if self.model == "predict2" else GIVEN_SIGMA

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of a latent frame's tokens, before pooling."""
        return self.size[1] // TOKEN, self.size[0] // TOKEN

    @property
    def fixed(self) -> dict[str, Any]:
        """Constructor arguments that make it this model; a checkpoint's config.json must say the same."""
        return {
            "in_channels": CHANNELS_OUT + 1,  # the conditioning mask
            "out_channels": CHANNELS_OUT,
            "num_attention_heads": self.architecture.heads,
            "attention_head_dim": self.architecture.head_width,
            "num_layers": self.architecture.blocks,
            "patch_size": [1, 2, 2],
            "concat_padding_mask": True,
            "extra_pos_embed_type": None,
            "use_crossattn_projection": self.model == "predict2.5",
        }

    def random_network(self) -> dict[str, Any]:
        """Constructor arguments of a randomly initialised network, over the class's defaults: the release's own."""
        facts, projected = self.architecture, self.model == "predict2.5"
        rope = (1.0, 3.0, 3.0) if projected else facts.rope
        text = {"crossattn_proj_in_channels": facts.projected, "encoder_hidden_states_channels": facts.text}
        return {
            **self.fixed,
            "text_embed_dim": facts.text,
            "rope_scale": list(rope),
            **(text if projected else {}),
            **facts.small,
        }
