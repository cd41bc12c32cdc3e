"""GRPO on a dataset with a real reward column: learning, resuming, controls, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.reading.reader import Dataset
from shards_schema.errors import AbsentError, ConfigError, MismatchError
from tests.trainer.reward_toys import grpo_recipe, sft_policy
from tests.trainer.shard_toys import recipe as short_recipe
from tests.trainer.trainer_toys import assert_same, with_other
from trainer import checkpoint
from trainer.batch import collate
from trainer.build import load_policy
from trainer.grpo import GRPO
from trainer.optimiser import DivergedError
from trainer.rollouts import roll_out
from trainer.scored import Driven, given_scores, policy_scores, scored
from trainer.segments import allow_table
from trainer.sft import SFT

CPU = torch.device("cpu")
OFF = {"wm": 0, "geo": 0}


def start(data: str, policy: str, out: Path, **changes: Any) -> GRPO:
    return GRPO(grpo_recipe(data, policy, out, **changes), CPU, log=lambda text: None)


def notes(data: str, policy: str, out: Path, **changes: Any) -> tuple[GRPO, list[dict[str, float]]]:
    """A finished run, and what it reported."""
    seen: list[dict[str, float]] = []

    def note(step: int, numbers: Mapping[str, float]) -> None:
        seen.append({"step": step, **numbers})

    run = start(data, policy, out, **changes)
    run.fit(on_numbers=note)
    return run, seen


@pytest.fixture(scope="module")
def whole(reward_shards: str, policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end, two optimiser steps on the same answers."""
    out = tmp_path_factory.mktemp("whole")
    start(reward_shards, policy, out, inner=2, keep=10).fit()
    return out


@pytest.mark.parametrize("killed", [1, 3, 5])
def test_resumed_after_a_kill_at_any_step_it_ends_with_the_same_bits(
    reward_shards: str, policy: str, whole: Path, tmp_path: Path, killed: int
) -> None:
    start(reward_shards, policy, tmp_path, inner=2).fit(until=killed)
    torch.rand(7)  # whatever happens in between
    again = start(reward_shards, policy, tmp_path, inner=2)
    assert again.step == killed
    again.fit()
    last = "step_00000006"
    assert_same(whole / "checkpoints" / last, tmp_path / "checkpoints" / last)
    assert_same(whole / "policy.pt", tmp_path / "policy.pt")


def test_steps_that_were_not_saved_are_done_again(reward_shards: str, policy: str, whole: Path, tmp_path: Path) -> None:
    start(reward_shards, policy, tmp_path, inner=2, save_every=2).fit(until=5)
    again = start(reward_shards, policy, tmp_path, inner=2, save_every=2)
    assert again.step == 4
    again.fit()
    assert_same(whole / "policy.pt", tmp_path / "policy.pt")


def test_another_recipe_or_policy_in_the_same_place_is_refused(
    reward_shards: str, policy: str, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match=r"temperature: 1.0 -> 0.5"):
        start(reward_shards, policy, whole, inner=2, temperature=0.5)
    assert start(reward_shards, policy, whole, inner=2, log_every=4).step == 6
    content = checkpoint.load(Path(policy))
    content["student"]["start"] = content["student"]["start"] + 1
    other = tmp_path / "stage_2.pt"
    checkpoint.save(other, content)
    with pytest.raises(MismatchError, match="another policy"):
        start(reward_shards, str(other), whole, inner=2)


def test_a_run_of_before_a_field_of_the_recipe_goes_on(
    reward_shards: str, policy: str, whole: Path, tmp_path: Path
) -> None:
    theirs = whole / "checkpoints" / "step_00000004"
    recorded = json.loads(checkpoint.load(theirs)["grpo"])
    del recorded["kl_ratio"]
    with_other(theirs, tmp_path / "checkpoints" / "step_00000004", grpo=json.dumps(recorded))
    assert start(reward_shards, policy, tmp_path, inner=2).step == 4
    with pytest.raises(MismatchError, match="kl_ratio: True -> False"):
        start(reward_shards, policy, tmp_path, inner=2, kl_ratio=False)
    unknown = json.dumps(recorded | {"nobody_knows": 1})
    with_other(theirs, tmp_path / "checkpoints" / "step_00000005", grpo=unknown)
    with pytest.raises(MismatchError, match="a recipe that this code does not take"):
        start(reward_shards, policy, tmp_path, inner=2)


