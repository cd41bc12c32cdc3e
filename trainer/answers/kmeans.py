"""k-means: a function of points and seed alone, in float64 on the CPU, so that a vocabulary can be made again."""

from __future__ import annotations

import torch
from torch import Tensor

from shards_schema.errors import ConfigError
from trainer import seeds

MOST_POINTS = 100_000
"""Points that are looked at; of more, so many are drawn."""


def kmeans(points_N3: Tensor, size: int, seed: int, iterations: int) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii, 2007).

    Args:
        points_N3: float [N, 3], on the CPU; at most `MOST_POINTS` of them are looked at, drawn by `seed`.
        size: centres.
        seed: of the draws.
        iterations: at most so many; it ends earlier when no centre moves.

    Returns:
        Float32 [size, 3].

    Raises:
        ConfigError: fewer distinct points than `size`.
    """
    generator = seeds.generator("cpu", seed, "k-means")
    points = points_N3[torch.randperm(len(points_N3), generator=generator)[:MOST_POINTS]].double()
    distance = torch.full((len(points),), torch.inf, dtype=torch.float64)
    centre, chosen = points[0], [points[0]]
    for _ in range(size - 1):
        distance = torch.minimum(distance, (points - centre).square().sum(1))
        if not distance.sum() > 0:
            raise ConfigError(f"motion vocabulary: {len(chosen)} distinct motions in the data, size is {size}")
        centre = points[torch.multinomial(distance / distance.sum(), 1, generator=generator)[0]]
        chosen.append(centre)
    centres = torch.stack(chosen)
    for _ in range(iterations):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in torch.split(points, 8192)])
        count = torch.bincount(nearest, minlength=size).clamp_min(1).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        used = torch.bincount(nearest, minlength=size).unsqueeze(1) > 0
        moved = torch.where(used, sums / count, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.float()
