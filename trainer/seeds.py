"""Seeds of the trainer's generators: one for each purpose, rank and step, all of them from the recipe's one number.

A seed is the hash of all that it is for. Sums such as seed + rank are the same number for neighbours (seed 0, rank 1
and seed 1, rank 0), and generators that begin alike draw alike. Checkpoints hold the states of the generators
themselves, so a run that was begun with other seeds goes on as it would have.
"""

from __future__ import annotations

import hashlib

import torch


def mixed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed, 0 <= s < 2^63.

    Args:
        seed: of the recipe.
        purpose: what is drawn, a word: no two generators have the same.
        numbers: rank, step, place: as many for every call of one purpose.
    """
    told = "/".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A generator of its own, begun with `mixed`."""
    return torch.Generator(device).manual_seed(mixed(seed, purpose, *numbers))
