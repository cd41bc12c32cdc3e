"""Trajectories as tokens, two ways.

- `MotionAnswers` (default): a k-means vocabulary of 0.5 s motions (dx, dy, dheading in the frame of the pose before),
  one token a step, so that every answer has the same length, an exact log-probability and no way to fail to parse.
  Encoding is closed-loop: each step takes the motion that ends nearest the true pose, given where the tokens before it
  really led, so that errors do not add up. Motions are told relative to going straight on at the present speed
  (`relative`), so that the words stand closest where drives are most alike. Built from the training split, stored with
  the checkpoint. Where one trajectory is asked for, it is the likeliest motion at each step (`decode: greedy`) or the
  expected one (`expected`), which no vocabulary rounds; `regression` trains just that, in metres.
- `TextAnswers`: the waypoints written out, ``(1.52,0.03,0.011) ...``, over the characters below or a language model's
  own tokens. An answer that does not parse is told apart, never repaired.

Legend: B batch, S steps, A tokens, K motions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shards_schema.errors import ConfigError

HEADING_METRES = 3.0
"""A radian of heading counts as this many metres: what it moves the car sideways over the next few steps."""


class MotionConfig(BaseModel):
    """The motion vocabulary.

    Attributes:
        size: K, motions.
        relative: whether a motion is what is added to going straight on at the speed of now, or the motion itself.
        smoothing: metres; the loss asks for motions near the right one too, exp(-d^2 / 2 smoothing^2); 0: for it alone.
        regression: weight of a second loss: L1, in metres and radians, between the expected trajectory and the drive.
        decode: what the policy's one answer is: each step's likeliest motion (`greedy`), or its expected one
            (`expected`): best in the mean error, but between two ways round an obstacle it takes neither.
        seed, iterations: of k-means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["motion"] = "motion"
    size: int = Field(default=128, ge=2)
    relative: bool = True
    smoothing: float = Field(default=0.0, ge=0)
    regression: float = Field(default=0.0, ge=0)
    decode: Literal["greedy", "expected"] = "greedy"
    seed: int = 0
    iterations: int = Field(default=50, ge=1)


class TextConfig(BaseModel):
    """Text waypoints; `digits` after the point for metres, one more for radians."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = "text"
    digits: int = Field(default=2, ge=0, le=4)


AnswerConfig = Annotated[MotionConfig | TextConfig, Field(discriminator="kind")]


class Answers(Protocol):
    """What a student learns to say.

    Attributes:
        vocabulary: V, tokens that it chooses from.
        length: A, tokens of an answer at most.
        end: the token that ends an answer, or None where each has `length` tokens.
        codebook: float32 [V, F], what is known of each token, or None.
        smoothing: float32 [V, V], see `losses.answer_loss`, or None.
    """

    vocabulary: int
    length: int
    end: int | None
    codebook: Tensor | None
    smoothing: Tensor | None

    def encode(self, future_BS3: Tensor, status_BH7: Tensor) -> Tensor:
        """Trajectories [B, S, 3] of scenes with a status (`Batch.status`) -> tokens int64 [B, A], padded with -1."""
        ...

    def decode(self, answers_BA: Tensor, status_BH7: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens -> (trajectories float32 [B, S, 3], parsed bool [B]); an answer that does not parse is zeros."""
        ...

    def expectation(self, status_BH7: Tensor) -> Expectation | None:
        """What follows the expected trajectory while answers are sampled; None: the likeliest tokens are the answer."""
        ...

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """A loss beside the cross-entropy, a scalar: how far the expected trajectory is from the drive; None: none."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; `restore` makes the same answers of it."""
        ...


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
    """The motions [B, S, 3] that lead from the origin through the poses of a trajectory: the inverse of `compose`."""
    before = torch.cat((torch.zeros_like(future_BS3[:, :1]), future_BS3[:, :-1]), 1)
    delta = future_BS3 - before
    cos, sin = before[..., 2].cos(), before[..., 2].sin()
    x = cos * delta[..., 0] + sin * delta[..., 1]
    y = -sin * delta[..., 0] + cos * delta[..., 1]
    return torch.stack((x, y, wrap(delta[..., 2])), -1)


