"""What a VGGT teacher is: weights, geometry, which images, which layers, how they are pooled.

Everything here decides the bits of the targets, so all of it is in the teacher's provenance, in a resolved form: a
preset by its geometry, a layer by its positive index.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from shards_schema.inputs.models import StrictModel
from shards_schema.records import CHANNELS
from teachers import execution
from teachers.vggt.geometry import PATCH, PRESETS, VGGTNetworkConfig
from teachers.weights import WeightsConfig

Head = Literal["camera", "depth"]


class PoolConfig(StrictModel):
    """An adaptive average of the patch grid to `rows` x `cols` cells, kept as a grid or `flat` as a list of tokens."""

    rows: PositiveInt
    cols: PositiveInt
    flat: bool = False


class VGGTConfig(StrictModel):
    """The VGGT teacher's config."""

    name: str = "vggt"
    """The column, where one dataset has two configs of this teacher."""
    weights: WeightsConfig
    """Where the weights come from."""
    network: VGGTNetworkConfig = PRESETS["1b"]
    """A preset's name (`1b`, `small`, `tiny`, `town`), or a geometry."""
    views: tuple[str, ...] = Field(default=("CAM_F0", "CAM_L0", "CAM_R0"), min_length=1)
    """Camera channels, in order."""
    window: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Steps (2 Hz frames from now), in order. The network sees len(window) x len(views) frames, by step, then by view;
    the first of them is the reference, in whose camera frame poses are given, and whose tokens differ."""
    width: PositiveInt = 518
    """Pixels across of the images that the network sees, a multiple of 14."""
    height: PositiveInt | None = None
    """Pixels down; None for what a 16:9 image has at that width. An image of another aspect is refused."""
    layers: tuple[int, ...] = Field(default=(-1,), min_length=1)
    """Aggregator layers that are stored; negative ones count from the end."""
    pools: dict[str, PoolConfig] = Field(
        default={"grid": PoolConfig(rows=10, cols=18), "tok12": PoolConfig(rows=3, cols=4, flat=True)}
    )
    """By name, how each layer's patch tokens are pooled."""
    pool_dtype: Literal["float16", "float32"] = "float16"
    """In which the pooled tokens leave the teacher. float16 ends at 65,504, which raw tokens can pass; float32 leaves
    the choice of what is stored to the column's `storage`."""
    heads: tuple[Head, ...] = ("camera", "depth")
    """Which heads are run and stored."""
    depth_cell: Literal[1, 7] = 7
    """Pixels a side of the cells whose median depth is stored; odd, so that a median is a value."""
    depth_precision: Literal["float32", "tf32"] = "float32"
    """tf32 lets the tensor cores round the factors of the depth head's convolutions to 11 bits, as torch does unless
    told otherwise; with `dtype` bfloat16 only."""
    batch_size: PositiveInt = 4
    """Scenes run together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32, or bfloat16: the aggregator under autocast, with float32 residuals, and float32 heads."""
    attention: execution.Attention = "auto"
    """The kernel of the aggregator's attention; see `teachers.execution`."""
    compile: bool = False
    """Whether the blocks of patch encoder and aggregator are compiled (ours only). Batches then have `batch_size`
    scenes always."""
    implementation: Literal["ours", "upstream"] = "ours"
    """ours, or Meta's package ``vggt`` where it is installed."""

    @field_validator("network", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"network: expected one of {sorted(PRESETS)} or a geometry, got {value!r}")
            return PRESETS[value]
        return value

    @model_validator(mode="after")
    def _possible(self) -> VGGTConfig:
        unknown = [view for view in self.views if view not in CHANNELS]
        if unknown:
            raise ValueError(f"views: expected channels of {list(CHANNELS)}, got {unknown}")
        for name in ("views", "window", "heads"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each at most once, got {list(values)}")
        if self.width % PATCH or self.image_height % PATCH or self.image_height > self.width or not self.image_height:
            raise ValueError(
                f"width and height must be multiples of {PATCH}, height at most width; got {self.width} and "
                f"{self.image_height}"
            )
        depth = self.network.depth
        if not all(-depth <= i < depth for i in self.layers) or len(set(self.layer_indices)) < len(self.layers):
            raise ValueError(f"layers: expected different ones of -{depth}..{depth - 1}, got {list(self.layers)}")
        rows, cols = self.patch_grid
        for name, pool in self.pools.items():
            if name == "special":
                raise ValueError("pools: 'special' is the name of the camera and register tokens")
            if pool.rows > rows or pool.cols > cols:
                raise ValueError(f"pools.{name}: {pool.rows} x {pool.cols} cells of only {rows} x {cols} patches")
        for head, config in (("camera", self.network.camera), ("depth", self.network.depth_head)):
            if head in self.heads and config is None:
                raise ValueError(f"heads: {head} is asked for, but the network's geometry has none")
        if self.weights.town and self.network != PRESETS["town"]:
            raise ValueError("network: weights: {town: true} are of the network town; set network: town")
        if self.depth_precision == "tf32" and self.dtype != "bfloat16":
            raise ValueError("depth_precision: tf32 is for dtype: bfloat16, where the depth head alone is in float32")
        if self.compile and self.implementation != "ours":
            raise ValueError("compile: only our implementation is compiled; leave it out, or use implementation: ours")
        return self

    @property
    def image_height(self) -> int:
        """Pixels down of the images that the network sees."""
        return round(self.width * 9 / 16 / PATCH) * PATCH if self.height is None else self.height

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_height // PATCH, self.width // PATCH

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """`layers` as positive indices, in the order given."""
        return tuple(i % self.network.depth for i in self.layers)

    @property
    def frames(self) -> int:
        """S, the frames of a window."""
        return len(self.window) * len(self.views)

    @property
    def built(self) -> VGGTNetworkConfig:
        """The geometry with only the heads that are run."""
        return self.network.model_copy(
            update={
                "camera": self.network.camera if "camera" in self.heads else None,
                "depth_head": self.network.depth_head if "depth" in self.heads else None,
            }
        )
