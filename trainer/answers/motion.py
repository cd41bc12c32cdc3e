"""Trajectories as words of a vocabulary of motions (default): k-means of the 0.5 s motions of the training split.

One token a step, so that every answer has the same length, an exact log-probability and no way to fail to parse.
Encoding is closed-loop: each step takes the motion that ends nearest the true pose, given where the tokens before it
really led, so that errors do not add up. Motions are told relative to going straight on at the present speed
(`relative`), so that the words stand closest where drives are most alike. Built from the training split, stored with
the checkpoint. Where one trajectory is asked for, it is the likeliest motion at each step (`decode: greedy`) or the
expected one (`expected`), which no vocabulary rounds; `regression` trains just that, in metres.

Legend: B batch, S steps, A = S tokens, K motions, H history steps.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from shards_schema.inputs.models import StrictModel
from trainer.answers.base import Expectation
from trainer.answers.geometry import compose, motions_of, path, wrap
from trainer.answers.kmeans import kmeans
from trainer.constants import sent

HEADING_METRES = 3.0
"""A radian of heading counts as this many metres: what it moves the car sideways over the next few steps."""


class MotionConfig(StrictModel):
    """The motion vocabulary."""

    kind: Literal["motion"] = "motion"
    size: int = Field(default=128, ge=2)
    """K, motions."""
    relative: bool = True
    """Whether a motion is what is added to going straight on at the speed of now, or the motion itself."""
    smoothing: float = Field(default=0.0, ge=0)
    """Metres; the loss asks for motions near the right one too, exp(-d^2 / 2 smoothing^2); 0: for it alone."""
    regression: float = Field(default=0.0, ge=0)
    """Weight of a second loss: L1, in metres and radians, between the expected trajectory and the drive."""
    decode: Literal["greedy", "expected"] = "greedy"
    """What the policy's one answer is: each step's likeliest motion (`greedy`), or its expected one (`expected`): best
    in the mean error, but between two ways round an obstacle it takes neither."""
    seed: int = 0
    """Of k-means."""
    iterations: int = Field(default=50, ge=1)
    """Of k-means."""


def going_on(status_BH7: Tensor) -> Tensor:
    """Float32 [B, 3]: the motion of half a second at the present velocity (`Batch.status`: m/s, ego axes), no turn."""
    velocity_B2 = status_BH7[:, -1, 3:5].float()
    return torch.cat((0.5 * velocity_B2, torch.zeros_like(velocity_B2[:, :1])), 1)


class MotionAnswers:
    """See the module, and `base.Answers` for shapes. `fit` makes one of a training split.

    Args:
        motions: float32 [K, 3] on the CPU: dx, dy (m), dheading (rad), relative to going straight on if `relative`.
        steps: S.
        smoothing, relative, regression: see `MotionConfig`.
        expected: `decode: expected`.
    """

    end: int | None = None

    def __init__(
        self,
        motions: Tensor,
        steps: int,
        smoothing: float = 0.0,
        relative: bool = True,
        *,
        regression: float = 0.0,
        expected: bool = False,
    ) -> None:
        self.motions, self.relative = motions.float(), relative
        self.regression, self.expected = regression, expected
        self.vocabulary, self.length = len(motions), steps
        self.codebook: Tensor | None = self.motions
        self.smoothing: Tensor | None = None
        self._width = smoothing
        if smoothing > 0:
            scaled = _scaled(self.motions)
            self.smoothing = (-torch.cdist(scaled, scaled).square() / (2 * smoothing**2)).softmax(-1)

    @classmethod
    def fit(cls, future_NS3: Tensor, status_NH7: Tensor, config: MotionConfig) -> MotionAnswers:
        """The vocabulary of the trajectories of the training split.

        Args:
            future_NS3: float [N, S, 3], on the CPU.
            status_NH7: float [N, H, 7].
            config: the recipe.

        Raises:
            ConfigError: fewer distinct motions than `config.size`.
        """
        motions = motions_of(future_NS3.float())
        if config.relative:
            motions = motions - going_on(status_NH7).unsqueeze(1)
        centres = kmeans(_scaled(motions.reshape(-1, 3)), config.size, config.seed, config.iterations)
        return cls(
            centres / _scaled(torch.ones(3)),
            future_NS3.shape[1],
            config.smoothing,
            config.relative,
            regression=config.regression,
            expected=config.decode == "expected",
        )

    def _motions(self, status_BH7: Tensor) -> Tensor:
        """[B, K, 3]: the motions that the tokens mean to each scene."""
        motions = sent(self.motions, status_BH7.device).expand(len(status_BH7), -1, -1)
        return motions + going_on(status_BH7).unsqueeze(1) if self.relative else motions

    def encode(self, future_BS3: Tensor, status_BH7: Tensor) -> Tensor:
        """Closed-loop: int64 [B, S]; no trajectory is refused."""
        motions_BK3, future = self._motions(status_BH7), future_BS3.float()
        pose_B3, tokens = torch.zeros_like(future[:, 0]), []
        for step in range(future.shape[1]):
            token_B, pose_B3 = _nearest(motions_BK3, pose_B3, future[:, step])
            tokens.append(token_B)
        return torch.stack(tokens, 1)

    def decode(self, answers_BA: Tensor, status_BH7: Tensor) -> tuple[Tensor, Tensor]:
        """Every answer parses."""
        motions_BK3 = self._motions(status_BH7)
        rows = torch.arange(len(answers_BA), device=answers_BA.device)
        poses_BS3 = path(motions_BK3[rows.unsqueeze(1), answers_BA])
        return poses_BS3, torch.ones(len(answers_BA), dtype=torch.bool, device=answers_BA.device)

    def expectation(self, status_BH7: Tensor) -> Expectation | None:
        """With `expected`."""
        return ExpectedMotions(self._motions(status_BH7)) if self.expected else None

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """`regression` x the mean L1 of the poses that the expected motions lead to, each after the true words."""
        if not self.regression:
            return None
        with torch.autocast(logits_BAV.device.type, enabled=False):  # bfloat16 would round metres to centimetres
            motion_BS3 = logits_BAV.float().softmax(-1) @ self._motions(status_BH7)
        error_BS3 = path(motion_BS3) - future_BS3.float()
        error_BS3 = torch.cat((error_BS3[..., :2], wrap(error_BS3[..., 2:])), -1)
        return self.regression * error_BS3.abs().mean()

    def state(self) -> dict[str, Any]:
        """The vocabulary and what it means."""
        return {
            "kind": "motion",
            "motions": self.motions,
            "steps": self.length,
            "smoothing": self._width,
            "relative": self.relative,
            "regression": self.regression,
            "expected": self.expected,
        }


class ExpectedMotions:
    """Follows the expected trajectory while answers are sampled: it chooses each token for `Student.sample`.

    The pose of a step is the pose before, moved by the mean of the motions that the policy gives weight to. The token
    that it goes on with is the one that leads nearest there from where the tokens before it led, as in `encode`, so
    the policy is asked about a history such as it has learnt from.

    Args:
        motions_BK3: what each token means to each scene.
    """

    def __init__(self, motions_BK3: Tensor) -> None:
        self._motions = motions_BK3
        self._led = torch.zeros_like(motions_BK3[:, 0])
        self._poses: list[Tensor] = []

    def __call__(self, logp_BK: Tensor) -> Tensor:
        """The next token, int64 [B], by the log-probabilities of this step."""
        before_B3 = self._poses[-1] if self._poses else torch.zeros_like(self._led)
        motion_B3 = (logp_BK.exp().unsqueeze(-1) * self._motions).sum(1)
        self._poses.append(compose(before_B3, motion_B3))
        token_B, self._led = _nearest(self._motions, self._led, self._poses[-1])
        return token_B

    @property
    def trajectory(self) -> Tensor:
        """Float32 [B, S, 3], of the steps so far."""
        return torch.stack(self._poses, 1)


def _nearest(motions_BK3: Tensor, pose_B3: Tensor, wanted_B3: Tensor) -> tuple[Tensor, Tensor]:
    """The token, int64 [B], whose motion leads from a pose nearest to a wanted one, and where it leads, [B, 3]."""
    ends_BK3 = compose(pose_B3.unsqueeze(1), motions_BK3)
    error_BK3 = ends_BK3 - wanted_B3.unsqueeze(1)
    error_BK3 = torch.cat((error_BK3[..., :2], HEADING_METRES * wrap(error_BK3[..., 2:])), -1)
    token_B = error_BK3.square().sum(-1).argmin(1)
    return token_B, ends_BK3[torch.arange(len(ends_BK3), device=ends_BK3.device), token_B]


def _scaled(motions: Tensor) -> Tensor:
    """Motions in metres: the space in which distances are taken."""
    return motions * torch.tensor([1.0, 1.0, HEADING_METRES])
