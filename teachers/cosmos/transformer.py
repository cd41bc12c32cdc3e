"""From a config to the Video2World transformer that it names, cut after the block that is read.

diffusers' own class with ``num_layers = k + 1``: the blocks behind k are neither made nor read from the file, and what
stands after them (`norm_out`, `proj_out`) passes the tokens through, so that its own, whole forward ends at block k.
No hook, no exception, no branch: what it returns is the tokens, laid out as an image, and `tokens_of` undoes that.

The padding-mask channel is ours to add: with ``concat_padding_mask`` the forward would resize a mask by torchvision,
which we do not have, and only for a batch of one. All pixels are real here, so the channel is zeros, and
`condition_mask` carries it in second place, which is where the forward would put it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards_schema.errors import WeightsError
from teachers import files
from teachers.cosmos.predict_config import CosmosPredictConfig

CLASS = "CosmosTransformer3DModel"

FILES = (f"transformer/{files.TENSORS}", f"transformer/{files.INDEX}", files.TENSORS, files.INDEX)
"""Where the weights may lie in a repository or folder."""

DEFAULTS: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "num_layers": 28,
    "patch_size": [1, 2, 2],
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",
    "use_crossattn_projection": False,
}
"""The class's own, for what a config.json leaves out: one written before an argument existed does not name it."""

_REFUSED = ("img_context_dim_in", "controlnet_block_every_n")  # Transfer2.5: other inputs, which we do not have


@dataclass(frozen=True, slots=True)
class TransformerDescription:
    """A transformer before it is built.

    Attributes:
        arguments: constructor arguments of the whole network; what is not named is the class's default.
        files: the safetensors files; none for random weights.
    """

    arguments: dict[str, Any]
    files: tuple[Path, ...]

    def identity(self) -> dict[str, Any]:
        """JSON for provenance. The class's defaults are part of a random network, so it names diffusers' version."""
        return {"arguments": self.arguments} | ({} if self.files else {"diffusers": version("diffusers")})


def describe_transformer(config: CosmosPredictConfig) -> TransformerDescription:
    """What `config` names; reads a checkpoint's config.json, not its weights.

    Raises:
        WeightsError: a file is missing, or the checkpoint is of another class or another architecture.
    """
    if config.weights.random is not None:
        return TransformerDescription(config.random_network(), ())
    file = config.weights.locate(*FILES)
    path = files.beside(config.weights, file, FILES, "config.json")
    arguments = files.read_json(path)
    _check_config(config, arguments, path)
    public = {name: value for name, value in arguments.items() if not name.startswith("_")}
    return TransformerDescription(public, tuple(files.parts(config.weights, file, FILES)))


def _check_config(config: CosmosPredictConfig, arguments: dict[str, Any], path: Path) -> None:
    if arguments.get("_class_name") != CLASS:
        raise WeightsError(f"{path}: expected a {CLASS}, but this is a {arguments.get('_class_name')!r}")
    for name, want in config.fixed.items():
        if (got := arguments.get(name, DEFAULTS[name])) != want:
            raise WeightsError(
                f"{path}: model {config.model} of size {config.network} has {name} {want!r}, but this checkpoint has "
                f"{got!r}; set `model` and `network` to what it is, or take a Video2World checkpoint"
            )
    for name in _REFUSED:
        if arguments.get(name):
            raise WeightsError(f"{path}: {name} is {arguments[name]!r}: this is no Video2World transformer")


def build_transformer(
    config: CosmosPredictConfig,
    description: TransformerDescription,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
) -> Any:
    """The transformer up to the block that is read, `dtype` on `device`; torch's global random state is as it was.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape; config.json makes no network.
    """
    network = make_transformer(description, config.read_block + 1)
    if description.files:
        whole = make_transformer(description, None).state_dict()
        spare = {name: tuple(tensor.shape) for name, tensor in whole.items()}
        files.load(network, description.files, dtype, spare, device)
    else:
        assert config.weights.random is not None
        files.draw(network, config.weights.random, by_name=True, dtype=dtype, device=device)
    return network.eval().requires_grad_(False)


def make_transformer(description: TransformerDescription, blocks: int | None) -> Any:
    """The network on the meta device: whole, or its first `blocks` blocks as this module's docstring says.

    Raises:
        WeightsError: the arguments make no network.
    """
    import diffusers

    arguments = description.arguments | ({} if blocks is None else {"num_layers": blocks})
    try:
        with torch.device("meta"):
            network: Any = diffusers.CosmosTransformer3DModel(**arguments)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise WeightsError(f"config.json {arguments} makes no {CLASS} of diffusers: {error}") from error
    if blocks is not None:
        network.norm_out, network.proj_out = _PassTokens(), nn.Identity()
        network.register_to_config(concat_padding_mask=False)  # after construction: the channel's weights are there
    return network


class _PassTokens(nn.Module):
    """In place of the output norm: the tokens as they are."""

    def forward(self, tokens_BND: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return tokens_BND


def tokens_of(sample_BETHW: torch.Tensor) -> torch.Tensor:
    """[B, T, H/2, W/2, D], the tokens that a cut transformer has laid out as an image [B, D/4, T, H, W].

    A token's channels are (row in patch, column in patch, E = D/4), the order in which the forward unpatchifies them.
    """
    batch, width, times, height, columns = sample_BETHW.shape
    patches_BETRpQq = sample_BETHW.reshape(batch, width, times, height // 2, 2, columns // 2, 2)
    return patches_BETRpQq.permute(0, 2, 3, 5, 4, 6, 1).flatten(4)