def test_a_run_of_another_kind_of_device_goes_on(reward_shards: str, policy: str, whole: Path, tmp_path: Path) -> None:
    """CUDA's generators have 16 bytes of state; their draws cannot be resumed here."""
    theirs, place = [torch.zeros(16, dtype=torch.uint8)], Path("checkpoints", "step_00000004")
    with_other(whole / place, tmp_path / place, sampler=theirs)
    run = start(reward_shards, policy, tmp_path, inner=2)
    assert run.step == 4
    run.fit(until=5)


def test_the_first_ratio_is_exactly_one_and_the_sampler_agrees(reward_shards: str, policy: str, tmp_path: Path) -> None:
    _, seen = notes(reward_shards, policy, tmp_path, temperature=1.3)
    train = [n for n in seen if "train/loss" in n]
    assert len(train) == 6
    assert [n["train/ratio"] for n in train] == [1.0] * 6
    assert all(n["train/clipped_low"] == n["train/clipped_high"] == 0 for n in train)
    assert all(0 < n["train/gap"] < 1e-5 for n in train)  # rounding, and nothing else: no dropout, the same temperature
    assert train[0]["train/kl"] == 0
    assert train[-1]["train/kl"] > 0
    names = {"entropy", "dropped", "spread", "unparsed", "gradient", "align_wm", "align_geo", "lr", "reward/score"}
    assert {f"train/{n}" for n in names} <= train[0].keys()
    assert {"train/reward/ego_progress", "train/reward/no_at_fault_collisions", "train/reward/comfort"} <= seen[
        0
    ].keys()
    held = [n for n in seen if "held/score" in n]
    assert [n["step"] for n in held] == [3, 6]
    assert {"held/sampled", "held/ego_progress", "held/unparsed", "held/ade_4"} <= held[0].keys()
    json.dumps(seen)


def test_more_updates_on_the_same_answers_move_the_ratio(reward_shards: str, policy: str, tmp_path: Path) -> None:
    _, seen = notes(reward_shards, policy, tmp_path, inner=4, lr=1e-2, steps=2, stream={"batch_size": 7, "threads": 1})
    assert seen[0]["train/ratio"] != 1.0
    assert max(n.get("train/clipped_low", 0) + n.get("train/clipped_high", 0) for n in seen) > 0


def test_a_policy_is_left_that_loads_like_any_other(reward_shards: str, policy: str, whole: Path) -> None:
    run = start(reward_shards, policy, whole, inner=2)
    loaded, before = load_policy(whole / "policy.pt"), load_policy(Path(policy))
    assert loaded.table_stage == before.table_stage == 2
    assert set(before.notices) <= set(loaded.notices)
    batch = run.held_batches()[0]
    table = allow_table(2)
    own = run.model.student.sample(batch, table, temperature=0)
    assert torch.equal(loaded.student.sample(batch, table, temperature=0).tokens, own.tokens)
    moved = checkpoint.load(whole / "policy.pt")["student"]
    assert any(not torch.equal(v, moved[k]) for k, v in checkpoint.load(Path(policy))["student"].items())
    assert run.reference is not None
    for name, value in before.student.state_dict().items():
        assert torch.equal(run.reference.state_dict()[name], value), name  # frozen, also after a resume


def test_what_sft_held_out_stays_held_out(reward_shards: str, policy: str, whole: Path) -> None:
    run = start(reward_shards, policy, whole, inner=2)
    assert set(run.held_tokens) == set(checkpoint.load(Path(policy))["held_out"])
    assert not set(run.train_tokens) & set(run.held_tokens)
    assert len(run.train_tokens) + len(run.held_tokens) == len(run.reward.tokens)


def test_without_a_regulariser_no_teacher_is_read(reward_shards: str, policy: str, tmp_path: Path) -> None:
    run, seen = notes(reward_shards, policy, tmp_path, regulariser=OFF, beta=0.0)
    assert run.reference is None
    assert {*run.dataset.columns} == {"samples", "pdm"}
    assert not any("align" in name or name == "train/kl" for n in seen for name, value in n.items() if value)
    before, after = checkpoint.load(Path(policy)), checkpoint.load(tmp_path / "policy.pt")
    assert after["adapters"].keys() == before["adapters"].keys()
    assert all(torch.equal(v, after["adapters"][k]) for k, v in before["adapters"].items())
    start(reward_shards, policy, tmp_path, regulariser=OFF, beta=0.0)  # and it can be opened again


