"""The camera head: camera tokens to pose encodings, refined in four steps.

Each step embeds the encoding so far, modulates the normalised camera tokens by it (AdaLN, Peebles & Xie 2023), lets the
frames attend to each other, and adds a correction. Encoding: translation (3), quaternion with the scalar last (4),
vertical and horizontal field of view in radians (2); OpenCV camera-from-world, the world being the first frame's
camera, its scale not metric.

Legend: B windows, S frames, C = the aggregator's two halves side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers.vggt.geometry import CameraHeadConfig
from teachers.vggt.layers import Block, Mlp

POSE = 9
"""Numbers of a pose encoding."""
_STEPS = 4


class CameraHead(nn.Module):
    """Camera tokens to pose encodings."""

    def __init__(self, dim: int, config: CameraHeadConfig) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE))
        self.embed_pose = nn.Linear(POSE, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.Sequential(*(Block(dim, config.heads) for _ in range(config.depth)))
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(dim, dim // 2, POSE)

    def forward(self, camera_BSC: Tensor) -> Tensor:
        """Last-layer camera tokens, float32 [B, S, C], to pose encodings, float32 [B, S, 9]."""
        tokens: Tensor = self.token_norm(camera_BSC)
        normed: Tensor = self.adaln_norm(tokens)
        encoding = self.empty_pose_tokens.expand(*tokens.shape[:2], -1)
        for step in range(_STEPS):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(encoding)).chunk(3, dim=-1)
            modulated = tokens + gate * (normed * (1 + scale) + shift)
            correction: Tensor = self.pose_branch(self.trunk_norm(self.trunk(modulated)))
            # The learned "no pose yet" is only a condition: the first correction is the first encoding.
            encoding = correction if step == 0 else encoding + correction
        # A field of view is not negative; the other numbers are free.
        return torch.cat((encoding[..., :7], functional.relu(encoding[..., 7:])), dim=-1)
