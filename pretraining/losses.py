"""VGGT's own losses (Wang et al. 2025, section 3.4): depth with its confidence and its gradients, and cameras.

    depth    mean of  c |d - t|  +  c |grad d - grad t|  -  alpha log c
    camera   mean over frames of the Huber distances of the nine numbers, summed

Tokens, points and tracks have none here: the networks of `teachers` have no head for the last two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ALPHA = 0.2
"""How dear confidence is; the paper's."""
HUBER = 0.1
"""Where the camera's loss goes over from square to straight."""


def depth_loss(depth: Tensor, confidence: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The depth loss, a number.

    Args:
        depth: float [..., H, W], predicted.
        confidence: likewise, at least 1.
        truth: likewise.
        weight: likewise, of each pixel; of two neighbours the smaller counts for their difference.
    """
    error = depth - truth
    value = confidence * error.abs() - ALPHA * confidence.log()
    total = (weight * value).sum() / weight.sum()
    for axis in (-1, -2):
        size = error.shape[axis] - 1
        near, next_ = (error.narrow(axis, start, size) for start in (0, 1))
        pair = torch.minimum(weight.narrow(axis, 0, size), weight.narrow(axis, 1, size))
        total = total + (pair * confidence.narrow(axis, 0, size) * (next_ - near).abs()).sum() / pair.sum()
    return total


def camera_loss(pose: Tensor, truth: Tensor) -> Tensor:
    """The camera loss of pose encodings [..., 9], a number; of straight slope 1."""
    return functional.huber_loss(pose, truth, delta=HUBER, reduction="none").sum(-1).mean() / HUBER