def going_on(status_BH7: Tensor) -> Tensor:
    """[B, 3]: the motion of half a second straight on at the present velocity (`Batch.status`: m/s, ego axes)."""
    velocity_B2 = status_BH7[:, -1, 3:5].float()
    return torch.cat((0.5 * velocity_B2, torch.zeros_like(velocity_B2[:, :1])), 1)


class MotionAnswers:
    """See the module. `motions` float32 [K, 3]; `steps` S."""

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
        motions = self.motions.to(status_BH7.device).expand(len(status_BH7), -1, -1)
        return motions + going_on(status_BH7).unsqueeze(1) if self.relative else motions

    def encode(self, future_BS3: Tensor, status_BH7: Tensor) -> Tensor:
        """Closed-loop: int64 [B, S]."""
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
        poses_BS3 = _path(motions_BK3[rows.unsqueeze(1), answers_BA])
        return poses_BS3, torch.ones(len(answers_BA), dtype=torch.bool, device=answers_BA.device)

    def expectation(self, status_BH7: Tensor) -> Expectation | None:
        """With `expected`."""
        return Expectation(self._motions(status_BH7)) if self.expected else None

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """`regression` x the mean L1 of the poses that the expected motions lead to, each after the true words."""
        if not self.regression:
            return None
        motion_BS3 = logits_BAV.float().softmax(-1) @ self._motions(status_BH7)
        error_BS3 = _path(motion_BS3) - future_BS3.float()
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


class Expectation:
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


def _path(motion_BS3: Tensor) -> Tensor:
    """The poses [B, S, 3] that motions, one after the other, lead to from the origin: the inverse of `motions_of`."""
    pose_B3, poses = torch.zeros_like(motion_BS3[:, 0]), []
    for motion_B3 in motion_BS3.unbind(1):
        pose_B3 = compose(pose_B3, motion_B3)
        poses.append(pose_B3)
    return torch.stack(poses, 1)


def _nearest(motions_BK3: Tensor, pose_B3: Tensor, wanted_B3: Tensor) -> tuple[Tensor, Tensor]:
    """The token, int64 [B], whose motion leads from a pose nearest to a wanted one, and where it leads, [B, 3]."""
    ends_BK3 = compose(pose_B3.unsqueeze(1), motions_BK3)
    error_BK3 = ends_BK3 - wanted_B3.unsqueeze(1)
    error_BK3 = torch.cat((error_BK3[..., :2], HEADING_METRES * wrap(error_BK3[..., 2:])), -1)
    token_B = error_BK3.square().sum(-1).argmin(1)
    return token_B, ends_BK3[torch.arange(len(ends_BK3), device=ends_BK3.device), token_B]


CHARACTERS = "0123456789.-,() "
"""What text waypoints are written with."""

_WAYPOINT = re.compile(r"\((-?\d+(?:\.\d+)?),(-?\d+(?:\.\d+)?),(-?\d+(?:\.\d+)?)\)")


def parse_waypoints(text: str, steps: int) -> list[list[float]] | None:
    """The poses of a text answer, or None where it is not exactly `steps` of them."""
    parts = text.strip().split(" ")
    found = [_WAYPOINT.fullmatch(part) for part in parts]
    if len(parts) != steps or not all(found):
        return None
    return [[float(v) for v in m.groups()] for m in found if m]


