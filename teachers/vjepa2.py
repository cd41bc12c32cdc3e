"""The V-JEPA 2 teacher (arXiv 2506.09985): what a video encoder makes of the last two seconds, through transformers.

Its targets follow from the frames of `steps` alone, by default none after now: they may supervise a policy, and may as
well be its input. Each view is a clip of its own; two frames make a token in time, 16 x 16 pixels in space.

It is one file, to show what a teacher takes: a config, a constructor that reads nothing, and the methods of
`teachers.base.Teacher`. The network is transformers' class, its encoder only, filled strictly from safetensors; no code
of a repository is run, and no image processor, which would want torchvision.

The whole width of a camera is seen, not the centre square: transformers numbers positions as if every clip were square
(another shape gets rows and columns that are wrong, without a word), so the blocks are told them here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from shards_schema.errors import ConfigError, WeightsError
from shards_schema.inputs.models import StrictModel
from shards_schema.records import CHANNELS, Image, Scene
from shards_schema.specs import TargetSpec
from teachers import execution, files, images
from teachers.base import ColumnName, ImageRequest, Needs, TeacherInput
from teachers.device import PhasedCompute, Rows, constant
from teachers.registry import parse_config
from teachers.weights import WeightsConfig

REVISION = 2
"""Raised whenever the same config and weights give other targets."""

PATCH, TUBELET = 16, 2
"""Pixels a token on each side, and frames a token, in every release."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels, in [0, 1]: ImageNet's, as the releases' ``video_preprocessor_config.json`` must say too."""

TENSORS = ("model.safetensors", "model.safetensors.index.json")
PREPROCESSOR = "video_preprocessor_config.json"
"""A checkpoint's files: a folder as the hub has it, with config.json."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One size of encoder.

    Attributes:
        width: D, channels of a token.
        heads: attention heads of a block.
        blocks: of the encoder.
        hidden: channels inside an MLP.
        crop: pixels a side of the square clips that it was trained on.
    """

    width: int
    heads: int
    blocks: int
    hidden: int
    crop: int

    def arguments(self) -> dict[str, Any]:
        """Those of transformers' config that decide what the encoder computes; a checkpoint's must be the same."""
        return {
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.blocks,
            "mlp_ratio": self.hidden / self.width,
            "crop_size": self.crop,
            "patch_size": PATCH,
            "tubelet_size": TUBELET,
            "in_chans": 3,
            "qkv_bias": True,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        }


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        "vitl": Encoder(1024, 16, 24, 4096, 256),
        "vith": Encoder(1280, 16, 32, 5120, 256),
        "vitg": Encoder(1408, 22, 40, 6144, 256),
        "vitg384": Encoder(1408, 22, 40, 6144, 384),
        "tiny": Encoder(32, 2, 3, 128, 256),
    }
)
"""The releases facebook/vjepa2-{vitl,vith,vitg}-fpc64-256 and -vitg-fpc64-384, and one for tests."""

_Count = Annotated[int, Field(ge=1)]


class VJEPA2Config(StrictModel):
    """What a V-JEPA 2 teacher is shown, and what of its tokens is kept."""

    name: ColumnName = "vjepa2"
    """The column."""
    weights: WeightsConfig
    """``random``, ``hub`` with ``revision``, or ``path`` to a folder as the hub has it."""
    network: Literal["vitl", "vith", "vitg", "vitg384", "tiny"] = "vitl"
    """Its size."""
    views: tuple[str, ...] = Field(default=("CAM_F0",), min_length=1)
    """Cameras, each a clip of its own."""
    steps: tuple[int, ...] = Field(default=(-3, -2, -1, 0), min_length=TUBELET)
    """Frames of a clip, ascending, an even number of them (0 is now; 0.5 s apart in NAVSIM). One after 0 makes the
    targets depend on the future, all of them, since every token sees every other."""
    size: tuple[_Count, _Count] = (256, 144)
    """Width and height [px] of the frames, multiples of 16, at most the side that the network was trained on."""
    pools: Mapping[str, tuple[_Count, _Count]] = Field(default={"grid": (9, 16), "tok12": (3, 4)})
    """Target name -> rows and columns of tokens to average the token grid into."""
    batch_size: int = Field(default=8, ge=1)
    """Scenes computed together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32, or bfloat16: autocast, with float32 residuals and norms."""
    attention: execution.Attention = "auto"
    """The kernel of the encoder's attention; see `teachers.execution`."""
    compile: bool = False
    """Whether the encoder's blocks are compiled. Batches then have `batch_size` scenes always."""

    @model_validator(mode="after")
    def _possible(self) -> VJEPA2Config:
        if len(set(self.views) & set(CHANNELS)) < len(self.views):
            raise ConfigError(f"views: expected different ones of {', '.join(CHANNELS)}, got {list(self.views)}")
        if len(self.steps) % TUBELET or sorted(set(self.steps)) != list(self.steps):
            raise ConfigError(
                f"steps: {TUBELET} frames make a token, so an even number of them, ascending; got {list(self.steps)}. "
                "The network would drop an odd one at the end (which is now), in silence"
            )
        if any(side % PATCH or side > self.encoder.crop for side in self.size):
            raise ConfigError(
                f"size: width and height must be multiples of {PATCH} and at most {self.encoder.crop} px, the side "
                f"that {self.network} was trained on; got {list(self.size)}"
            )
        for name, pool in self.pools.items():
            if name == "mean" or pool[0] > self.token_grid[0] or pool[1] > self.token_grid[1]:
                raise ConfigError(
                    f"pools: {name} {list(pool)} (rows, columns): any name but mean, and at most the token grid "
                    f"{list(self.token_grid)} of size {list(self.size)}"
                )
        return self

    @property
    def encoder(self) -> Encoder:
        """The facts of `network`."""
        return ENCODERS[self.network]

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.size[1] // PATCH, self.size[0] // PATCH

    @property
    def times(self) -> int:
        """Tokens in time."""
        return len(self.steps) // TUBELET


