"""GRPO's loss, alone: value and gradient are TRL's, kinds differ, and a divided step is the whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.policy_loss import LossKind, PolicyLoss, StepSize, group_advantages, policy_loss

KINDS: tuple[LossKind, ...] = ("grpo", "bnpo", "dr_grpo", "dapo")
B, A, LONGEST = 6, 5, 9
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}


def inputs() -> tuple[torch.Tensor, ...]:
    """logp, old, reference [B, A], advantages [B], ragged mask [B, A]; ratios well out of the clip on both sides."""
    generator = torch.Generator().manual_seed(0)
    logp, old, reference = (torch.randn(3, B, A, generator=generator, dtype=torch.float64) * 0.4 - 2).unbind(0)
    advantage = torch.randn(B, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([5, 1, 3, 2, 5, 4])
    return logp, old, reference, advantage, torch.arange(A) < lengths.unsqueeze(1)


def whole_size(mask: torch.Tensor) -> StepSize:
    return StepSize(float(len(mask)), float(mask.sum()), LONGEST)


def ours(kind: LossKind, beta: float, kl_ratio: bool = True) -> tuple[PolicyLoss, torch.Tensor]:
    logp, old, reference, advantage, mask = inputs()
    logp.requires_grad_()
    found = policy_loss(
        logp,
        old,
        reference if beta else None,
        advantage,
        mask,
        whole_size(mask),
        kind=kind,
        beta=beta,
        kl_ratio=kl_ratio,
        **CLIP,
    )
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None
    return found, logp.grad


def trls(
    trainer: Any, kind: LossKind, beta: float, kl_ratio: bool
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """What TRL's own trainer makes of the same log-probabilities: only its forward pass is replaced."""
    logp, old, reference, advantage, mask = inputs()
    logp.requires_grad_()
    trainer.loss_type, trainer.beta = kind, beta
    trainer.max_completion_length, trainer.args.use_bias_correction_kl = LONGEST, kl_ratio
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (logp, torch.zeros_like(logp).detach(), None)
    trainer._metrics["train"].clear()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    ids = torch.zeros(B, A, dtype=torch.long)
    batch = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones_like(ids[:, :2]),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad, {k: v[-1] for k, v in trainer._metrics["train"].items()}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real `GRPOTrainer` around a random model of a few thousand weights."""
    pytest.importorskip("trl")
    from tests.trainer.trl_toys import grpo_trainer

    rows = [{"prompt": "x"}] * 4
    return grpo_trainer(
        rows, lambda completions, **_: [0.0] * len(completions), tmp_path_factory.mktemp("trl"), epsilon_high=0.28
    )


@pytest.mark.parametrize(("beta", "kl_ratio"), [(0.0, True), (0.04, True), (0.04, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_trls(trainer: Any, kind: LossKind, beta: float, kl_ratio: bool) -> None:
    own, gradient = ours(kind, beta, kl_ratio)
    loss, theirs, metrics = trls(trainer, kind, beta, kl_ratio)
    assert own.loss.item() == pytest.approx(loss.item(), abs=1e-14)
    torch.testing.assert_close(gradient, theirs, atol=1e-15, rtol=0)
    assert gradient.abs().max() > 1e-3
    tokens = own.tokens.item()
    assert own.clipped_low > 0
    assert own.clipped_high > 0
    assert own.clipped_low.item() / tokens == pytest.approx(metrics["clip_ratio/low_mean"], abs=1e-6)
    assert own.clipped_high.item() / tokens == pytest.approx(metrics["clip_ratio/high_mean"], abs=1e-6)
    if beta and not kl_ratio:  # TRL logs it with the factor
        assert own.kl.item() / tokens == pytest.approx(metrics["kl"], abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_kinds_differ_here_so_that_the_test_above_can_fail(beta: float) -> None:
    """But bnpo and dapo, which are the same while a step is one pass of one rank."""
    gradients = {kind: ours(kind, beta)[1] for kind in KINDS}
    torch.testing.assert_close(gradients["bnpo"], gradients["dapo"], atol=1e-15, rtol=0)
    pairs: tuple[tuple[LossKind, LossKind], ...] = (("grpo", "bnpo"), ("grpo", "dr_grpo"), ("bnpo", "dr_grpo"))
    for a, b in pairs:
        assert (gradients[a] - gradients[b]).abs().max() > 1e-3, (a, b)
    plain, with_kl, with_ratio = (ours("grpo", b, r)[1] for b, r in ((0.0, True), (0.04, False), (0.04, True)))
    assert (plain - with_kl).abs().max() > 1e-4
    assert (with_ratio - with_kl).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_passes_is_the_step_at_once(kind: LossKind) -> None:
    logp, old, reference, advantage, mask = inputs()
    size = StepSize(float(B), float(mask.sum()), LONGEST, passes=2)
    whole = ours(kind, 0.04)[1]
    logp.requires_grad_()
    for rows in (slice(0, 2), slice(2, 6)):
        part = policy_loss(
            logp[rows], old[rows], reference[rows], advantage[rows], mask[rows], size, kind=kind, beta=0.04, **CLIP
        )
        part.loss.backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None
    difference = (logp.grad - whole).abs().max()
    if kind == "bnpo":
        assert difference > 1e-3  # a mean over each pass: what tells it from dapo
    else:
        assert difference < 1e-15


def test_the_first_pass_has_a_ratio_of_exactly_one_and_the_plain_policy_gradient() -> None:
    logp, _, _, advantage, mask = inputs()
    logp.requires_grad_()
    found = policy_loss(logp, logp.detach(), None, advantage, mask, whole_size(mask), kind="dapo", beta=0.0, **CLIP)
    assert found.ratio.item() == found.tokens.item()
    assert found.clipped_low + found.clipped_high == 0
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, -advantage.unsqueeze(1) * mask / mask.sum())


def test_a_reference_is_needed_for_a_kl() -> None:
    logp, old, _, advantage, mask = inputs()
    with pytest.raises(ValueError, match="needs the log-probabilities of a reference"):
        policy_loss(logp, old, None, advantage, mask, whole_size(mask), kind="grpo", beta=0.1, **CLIP)


def test_nothing_that_takes_part_is_no_loss_and_no_nan() -> None:
    logp, old, reference, advantage, mask = inputs()
    nothing = torch.zeros_like(mask)
    for kind in KINDS:
        found = policy_loss(
            logp, old, reference, advantage, nothing, StepSize(0, 0, LONGEST, 0), kind=kind, beta=0.04, **CLIP
        )
        assert found.loss == 0


def test_advantages_are_those_of_trl_and_groups_without_spread_are_told() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.5], [0.7, 0.7, 0.7, 0.7], [0.0, 0.0, 0.0, 1e-3]], dtype=torch.float64)
    scaled, spread = group_advantages(rewards, scale=True)
    plain, _ = group_advantages(rewards, scale=False)
    assert spread.tolist() == [True, False, True]
    assert (plain[0] == torch.tensor([0.5, -0.5, 0.0, 0.0])).all()
    torch.testing.assert_close(scaled[0], plain[0] / (rewards[0].std() + 1e-4))
    assert (scaled[1] == 0).all()
    torch.testing.assert_close(scaled.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert scaled[2, 3] > 1  # what Dr.GRPO blames: a thousandth becomes as much as a crash
    assert plain[2, 3] < 1e-3


def test_advantages_against_trls_own_code(trainer: Any) -> None:
    from trl.trainer.utils import nanstd

    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards, dim=1).unsqueeze(1) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale=True)[0], theirs)
