"""Savitzky-Golay filters as matrices (A. Savitzky and M. Golay, 1964), equal to scipy's in its mode ``interp``.

A filter fits a polynomial to a window around each sample and takes its value or derivative at the sample; the first
and last half window are read off the first and last full window's polynomial. All of it is linear in the samples.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoring.rowwise import transform


@functools.cache
def savgol(count: int, window: int, degree: int, derivative: int = 0, interval: float = 1.0) -> NDArray[np.float64]:
    """The matrix [count, count] of a filter over `count` samples.

    Args:
        count: samples, at least `window`.
        window: samples a fit; for an even one scipy evaluates at the middle of the window, half a sample late.
        degree: of the polynomial.
        derivative: which derivative of it.
        interval: time between samples.
    """
    out = np.zeros((count, count))
    half = window // 2
    scale = interval**-derivative
    middle = _row(window, degree, derivative, (window - 1) / 2.0) * scale
    for i in range(half, count - half):
        start = i - (window - 1) // 2
        out[i, start : start + window] = middle
    for i in range(half):
        out[i, :window] = _row(window, degree, derivative, float(i)) * scale
        out[count - 1 - i, count - window :] = _row(window, degree, derivative, float(window - 1 - i)) * scale
    out.setflags(write=False)
    return out


def _row(window: int, degree: int, derivative: int, at: float) -> NDArray[np.float64]:
    """Weights [window] that give the derivative at position `at` of the polynomial fitted to samples 0..window-1."""
    # Centred and scaled positions keep the fit well conditioned for a window of 41.
    middle, half = (window - 1) / 2.0, max(1.0, (window - 1) / 2.0)
    position = (np.arange(window) - middle) / half
    fit = np.linalg.pinv(np.vander(position, degree + 1, increasing=True))
    u = (at - middle) / half
    powers = np.arange(degree + 1)
    factor = np.array([math.perm(int(p), derivative) for p in powers], dtype=np.float64)
    basis = factor * np.where(powers >= derivative, u ** np.maximum(powers - derivative, 0), 0.0)
    return np.asarray(basis @ fit / half**derivative, dtype=np.float64)


def smooth(signal: Tensor, *filters: NDArray[np.float64]) -> Tensor:
    """`signal` [..., K] through filters [K, K] in turn, rounded to 8 decimals after each, as the devkit does."""
    for f in filters:
        signal = torch.round(transform(signal, torch.tensor(f, device=signal.device)), decimals=8)
    return signal


def unwrap_by_rounding(heading: Tensor) -> Tensor:
    """Headings [..., K] without jumps, by rounding the steps to whole turns (half to even), as the devkit does."""
    turns = (heading.diff(dim=-1) / (2.0 * math.pi)).round().cumsum(dim=-1)
    return torch.cat((heading[..., :1], heading[..., 1:] - 2.0 * math.pi * turns), dim=-1)
