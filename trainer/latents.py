"""Latent tokens: their learned inputs, the adapters that tie their hidden states to the teachers, and the targets.

A latent is a position whose input is a parameter, injected at the embedding; no vocabulary is resized. Latent n of
`wm` is aligned to cell n of a grid over the teacher's feature (for 3x12 dynamics latents: time 3, row 3, col 4), so
the target of a sample is [N, C] whatever the teacher's own resolution is. Targets are standardised a channel with
statistics that are taken once, of the training split or of the column, and stored with the checkpoint. Adapters exist
in training only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics
from trainer.constants import sent

LATENTS = ("wm", "geo")
"""The two kinds, in the order in which they stand."""


class TargetConfig(StrictModel):
    """Which feature a kind of latents is aligned to."""

    column: str
    """Of the dataset (``cosmos``, ``vggt``)."""
    target: str
    """In that column (``latent_pool``, ``l3_grid``)."""
    grid: Mapping[str, Annotated[int, Field(ge=1, le=4096)]] = Field(min_length=1)
    """Dimension of the target -> cells along it, in the order in which the latents run through them; the product is the
    number of latents. An axis is averaged into (or, if shorter, repeated over) its cells."""
    select: Mapping[str, int] = {}
    """Dimension -> index, for axes of which one entry is taken (``view: 0``)."""
    channel: str = "channel"
    """The dimension that holds the features."""

    @property
    def latents(self) -> int:
        """N, how many latents are aligned to it."""
        return math.prod(self.grid.values())

    def check(self, spec: TargetSpec) -> None:
        """Refuse a target that has other dimensions.

        Raises:
            ConfigError: a dimension that the target does not have, or one that is neither in grid nor selected.
        """
        named = [*self.grid, *self.select, self.channel]
        if sorted(named) != sorted(spec.dims):
            raise ConfigError(
                f"{self.column}/{self.target} has dims {spec.dims}, grid + select + channel name {tuple(named)}; "
                "each dimension has to be named once"
            )
        if spec.ragged:
            raise ConfigError(f"{self.column}/{self.target} is ragged {spec.shape}: latents need a fixed shape")

    def tokens(self, array: NDArray[np.generic], dims: tuple[str, ...]) -> NDArray[np.float32]:
        """The target of one sample as float32 [N, C].

        Args:
            array: as it stands in the shard.
            dims: the name of each of its axes.
        """
        x = array.astype(np.float32)
        left = list(dims)
        for dim, index in self.select.items():
            x = np.take(x, index, axis=left.index(dim))
            left.remove(dim)
        x = x.transpose([left.index(d) for d in (*self.grid, self.channel)])
        for axis, cells in enumerate(self.grid.values()):
            x = np.moveaxis(np.tensordot(averages(x.shape[axis], cells), x, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]), dtype=np.float32)


def averages(size: int, cells: int) -> NDArray[np.float32]:
    """[cells, size]: cell i averages entries floor(i size / cells) .. ceil((i + 1) size / cells) (adaptive pooling)."""
    weights = np.zeros((cells, size), dtype=np.float32)
    for i in range(cells):
        begin, end = i * size // cells, -(-(i + 1) * size // cells)
        weights[i, begin:end] = 1 / (end - begin)
    return weights


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of each channel, float32 [C]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, channels: ChannelStatistics) -> Statistics:
        """Those of a column, or of a split: a std under a thousandth of the largest is raised to that."""
        std = channels.std
        floor = max(1e-6, 1e-3 * float(std.max()))  # a constant channel has nothing to learn, and must not explode
        return cls(torch.from_numpy(channels.mean).float(), torch.from_numpy(np.maximum(std, floor)).float())

    @classmethod
    def over(cls, samples: Iterable[Mapping[str, NDArray[np.float32]]]) -> dict[str, Statistics]:
        """Of every latent of every sample, kind -> [N, C] each, in float64, in one pass; one sample is in memory.

        Raises:
            ConfigError: no sample.
        """
        return {kind: cls.of(sums) for kind, sums in channel_sums(samples).items()}

    def standardise(self, features: Tensor) -> Tensor:
        """(features - mean) / std, over the last axis."""
        return (features - self._as(self.mean, features)) / self._as(self.std, features)

    def restore(self, features: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return features * self._as(self.std, features) + self._as(self.mean, features)

    @staticmethod
    def _as(constant: Tensor, features: Tensor) -> Tensor:
        return sent(constant, features.device).to(features.dtype)


def channel_sums(samples: Iterable[Mapping[str, NDArray[np.float32]]]) -> dict[str, ChannelStatistics]:
    """Of every latent of samples, as `Statistics.over` takes them, which raises what this raises."""
    return merged_sums({kind: ChannelStatistics.of(target, 1) for kind, target in sample.items()} for sample in samples)


def merged_sums(parts: Iterable[dict[str, ChannelStatistics]]) -> dict[str, ChannelStatistics]:
    """The sums of several sets of samples, in their order.

    Raises:
        ConfigError: there is none.
    """
    every = iter(parts)
    first = next(every, None)
    if first is None:
        raise ConfigError("statistics: the training split has no samples")
    return reduce(lambda sums, more: {kind: sums[kind].merged(part) for kind, part in more.items()}, every, first)


class LatentInputs(nn.Module):
    """The learned inputs of the latents.

    Args:
        counts: latents of each kind, ``{"wm": 36, "geo": 12}``.
        width: D of the student.
        scale: standard deviation at the start; that of the student's own embeddings.
    """

    def __init__(self, counts: Mapping[str, int], width: int, scale: float = 0.02) -> None:
        super().__init__()
        self.counts = {kind: counts[kind] for kind in LATENTS}
        self.inputs = nn.Parameter(torch.randn(sum(self.counts.values()), width) * scale)
        self.inputs.requires_grad_(len(self.inputs) > 0)  # of no latents there is nothing to learn, and FSDP minds

    def forward(self, batch: int) -> Tensor:
        """[B, N, D], wm before geo."""
        return self.inputs.unsqueeze(0).expand(batch, -1, -1)


class Adapter(nn.Module):
    """Hidden states of one kind of latents [B, N, D] -> standardised features [B, N, C]: norm, linear, GELU, linear."""

    def __init__(self, width: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, states_BND: Tensor) -> Tensor:
        """[B, N, C]."""
        out: Tensor = self.layers(states_BND.float())
        return out
