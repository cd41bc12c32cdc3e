"""Seeds of the trainer: no two generators begin alike, and each is what it always was."""

from __future__ import annotations

from itertools import product

import torch

from trainer.seeds import generator, mixed

PURPOSES = ("weights", "dropout", "answers", "held out", "k-means")


def test_neighbours_share_nothing() -> None:
    """Seeds, purposes, ranks and steps, some as the words of others; also in the 32 bits that torch's CPU looks at."""
    found = [mixed(*key) for key in product(range(4), PURPOSES, range(4), range(4))]
    assert len({seed & 0xFFFFFFFF for seed in found}) == len(found)
    assert mixed(1, "answers", 2, 3) != mixed(1, "answers", 23)
    assert all(0 <= seed < 2**63 for seed in found)


def test_generators_of_ranks_draw_apart() -> None:
    """Rank 1 of seed 0 and rank 0 of seed 1; a sampler and an evaluation of the same number."""
    names = [(0, "answers", 1, 0), (1, "answers", 0, 0), (0, "held out", 1), (0, "dropout", 1, 0)]
    drawn = [torch.rand(100, generator=generator("cpu", *name)) for name in names]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert not torch.isin(first, second).any()
        assert torch.equal(first, torch.rand(100, generator=generator("cpu", *names[i])))


def test_a_seed_is_the_same_for_ever() -> None:
    """What was begun has to go on, and be made again, with later code: SHA-256 of ``0/answers/1/0``, by hand."""
    assert mixed(0, "answers", 1, 0) == 0x906F709EB2BB39EC >> 1
