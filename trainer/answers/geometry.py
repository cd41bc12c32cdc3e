"""Poses and the motions between them, in the plane: x, y in metres, heading in radians.

A motion (dx, dy, dheading) is given in the frame of the pose that it starts from. `path` and `motions_of` are inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compose(pose: Tensor, motion: Tensor) -> Tensor:
    """The pose [..., 3] after a motion [..., 3] that is given in its frame; headings in (-pi, pi]."""
    cos, sin = pose[..., 2].cos(), pose[..., 2].sin()
    x = pose[..., 0] + cos * motion[..., 0] - sin * motion[..., 1]
    y = pose[..., 1] + sin * motion[..., 0] + cos * motion[..., 1]
    return torch.stack((x, y, wrap(pose[..., 2] + motion[..., 2])), -1)


def wrap(angle: Tensor) -> Tensor:
    """An angle in (-pi, pi]."""
    return torch.atan2(angle.sin(), angle.cos())


def motions_of(future_BS3: Tensor) -> Tensor:
    """The motions [B, S, 3] that lead from the origin through the poses of a trajectory: the inverse of `path`."""
    before = torch.cat((torch.zeros_like(future_BS3[:, :1]), future_BS3[:, :-1]), 1)
    delta = future_BS3 - before
    cos, sin = before[..., 2].cos(), before[..., 2].sin()
    x = cos * delta[..., 0] + sin * delta[..., 1]
    y = -sin * delta[..., 0] + cos * delta[..., 1]
    return torch.stack((x, y, wrap(delta[..., 2])), -1)


def path(motion_BS3: Tensor) -> Tensor:
    """The poses [B, S, 3] that motions, one after the other, lead to from the origin: the inverse of `motions_of`."""
    pose_B3, poses = torch.zeros_like(motion_BS3[:, 0]), []
    for motion_B3 in motion_BS3.unbind(1):
        pose_B3 = compose(pose_B3, motion_B3)
        poses.append(pose_B3)
    return torch.stack(poses, 1)
