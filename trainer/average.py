"""An exponential moving average of the trained weights: what is evaluated, and what a stage leaves.

After step k (from 0) of a stage the mean moves towards the weights by 1 - min(decay, (1 + k) / (10 + k)), so that the
first steps are soon forgotten. Sharded parameters are averaged shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """The mean of a model's trained parameters, beginning with what they are now.

    Args:
        model: its parameters are read, and lent the mean by `used`.
        decay: in [0, 1); higher is longer.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._means = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, k: int) -> None:
        """Step k of the stage is done."""
        weight = 1 - min(self._decay, (1 + k) / (10 + k))
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter.detach(), weight)

    @contextmanager
    def used(self) -> Iterator[None]:
        """While this holds, the model has the mean; then its own weights again, to the bit."""
        own = [p.detach().clone() for p in self._parameters]
        self.give()
        try:
            yield
        finally:
            self._fill(own)

    def give(self) -> None:
        """The model has the mean from now on."""
        self._fill(self._means)

    @torch.no_grad()
    def _fill(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
