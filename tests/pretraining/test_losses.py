"""VGGT's losses: values by hand, and where they pull."""

from __future__ import annotations

import math

import pytest
import torch

from pretraining.geometry import ALPHA, HUBER, camera_loss, depth_loss


def test_the_depth_loss_by_hand() -> None:
    truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    depth = truth + torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    two = torch.full_like(truth, 2.0)
    # 2 * 0.5 / 4 for the pixel, 2 * 0.5 / 2 for its right and for its lower neighbour, - alpha log 2 everywhere
    want = 0.25 + 0.5 + 0.5 - ALPHA * math.log(2)
    assert depth_loss(depth, two, truth, torch.ones_like(truth)).item() == pytest.approx(want)
    assert depth_loss(truth, torch.ones_like(truth), truth, torch.ones_like(truth)).item() == 0.0


def test_a_pixel_without_weight_says_nothing() -> None:
    truth, weight = torch.ones(1, 4, 4), torch.ones(1, 4, 4)
    weight[0, 1, 2] = 0.0
    depth = truth.clone().requires_grad_()
    with torch.no_grad():
        depth[0, 1, 2] = 50.0
    loss = depth_loss(depth, torch.full_like(truth, 3.0), truth, weight)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-ALPHA * math.log(3))
    assert depth.grad is not None
    assert depth.grad[0, 1, 2] == 0.0


def test_confidence_settles_at_alpha_over_the_error() -> None:
    """An error that is the same everywhere has no gradient: what is left is c e - alpha log c."""
    truth = torch.ones(1, 3, 3)
    confidence = torch.full_like(truth, ALPHA / 0.05).requires_grad_()
    depth_loss(truth + 0.05, confidence, truth, torch.ones_like(truth)).backward()  # type: ignore[no-untyped-call]
    assert confidence.grad is not None
    assert confidence.grad.abs().max() < 1e-6


def test_the_camera_loss_by_hand() -> None:
    truth = torch.zeros(1, 2, 9)
    off = truth.clone()
    off[0, 1, 0], off[0, 0, 8] = 1.0, 0.5 * HUBER
    want = ((1.0 - HUBER / 2) + HUBER / 8) / 2
    assert camera_loss(off, truth).item() == pytest.approx(want)
    assert camera_loss(truth, truth).item() == 0.0
