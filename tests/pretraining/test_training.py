"""Training: the same bits twice, losses that go down, gradients that reach everything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pretraining import dynamics, geometry
from pretraining.footage import Footage
from pretraining.geometry import camera_loss, depth_loss
from pretraining.steps import Recipe
from pretraining.windows import batch, rigs
from teachers.vggt.geometry import PRESETS

Footages = tuple[Footage, Footage]
Train = Callable[..., nn.Module]
BOTH = pytest.mark.parametrize("train", [geometry.train, dynamics.train], ids=["vggt", "cv8x8x8"])


def recipe(steps: int, **changes: Any) -> Recipe:
    """Of a few small steps."""
    return Recipe(geometry_steps=steps, geometry_frames=3, dynamics_steps=steps, dynamics_clips=1, **changes)


def digest(network: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, value in network.state_dict().items():
        whole.update(name.encode() + value.numpy().tobytes())
    return whole.hexdigest()


@BOTH
def test_the_same_recipe_gives_the_same_bits(train: Train, footage: Footages) -> None:
    before = torch.random.get_rng_state()
    first = digest(train(recipe(2), footage))
    torch.rand(7)  # nor does it rest on the global generator
    assert digest(train(recipe(2), footage)) == first
    torch.random.set_rng_state(before)


@pytest.mark.parametrize("kind", [geometry, dynamics])
def test_another_seed_begins_elsewhere(kind: ModuleType) -> None:
    assert digest(kind.untrained(0)) == digest(kind.untrained(0)) != digest(kind.untrained(1))


@BOTH
def test_losses_go_down(train: Train, footage: Footages) -> None:
    told: list[float] = []
    network = train(recipe(16), footage, lambda step, losses: told.append(sum(losses.values())))
    assert len(told) == 16
    assert sum(told[-4:]) < 0.8 * sum(told[:4])
    assert not any(parameter.requires_grad for parameter in network.parameters())


def unreached(network: nn.Module) -> Sequence[str]:
    return [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_a_gradient_reaches_every_parameter_of_vggt(footage: Footages) -> None:
    network = geometry.untrained(0)
    assert network.config == PRESETS["town"]
    assert sum(p.numel() for p in network.parameters()) <= 2_000_000
    seen = batch([(footage[0], rigs(footage[0])[0])])
    out = network.run(seen.images)
    assert out.depth is not None
    assert out.depth_conf is not None
    assert out.pose_enc is not None
    loss = depth_loss(out.depth, out.depth_conf, seen.depth, torch.ones_like(seen.depth))
    (loss + camera_loss(out.pose_enc, seen.pose)).backward()  # type: ignore[no-untyped-call]
    assert unreached(network) == []


def test_a_gradient_reaches_every_parameter_of_cv8x8x8(footage: Footages) -> None:
    network = dynamics.untrained(0)
    video = dynamics.video(footage[0])[..., :64, :64]
    (network(video).sample - video).abs().mean().backward()
    assert unreached(network) == []


def test_a_loss_that_is_no_number_ends_the_training(footage: Footages) -> None:
    with pytest.raises(FloatingPointError, match="step"):
        geometry.train(recipe(8, geometry_rate=1e30), footage)
