"""From frames to VGGT's windows: images, and what the network is to say of them, in the scale that it is to find.

As the paper has it: the world is the first frame's camera; the unit of length is the mean distance of all points of a
window from there, by which depths and translations are divided; predictions are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretraining.footage import HEIGHT, RIG, VIEWS, WIDTH, Footage
from shards_schema.poses import Float64
from synthetic.rig import pixel_rays

FAR = 100.0
"""Metres: pixels that see farther, or the sky, have no depth that counts."""
SKY = 0.1
"""Their weight in training, where they are told as `FAR`, so that the sky is far and not anything."""

Frames = tuple[int, ...]
"""Of one drive, the reference first."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B windows of S frames.

    Attributes:
        images: float32 [B, S, 3, H, W] in [0, 1].
        depth: float32 [B, S, H, W], in units of each window's `scale`, at most `FAR`.
        counts: bool [B, S, H, W], where the depth is one.
        pose: float32 [B, S, 9], as `teachers.vggt.camera_head` encodes it.
        scale: float64 [B], metres of the unit.
    """

    images: Tensor
    depth: Tensor
    counts: Tensor
    pose: Tensor
    scale: NDArray[np.float64]


def rigs(footage: Footage) -> list[Frames]:
    """Windows of the three views of one moment."""
    return [tuple(footage.frames.index((step, view)) for view in VIEWS) for step in RIG]


def motions(footage: Footage) -> list[Frames]:
    """Windows of three frames of the front camera, 0.5 s apart."""
    front = [i for i, (_, view) in enumerate(footage.frames) if view == VIEWS[0]]
    return list(zip(front, front[1:], front[2:], strict=False))


def batch(windows: Sequence[tuple[Footage, Frames]]) -> Batch:
    """Windows of as many frames each."""
    images, depth, pose, scale = [], [], [], []
    for footage, frames in windows:
        at = list(frames)
        seen, deep = footage.images[at], footage.depth[at]
        encoded, unit = encode(footage.pose[at], footage.intrinsics, deep)
        images.append(seen)
        depth.append(np.minimum(deep, FAR) / unit)
        pose.append(encoded)
        scale.append(unit)
    depths = torch.from_numpy(np.stack(depth).astype(np.float32))
    limits = torch.tensor(scale, dtype=torch.float32)[:, None, None, None]
    return Batch(
        images=torch.from_numpy(np.stack(images)).permute(0, 1, 4, 2, 3).float() / 255,
        depth=depths,
        counts=depths < 0.9999 * FAR / limits,
        pose=torch.from_numpy(np.stack(pose).astype(np.float32)),
        scale=np.array(scale),
    )


def encode(pose_S44: Float64, k: Float64, depth_SHW: NDArray[np.float32]) -> tuple[Float64, float]:
    """Pose encodings [S, 9] of cameras -> town, the first of them the reference, and the unit of length [m]."""
    to_first = np.linalg.inv(pose_S44[0]) @ pose_S44
    rays, distances = pixel_rays(k, WIDTH, HEIGHT), []
    for depth, turn in zip(depth_SHW, to_first, strict=True):
        counts = depth < FAR
        points = rays[counts] * depth[counts, None]
        distances.append(np.linalg.norm(points @ turn[:3, :3].T + turn[:3, 3], axis=-1))
    unit = float(np.concatenate(distances).mean())
    from_first = np.linalg.inv(to_first)
    field = 2 * np.arctan2((HEIGHT / 2, WIDTH / 2), (k[1, 1], k[0, 0]))
    quaternions = np.stack([quaternion(m[:3, :3]) for m in from_first])
    return np.concatenate((from_first[:, :3, 3] / unit, quaternions, np.tile(field, (len(pose_S44), 1))), axis=1), unit


def quaternion(m: Float64) -> Float64:
    """[4] x, y, z, w of a rotation [3, 3] by less than half a turn; w is positive."""
    w = np.sqrt(max(1e-12, 1.0 + np.trace(m))) / 2
    return np.asarray(np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 4 * w * w]) / (4 * w))
