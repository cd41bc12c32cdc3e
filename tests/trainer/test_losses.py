"""The losses against their definitions, and the means that ranks can share."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from trainer.losses import Alignment, LossWeights, alignment, answer_loss, total


def test_alignment_is_one_minus_cosine_and_smooth_l1() -> None:
    target = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    predicted = torch.tensor([[[6.0, 8.0], [0.0, 2.0]]])
    found = alignment(predicted, target)
    assert found.cosine.item() == pytest.approx((0 + 1) / 2)
    # Huber with beta 1: 3 - .5, 4 - .5, .5 * 1, 2 - .5
    assert found.smooth_l1.item() == pytest.approx((2.5 + 3.5 + 0.5 + 1.5) / 4)
    same = alignment(target, target)
    assert same.cosine.item() == pytest.approx(0, abs=1e-6)
    assert same.smooth_l1.item() == 0


def test_alignment_of_half_precision_is_taken_in_float32() -> None:
    x = torch.randn(2, 3, 64).bfloat16()
    assert alignment(x, x).cosine.dtype == torch.float32


def test_answer_loss_is_cross_entropy_and_ignores_padding() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([[1, 4, -1], [0, 2, 3]])
    per = -logits.log_softmax(-1)
    expected = ((per[0, 0, 1] + per[0, 1, 4]) / 2 + (per[1, 0, 0] + per[1, 1, 2] + per[1, 2, 3]) / 3) / 2
    torch.testing.assert_close(answer_loss(logits, answers), expected)
    other = logits.clone()
    other[0, 2] = 100
    assert answer_loss(other, answers) == answer_loss(logits, answers)


def test_smoothing_asks_for_the_given_distribution() -> None:
    smoothing = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    logits = torch.tensor([[[math.log(0.75), math.log(0.25)]]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert answer_loss(logits, torch.tensor([[0]]), smoothing).item() == pytest.approx(entropy)


def test_halves_of_a_batch_average_to_the_whole() -> None:
    g = torch.Generator().manual_seed(1)
    logits, answers = torch.randn(4, 3, 5, generator=g), torch.tensor([[0, -1, -1], [1, 2, 3], [2, 2, -1], [4, 0, 1]])
    halves = (answer_loss(logits[:2], answers[:2]) + answer_loss(logits[2:], answers[2:])) / 2
    torch.testing.assert_close(halves, answer_loss(logits, answers))


def test_total_weighs_each_part() -> None:
    weights = LossWeights(wm=2, geo=3, answer=0.5, smooth_l1=10)
    one = torch.tensor(1.0)
    assert total(weights, one, Alignment(one, one), Alignment(one, 2 * one)).item() == 0.5 + 2 * 11 + 3 * 21
    with pytest.raises(ValidationError):
        LossWeights(wm=-1, geo=1, answer=1)
