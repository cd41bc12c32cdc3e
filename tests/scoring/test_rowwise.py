"""A row's bits do not depend on what stands beside it: every count of rows that a kernel may treat in its own way."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring.rowwise import half_turn, length, transform

COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 300]
MATRIX = torch.from_numpy(np.random.default_rng(1).normal(size=(40, 40)))
OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "length": lambda rows: length(rows, rows.roll(1, dims=1)),
    "half_turn": half_turn,
    "transform": lambda rows: transform(rows, MATRIX),
}
TAKEN_FROM_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "acos": lambda rows: torch.acos((rows / 8).clamp(-1, 1)),
    "remainder": lambda rows: torch.remainder(rows, 2 * math.pi),
    "round": lambda rows: torch.round(rows, decimals=8),
    "cumsum": lambda rows: rows.cumsum(dim=1),
    "sum of 2": lambda rows: rows.view(-1, 20, 2).sum(dim=-1),
    "sum of 10": lambda rows: rows[:, :10].contiguous().sum(dim=1),
    "sum of 40": lambda rows: rows.sum(dim=1),
    "mean of squares": lambda rows: rows.square().mean(dim=-1),
    "sum of each 11": lambda rows: rows.unfold(1, 11, 1).sum(dim=-1),
}


@pytest.mark.parametrize("name", [*OWN, *TAKEN_FROM_TORCH])
def test_a_row_alone_is_the_row_among_others(name: str) -> None:
    """Of torch's own, what the scorer uses: where one of them stops to be so on some machine, it is known by name."""
    operation = (OWN | TAKEN_FROM_TORCH)[name]
    rows = torch.from_numpy(np.random.default_rng(0).normal(scale=3.0, size=(max(COUNTS), 40)))
    alone = torch.cat([operation(row.clone()[None]) for row in rows])
    for count in COUNTS:
        assert operation(rows[-count:].clone()).equal(alone[-count:]), count


def test_they_are_what_they_say() -> None:
    rng = np.random.default_rng(2)
    rows, matrix, angles = rng.normal(size=(2, 300, 40)), rng.normal(size=(7, 40)), rng.uniform(-9, 9, 2000)
    found = transform(torch.from_numpy(rows), torch.from_numpy(matrix))
    np.testing.assert_allclose(found, rows @ matrix.T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(transform(torch.from_numpy(rows[0, 0]), torch.from_numpy(matrix)), found[0, 0], atol=0)
    assert transform(torch.zeros(0, 40), torch.zeros(7, 40)).shape == (0, 7)
    turned = half_turn(torch.from_numpy(angles))
    np.testing.assert_allclose(turned, np.arctan2(np.sin(angles), np.cos(angles)), atol=1e-14)
    within = torch.from_numpy(angles[np.abs(angles) < math.pi])
    assert half_turn(within).equal(within)
    np.testing.assert_allclose(length(*torch.from_numpy(rows)), np.hypot(*rows), rtol=4e-16)