def test_groups_without_spread_teach_nothing_and_are_counted(reward_shards: str, policy: str, tmp_path: Path) -> None:
    """At next to no temperature all answers of a group are one."""
    _, seen = notes(reward_shards, policy, tmp_path, temperature=1e-4, regulariser=OFF)
    assert [n["train/dropped"] for n in seen if "train/dropped" in n] == [1.0] * 6
    assert not any("train/loss" in n for n in seen)
    before, after = checkpoint.load(Path(policy))["student"], checkpoint.load(tmp_path / "policy.pt")["student"]
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_shuffled_advantages_are_the_same_ones_dealt_otherwise(reward_shards: str, policy: str, tmp_path: Path) -> None:
    honest = start(reward_shards, policy, tmp_path / "a", group=8)
    control = start(reward_shards, policy, tmp_path / "b", group=8, controls={"shuffle_advantages": True})
    batch = honest.held_batches()[0]
    a, b = (
        roll_out(r.model.student, batch, r.reward, r.table, r.config, r._sampler, r._autocast())[0]
        for r in (honest, control)
    )
    assert torch.equal(a.answers, b.answers)
    left, right = a.advantage.view(-1, 8), b.advantage.view(-1, 8)
    assert not torch.equal(left, right)
    assert torch.equal(left.sort(1).values, right.sort(1).values)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_a_step_in_small_passes_is_the_step_at_once(reward_shards: str, policy: str, tmp_path: Path, kind: str) -> None:
    runs = []
    for micro in (None, 5):
        run = start(reward_shards, policy, tmp_path / str(micro), micro=micro, loss=kind, steps=2, inner=2, scale=False)
        run._optimiser = torch.optim.SGD([{"params": list(run.model.parameters()), "scale": 1000.0}])  # type: ignore[assignment]
        run.fit()
        runs.append(run)
    first = checkpoint.load(Path(policy))["student"]
    for name, value in runs[0].model.student.state_dict().items():
        torch.testing.assert_close(runs[1].model.student.state_dict()[name], value, atol=2e-5, rtol=1e-4, msg=name)
    moved = [(value - first[name]).abs().max() for name, value in runs[0].model.student.state_dict().items()]
    assert max(moved) > 1e-3


def test_it_learns_to_score_and_the_control_does_not(reward_shards: str, tmp_path: Path) -> None:
    """On the scenes that it trains on, from next to nothing, with words for driving well and badly."""
    stages = [{"stage": 2, "steps": 1, "lr": 1e-5}]
    content = checkpoint.load(Path(sft_policy(reward_shards, tmp_path / "sft", stages=stages)))
    generator = torch.Generator().manual_seed(0)
    motions = torch.randn(content["answers"]["motions"].shape, generator=generator) * torch.tensor([1.0, 0.2, 0.1])
    content["answers"]["motions"] = motions
    blank = str(tmp_path / "blank.pt")
    checkpoint.save(Path(blank), content)
    gains = {}
    for name, shuffle, seed in (("honest", False, 0), ("control", True, 0), ("another control", True, 1)):
        run = start(
            reward_shards, blank, tmp_path / name, steps=40, group=8, lr=3e-3, beta=0.0, regulariser=OFF, seed=seed,
            stream={"batch_size": 7, "threads": 1}, evaluate_every=1000, save_every=1000,
            controls={"shuffle_advantages": shuffle},
        )  # fmt: skip
        seen = [collate([run.reader.read(t) for t in run.train_tokens])]
        before = policy_scores(run.model.student, seen, run.reward, run.table, CPU, samples=16).sampled.mean()
        run.fit()
        after = policy_scores(run.model.student, seen, run.reward, run.table, CPU, samples=16).sampled.mean()
        gains[name] = (after - before).item()
    assert gains["honest"] > 0.1, gains
    # shuffled advantages wander: one of twenty such runs gained half as much as the honest ones, by luck
    assert (gains["control"] + gains["another control"]) / 2 < gains["honest"] / 2, gains


