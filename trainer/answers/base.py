"""A trajectory as tokens, and back: what every kind of answer can do, so that students, losses and loops know no kind.

Legend: B batch, S steps of 0.5 s, A tokens of an answer, V vocabulary, H history steps. Poses are x, y (m) and heading
(rad) of the rear axle, in its frame now; status is `Batch.status`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Expectation(Protocol):
    """Follows the expected trajectory while answers are sampled: what `Student.sample` takes as `choose`."""

    def __call__(self, logp_BV: Tensor, /) -> Tensor:
        """The next token, int64 [B], by the log-probabilities float32 [B, V] of this step."""
        ...

    @property
    def trajectory(self) -> Tensor:
        """Float32 [B, S, 3], of the steps so far."""
        ...


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
        """Trajectories float [B, S, 3] of scenes with a status [B, H, 7] -> tokens int64 [B, A], padded with -1.

        Raises:
            ConfigError: a trajectory that cannot be said.
        """
        ...

    def decode(self, answers_BA: Tensor, status_BH7: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens -> (trajectories float32 [B, S, 3], parsed bool [B]); an answer that does not parse is zeros."""
        ...

    def expectation(self, status_BH7: Tensor) -> Expectation | None:
        """What follows the expected trajectory while answers are sampled; None: the likeliest tokens are the answer."""
        ...

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """A loss beside the cross-entropy, a float32 scalar: how far the expected trajectory is off; None: none."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain values and tensors; `build.restore_answers` makes the same answers of it."""
        ...
