"""Floating-point operations of a teacher for one scene, by arithmetic on its config: nothing is built or run.

A multiplication and its addition are two operations. Counted are matrix products, convolutions (padding included, as
they are run) and the two products of attention; norms, activations, rotations, resizing and pooling are not, which is
how `torch.utils.flop_counter` counts and what a device's matrix rate is compared with. The tests hold every count
against that counter, to the last operation.

A teacher that has a method ``flops() -> int`` answers for itself; the built-in ones are counted by a function of their
config, in the module that `COUNTERS` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachers.base import Teacher
    from teachers.vjepa2 import VJEPA2Config

COUNTERS = {
    "teachers.cosmos.config:CosmosConfig": "teachers.cosmos.flops:cosmos",
    "teachers.cosmos.predict_config:CosmosPredictConfig": "teachers.cosmos.flops:predict",
    "teachers.vggt.config:VGGTConfig": "teachers.vggt.flops:vggt",
    "teachers.vjepa2:VJEPA2Config": "teachers.flops:vjepa2",
}
"""The config's class (``module:class``) -> the function of it (``module:function``) that counts one scene."""


def flops_of(teacher: Teacher) -> int | None:
    """Operations of `teacher` for one scene; None where nobody counts them (it is no network, or another's).

    Raises:
        WeightsError: the network is described by a checkpoint that cannot be found.
    """
    own = getattr(teacher, "flops", None)
    if callable(own):
        return int(own())
    config: Any = getattr(teacher, "config", None)
    counter = COUNTERS.get(f"{type(config).__module__}:{type(config).__qualname__}")
    if counter is None:
        return None
    module, _, function = counter.partition(":")
    return int(getattr(import_module(module), function)(config))


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """A matrix [inputs, outputs] applied to `tokens` vectors."""
    return 2 * tokens * inputs * outputs


def convolution(places: Sequence[int], kernel: Sequence[int], inputs: int, outputs: int) -> int:
    """A dense convolution at `places` (its output's grid; a transposed one's: its input's) and the kernel's size."""
    return 2 * prod(places) * prod(kernel) * inputs * outputs


def attention(sequences: int, queries: int, keys: int, width: int) -> int:
    """Both products of scaled dot-product attention; `width` is that of all heads together."""
    return 4 * sequences * queries * keys * width


def block(sequences: int, tokens: int, width: int, hidden: int) -> int:
    """A transformer block on `sequences` of `tokens`: queries, keys, values, attention, output, MLP of two layers."""
    projections = linear(sequences * tokens, width, 4 * width)
    mlp = 2 * linear(sequences * tokens, width, hidden)
    return projections + attention(sequences, tokens, tokens, width) + mlp


def vjepa2(config: VJEPA2Config) -> int:
    """V-JEPA 2's encoder on one scene's clips, one a view."""
    from teachers.vjepa2 import PATCH, TUBELET

    encoder = config.encoder
    grid = (config.times, *config.token_grid)
    embedding = convolution(grid, (TUBELET, PATCH, PATCH), 3, encoder.width)
    blocks = encoder.blocks * block(1, prod(grid), encoder.width, encoder.hidden)
    return len(config.views) * (embedding + blocks)