def build(config: Mapping[str, Any]) -> VJEPA2Teacher:
    """The registry's entry point.

    Raises:
        ConfigError: a field is impossible, or transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "teacher vjepa2 needs transformers: `pip install -e '.[transformers]'` in the clone of last-shards"
        )
    return VJEPA2Teacher(parse_config(VJEPA2Config, config, "vjepa2"))


class VJEPA2Teacher(PhasedCompute[None]):
    """Pooled tokens of V-JEPA 2's encoder; see `teachers.base.PhasedTeacher` for the methods."""

    def __init__(self, config: VJEPA2Config) -> None:
        self.config = config
        self.name, self.batch_size, self.specs = config.name, config.batch_size, _specs(config)
        self.random_weights = config.weights.random is not None
        self.fixed_batch = config.batch_size if config.compile else None
        wanted = [ImageRequest(step, view) for view in config.views for step in config.steps]
        self.needs = Needs.of(wanted, "set steps and views")
        self._weights: dict[str, Any] | None = None
        self._encoder: Any = None
        self._attention: execution.Context = contextlib.nullcontext

    def provenance(self) -> dict[str, Any]:
        """JSON identity. Weights are named by digest alone, so that hub and path are the same teacher."""
        config = self.config
        if self._weights is None:
            _checked_arguments(config)
            self._weights = files.identity(config.weights, *TENSORS)
        return {
            "kind": "vjepa2",
            "revision": REVISION,
            "weights": dict(self._weights),
            "network": config.encoder.arguments(),
            "positions": "row and column in the square that it was trained on, from its corner; time from the first",
            "views": list(config.views),
            "steps": list(config.steps),
            "size": list(config.size),
            **images.RULE,
            "mean": list(MEAN),
            "std": list(STD),
            "pools": {name: list(pool) for name, pool in config.pools.items()},
            "pool_rule": "adaptive average in float32",
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            **execution.provenance(config.attention, config.compile),
        }

    def requests(self, scene: Scene) -> list[ImageRequest]:
        """Each view's clip, oldest frame first.

        Raises:
            SampleError: code ``missing_frame`` or ``missing_camera``.
        """
        return self.needs.requests(scene)

    def preprocess(self, image: Image) -> Image:
        """uint8 [h, w, 3] at `size`, by `teachers.images.fit`."""
        return images.fit(image, self.config.size)

    def load(self, device: str) -> None:
        """Build the encoder on `device` and fill it; a second call only moves it."""
        config = self.config
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        width = config.encoder.width // config.encoder.heads
        self._attention = execution.attention_context(config.attention, device, dtype, width)
        if self._encoder is None:
            recorded = self.provenance()["weights"]
            if (found := files.identity(self.config.weights, *TENSORS)) != recorded:
                raise WeightsError(f"the weights have changed since they were identified: {recorded}, now {found}")
            self._encoder = _filled(config, device)
            if config.dtype == "bfloat16":
                execution.narrow(self._encoder)
            if config.compile:
                execution.compile_blocks(self._encoder.layer, self._attention)
        self._encoder.to(device)
        self.use(device)

    def gather(self, batch: Sequence[TeacherInput]) -> tuple[dict[str, Rows], None]:
        """The images of each scene's clips, uint8 [views * frames, h, w, 3]."""
        return {"images": [item.parts for item in batch]}, None

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode the clips of all scenes and views together, and pool their tokens."""
        config, images_BNHW3 = self.config, inputs["images"]
        batch, device = len(images_BNHW3), images_BNHW3.device
        views, frames, times = len(config.views), len(config.steps), config.times
        pixels_CTHW3 = images_BNHW3.reshape(batch * views, frames, *images_BNHW3.shape[2:])
        mean, std = (constant(values, device) for values in (MEAN, STD))
        video_CT3HW = ((pixels_CTHW3.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
        with (
            self._attention(),
            torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"),
            execution.exact(device),
        ):
            tokens_CND = encode(self._encoder, video_CT3HW, config.encoder.crop // PATCH).float()
        made = {"mean": tokens_CND.mean(1).reshape(batch, views, -1)}
        planes_PDRQ = tokens_CND.reshape(-1, *config.token_grid, tokens_CND.shape[-1]).permute(0, 3, 1, 2)
        for name, pool in config.pools.items():
            pooled_PRQD = functional.adaptive_avg_pool2d(planes_PDRQ, pool).permute(0, 2, 3, 1).half()
            made[name] = pooled_PRQD.reshape(batch, views, times, *pooled_PRQD.shape[1:])
        return {spec.name: made[spec.name] for spec in self.specs}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_encoder": None, "_attention": contextlib.nullcontext}


def encode(encoder: Any, video_CT3HW: torch.Tensor, side: int) -> torch.Tensor:
    """Normalised tokens [C, N, D] of clips, N in order of time, row, column; `side` is the trained grid's, in tokens.

    What the encoder itself does, but for the positions: token (t, r, q) is at place t side^2 + r side + q, which its
    rotary embedding takes apart again. Where rows and columns are `side` both, that is 0, 1, 2, ...
    """
    _, frames, _, height, width = video_CT3HW.shape
    counts = (frames // TUBELET, height // PATCH, width // PATCH)
    times, rows, columns = (torch.arange(n, device=video_CT3HW.device) for n in counts)
    places_1N = (times[:, None, None] * side**2 + rows[:, None] * side + columns).reshape(1, -1)
    tokens_CND = encoder.embeddings(video_CT3HW).float()  # the sums of the blocks then stay float32 under autocast
    for block in encoder.layer:
        tokens_CND, _ = block(tokens_CND, places_1N)
    normalised: torch.Tensor = encoder.layernorm(tokens_CND)
    return normalised


def _specs(config: VJEPA2Config) -> tuple[TargetSpec, ...]:
    views, width = len(config.views), config.encoder.width
    clip = f"V-JEPA 2 {config.network} tokens of {', '.join(config.views)} at steps {list(config.steps)}"
    pooled = (
        TargetSpec.of(
            name,
            f"view tubelet {name}_row {name}_col channel",
            (views, config.times, rows, columns, width),
            "float16",
            "1",
            f"{clip}, averaged into {rows} x {columns}; a tubelet is two frames.",
        )
        for name, (rows, columns) in config.pools.items()
    )
    mean = TargetSpec.of(
        "mean", "view channel", (views, width), "float32", "1", f"{clip}, averaged over time and space."
    )
    return (*pooled, mean)


def _checked_arguments(config: VJEPA2Config) -> dict[str, Any]:
    """Arguments of transformers' config: the encoder's, and the predictor's as the checkpoint has it.

    Raises:
        WeightsError: the checkpoint is of another network, or was trained on other pixels, or is meant to run its code.
    """
    want = config.encoder.arguments()
    if config.weights.random is not None:
        return want
    file = config.weights.locate(*TENSORS)
    path = files.beside(config.weights, file, TENSORS, "config.json")
    found = files.read_json(path)
    if found.get("model_type") != "vjepa2" or "auto_map" in found:
        raise WeightsError(
            f"{path}: expected model_type 'vjepa2' without code of its own (auto_map), got "
            f"{found.get('model_type')!r}, auto_map {found.get('auto_map')}"
        )
    for name, value in want.items():
        got = found.get(name, ENCODERS["vitl"].arguments()[name])  # transformers' defaults are ViT-L's
        rounded = isinstance(value, float) and isinstance(got, int | float) and math.isclose(got, value, rel_tol=1e-4)
        if got != value and not rounded:
            raise WeightsError(f"{path}: network {config.network} has {name} {value!r}, this checkpoint has {got!r}")
    _check_pixels(files.beside(config.weights, file, TENSORS, PREPROCESSOR))
    return {**want, **{name: value for name, value in found.items() if name.startswith("pred_")}}


def _check_pixels(path: Path) -> None:
    found = files.read_json(path)
    for name, want in (("image_mean", list(MEAN)), ("image_std", list(STD)), ("rescale_factor", 1 / 255)):
        if (got := found.get(name)) != want:
            raise WeightsError(f"{path}: this teacher normalises with {name} {want}, the checkpoint's is {got}")


def _filled(config: VJEPA2Config, device: str) -> Any:
    """The float32 encoder on `device`; the predictor's tensors are checked by name and shape, and not read."""
    import transformers

    arguments = _checked_arguments(config)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network: Any = transformers.VJEPA2Model(transformers.VJEPA2Config(**arguments))  # attention: torch's SDPA
    spare = {name: tuple(t.shape) for name, t in network.state_dict().items() if name.startswith("predictor.")}
    network.predictor = None
    if config.weights.random is not None:
        files.draw(network, config.weights.random, by_name=True, device=device)
    else:
        file = config.weights.locate(*TENSORS)
        files.load(network, files.parts(config.weights, file, TENSORS), torch.float32, spare, device)
    return network.encoder.eval().requires_grad_(False)