def test_answers_that_do_not_parse_score_zero_and_are_counted(reward_shards: str, tmp_path: Path) -> None:
    """A student that has learnt nothing says nothing that parses."""
    stages = [{"stage": 2, "steps": 1, "lr": 1e-5}]
    text = sft_policy(reward_shards, tmp_path / "sft", answers={"kind": "text", "digits": 0}, stages=stages)
    run, seen = notes(
        reward_shards,
        text,
        tmp_path / "run",
        steps=1,
        group=2,
        evaluate_samples=1,
        stream={"batch_size": 2, "threads": 1},
    )
    assert seen[0]["train/unparsed"] == 1
    assert seen[0]["train/reward/score"] == seen[0]["train/reward/no_at_fault_collisions"] == 0
    assert seen[0]["train/dropped"] == 1
    assert seen[-1]["held/unparsed"] == 1
    assert seen[-1]["held/score"] == 0
    assert not {name for name in seen[-1] if name.startswith(("held/ade_", "held/no_at_fault"))}  # of no answer at all
    driven = run.evaluate(run.held_batches())
    assert driven.means().keys() == {"score", "sampled", "unparsed"}
    assert json.loads(json.dumps(driven.state()))["errors"]["ade_4"] == [None] * len(driven.tokens)
    assert Driven.restore(driven.tokens, driven.state()).means() == driven.means()
    poses = torch.zeros(1, 4, 8, 3)
    poses[0, 1, :, 0] = 1e9  # parses, and no car is there in 4 s
    poses[0, 2, :, 2] = torch.inf
    rows, good = scored(run.reward, run.train_tokens[:1], poses, torch.tensor([[True, True, True, False]]))
    assert good.tolist() == [[True, False, False, False]]
    assert rows["score"][0, 0] > 0
    assert (rows["score"][0, 1:] == 0).all()
    assert (rows["drivable_area_compliance"][0] == torch.tensor([1.0, 0, 0, 0])).all()


def test_evaluation_leaves_no_trace_and_is_the_same_each_time(reward_shards: str, policy: str, tmp_path: Path) -> None:
    run = start(reward_shards, policy, tmp_path)
    held = run.held_batches()
    state = run._sampler.get_state(), torch.get_rng_state()
    first, second = run.evaluate(held), run.evaluate(held)
    assert torch.equal(state[0], run._sampler.get_state())
    assert torch.equal(state[1], torch.get_rng_state())
    assert torch.equal(first.sampled, second.sampled)
    assert first.tokens == run.held_tokens
    human = given_scores([b.future.float() for b in held], held, run.reward)
    assert human.means()["score"] > 0.7  # made-up logs
    assert human.means()["ade_4"] == 0
    expected = run.reward(held[0].tokens, held[0].future)
    torch.testing.assert_close(human.scores["score"][: len(expected)], expected)


def test_what_does_not_fit_is_refused(reward_shards: str, policy: str, shards: str, tmp_path: Path) -> None:
    config = short_recipe(shards, tmp_path / "sft", stages=[{"stage": 2, "steps": 1}])
    SFT(config, CPU, log=lambda text: None).fit()
    with pytest.raises(ConfigError, match="3 poses, the reward wants 8"):
        start(reward_shards, str(tmp_path / "sft" / "stage_1.pt"), tmp_path / "a")
    with pytest.raises(AbsentError, match="toy cannot be scored"):
        start(reward_shards, policy, tmp_path / "b", reward={"column": "toy"})
    with pytest.raises(ConfigError, match="there is no whole one"):
        start(reward_shards, policy, tmp_path / "c", stream={"batch_size": 64})
    with pytest.raises(ValueError, match=r"optimiser.accumulate: expected 1, got 2"):
        grpo_recipe(reward_shards, policy, tmp_path / "d", optimiser={"accumulate": 2})
    with pytest.raises(ValueError, match="group"):
        grpo_recipe(reward_shards, policy, tmp_path / "d", group=1)


def test_a_step_that_is_not_finite_stops_the_run(reward_shards: str, policy: str, tmp_path: Path) -> None:
    run = start(reward_shards, policy, tmp_path)
    run.fit(until=2)
    for group in run._optimiser.param_groups:
        group["scale"] = float("nan")
    with pytest.raises((DivergedError, RuntimeError), match=r"step 3|probability tensor"):
        run.fit()


def test_the_dataset_needs_the_reward_column(shards: str, policy: str, tmp_path: Path) -> None:
    assert "pdm" not in Dataset(shards).columns
    with pytest.raises(AbsentError, match=r"pdm/column.json.*needs the columns samples, toy, pdm"):
        start(shards, policy, tmp_path)
