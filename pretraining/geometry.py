"""VGGT of the size `town`, trained on windows of drives: three views, three moments, or one image.

Its losses are VGGT's own (Wang et al. 2025, section 3.4): depth with its confidence and its gradients, and cameras.

    depth    mean of  c |d - t|  +  c |grad d - grad t|  -  alpha log c
    camera   mean over frames of the Huber distances of the nine numbers, summed

Tokens, points and tracks have none here: the networks of `teachers` have no head for the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pretraining import steps
from pretraining.footage import Footage
from pretraining.steps import Recipe
from pretraining.windows import SKY, Frames, batch, motions, rigs
from synthetic.geometry import rng_of
from teachers.vggt.checkpoint import fill_random
from teachers.vggt.geometry import PRESETS
from teachers.vggt.network import VGGTNetwork

_KINDS = ((0.6, rigs), (0.85, motions))
"""Up to which share of the steps which windows are seen; the rest sees single images of the front camera."""


def untrained(seed: int) -> VGGTNetwork:
    """The network before its first step, which is the one of random weights."""
    with torch.device("meta"):
        network = VGGTNetwork(PRESETS["town"])
    fill_random(network, seed, "cpu")
    return network


def train(
    recipe: Recipe,
    footage: Sequence[Footage],
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> VGGTNetwork:
    """The network that has seen `footage`, frozen."""
    network = untrained(recipe.seed)
    steps.quieten(network, "gamma", "pose_branch.fc2.weight")  # LayerScale's gains, and what gives poses
    every = {kind: [(drive, w) for drive in footage for w in kind(drive)] for kind in (rigs, motions, singles)}

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng = rng_of(recipe.seed, "geometry", step)
        share = rng.uniform()
        kind = next((kind for end, kind in _KINDS if share < end), singles)
        count = recipe.geometry_frames // len(every[kind][0][1])
        chosen = rng.choice(len(every[kind]), count, replace=count > len(every[kind]))
        seen = batch([every[kind][i] for i in chosen])
        out = network.run(seen.images)
        assert out.pose_enc is not None
        assert out.depth is not None
        assert out.depth_conf is not None
        weight = torch.where(seen.counts, 1.0, SKY)
        return {
            "depth": depth_loss(out.depth, out.depth_conf, seen.depth, weight),
            "camera": camera_loss(out.pose_enc, seen.pose),
        }

    steps.train(network, recipe.geometry_steps, recipe.geometry_rate, loss_at, progress)
    return network


def singles(footage: Footage) -> list[Frames]:
    """Windows of one image of the front camera."""
    return [frames[:1] for frames in motions(footage)]


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