class TextAnswers:
    """See the module.

    Args:
        steps: S.
        digits: after the point.
        encoder, decoder: of a language model's tokenizer (text -> ids, ids -> text); None: one token a character.
        vocabulary, end: of that tokenizer.
    """

    codebook: Tensor | None = None
    smoothing: Tensor | None = None

    def __init__(
        self,
        steps: int,
        digits: int = 2,
        *,
        encoder: Callable[[str], Sequence[int]] | None = None,
        decoder: Callable[[Sequence[int]], str] | None = None,
        vocabulary: int = len(CHARACTERS) + 1,
        end: int = len(CHARACTERS),
    ) -> None:
        self.steps, self.digits = steps, digits
        self._encode = encoder or (lambda text: [CHARACTERS.index(c) for c in text])
        self._decode = decoder or (lambda ids: "".join(CHARACTERS[i] for i in ids if i < len(CHARACTERS)))
        self.vocabulary = vocabulary
        self.end: int | None = end
        widest = self._text([[-199.9, -199.9, -3.1]] * steps)
        self.length = len(self._encode(widest)) + 1

    def _text(self, poses: Sequence[Sequence[float]]) -> str:
        d = self.digits
        return " ".join(f"({x:.{d}f},{y:.{d}f},{h:.{d + 1}f})" for x, y, h in poses)

    def encode(self, future_BS3: Tensor, status_BH7: Tensor) -> Tensor:
        """Text, the end token, then -1.

        Raises:
            ConfigError: a trajectory that leaves the range the length was made for (200 m).
        """
        out = torch.full((len(future_BS3), self.length), -1, dtype=torch.long)
        for row, poses in zip(out, future_BS3.tolist(), strict=True):
            ids = [*self._encode(self._text(poses)), self.end]
            if len(ids) > self.length:
                raise ConfigError(f"text answer: {len(ids)} tokens, at most {self.length}: {self._text(poses)}")
            row[: len(ids)] = torch.tensor(ids)
        return out.to(future_BS3.device)

    def parse(self, ids: Sequence[int]) -> list[list[float]] | None:
        """The waypoints of one answer, or None where it is not exactly `steps` of them and an end."""
        if self.end is None or self.end not in ids:
            return None
        return parse_waypoints(self._decode(list(ids)[: list(ids).index(self.end)]), self.steps)

    def decode(self, answers_BA: Tensor, status_BH7: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros where an answer does not parse."""
        out = torch.zeros(len(answers_BA), self.steps, 3)
        ok = torch.zeros(len(answers_BA), dtype=torch.bool)
        for i, ids in enumerate(answers_BA.tolist()):
            poses = self.parse([t for t in ids if t >= 0])
            if poses is not None:
                out[i], ok[i] = torch.tensor(poses), True
        return out.to(answers_BA.device), ok.to(answers_BA.device)

    def expectation(self, status_BH7: Tensor) -> Expectation | None:
        """None: texts have no mean."""
        return None

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """None: nor a distance."""
        return None

    def state(self) -> dict[str, Any]:
        """Steps and digits; the tokenizer is the model's."""
        return {"kind": "text", "steps": self.steps, "digits": self.digits}


def _scaled(motions: Tensor) -> Tensor:
    """Motions in metres: the space in which distances are taken."""
    return motions * torch.tensor([1.0, 1.0, HEADING_METRES])


def kmeans(points_N3: Tensor, size: int, seed: int, iterations: int) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds, [size, 3]; at most 100,000 points are looked at, drawn by `seed`.

    Raises:
        ConfigError: fewer distinct points than `size`.
    """
    generator = torch.Generator().manual_seed(seed)
    points = points_N3[torch.randperm(len(points_N3), generator=generator)[:100_000]].double()
    distance = torch.full((len(points),), torch.inf, dtype=torch.float64)
    centre, chosen = points[0], [points[0]]
    for _ in range(size - 1):
        distance = torch.minimum(distance, (points - centre).square().sum(1))
        if not distance.sum() > 0:
            raise ConfigError(f"motion vocabulary: {len(chosen)} distinct motions in the data, size is {size}")
        centre = points[torch.multinomial(distance / distance.sum(), 1, generator=generator)[0]]
        chosen.append(centre)
    centres = torch.stack(chosen)
    for _ in range(iterations):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in torch.split(points, 8192)])
        count = torch.bincount(nearest, minlength=size).clamp_min(1).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        used = torch.bincount(nearest, minlength=size).unsqueeze(1) > 0
        moved = torch.where(used, sums / count, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.float()
