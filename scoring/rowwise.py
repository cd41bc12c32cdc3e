"""Arithmetic that gives a row the same bits whatever stands beside it, so that no score depends on its batch (CPU).

Elementwise operations and sums along the last axis do; three do not. A matrix product is computed by another kernel,
in another order of summation, for one row than for three, and by which is a matter of the processor; and where torch
has AVX-512, `hypot` and `atan2` take the last few elements of an array through another function than the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 128
"""Handled at once, so that their products stay in the cache; a row's sum does not depend on it."""


def length(x: Tensor, y: Tensor) -> Tensor:
    """The length of vectors, elementwise: `hypot` for what is neither above 1e150 nor below 1e-150."""
    return (x * x + y * y).sqrt()


def half_turn(angle: Tensor) -> Tensor:
    """`angle` [rad] in [-pi, pi], the same where it already is: ``atan2(sin, cos)``."""
    return angle - 2.0 * math.pi * (angle / (2.0 * math.pi)).round()


def transform(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows` [..., K] times the transpose of `matrix` [N, K]: [..., N]."""
    flat = rows.reshape(-1, rows.shape[-1])
    products = [(flat[i : i + _ROWS, None] * matrix).sum(dim=-1) for i in range(0, max(len(flat), 1), _ROWS)]
    return torch.cat(products).view(*rows.shape[:-1], len(matrix))
