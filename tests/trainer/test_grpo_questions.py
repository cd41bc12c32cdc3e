"""GRPO on questions: rewards, pairs, the parts of a step, learning, resuming, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from questions.controls import said
from questions.units import Prompt, read_units
from shards_schema.errors import AbsentError, ConfigError, MismatchError
from tests.questions_toys import prompt, write_units
from tests.trainer.reward_toys import grpo_recipe, sft_policy, sft_recipe
from tests.trainer.test_asked import asking, question
from tests.trainer.trainer_toys import STILL, assert_same, batch_of
from trainer.answered import Answered, rewarded
from trainer.answers.words import Words
from trainer.batch import Batch, Example
from trainer.grpo import GRPO
from trainer.grpo_config import AskedConfig
from trainer.questions import QuestionBatches
from trainer.rollouts import roll_out
from trainer.sft import SFT
from trainer.tally import ASKED

CPU = torch.device("cpu")
OFF = {"wm": 0, "geo": 0}
TINY = {"kind": "tiny", "width": 32, "depth": 2, "heads": 2, "image": [48, 32], "dropout": 0.0, **STILL}
RARE = {"evaluate_every": 1000, "save_every": 1000, "log_every": 1000}


Units = dict[str, Path]
"""Split -> unit file."""


@pytest.fixture(scope="module")
def units(reward_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Units:
    """Two questions about each scene of the logs that are trained on, and one about each of the others."""
    run = SFT(sft_recipe(reward_shards, "/nowhere"), CPU, log=str)
    asked = {
        "train": [question(t, n) for t in run.train_tokens for n in (0, 1)],
        "evaluation": [question(t, n, split="evaluation") for n, t in enumerate(run.held_tokens)],
    }
    folder = tmp_path_factory.mktemp("units")
    return {split: write_units(folder / f"{split}.jsonl", prompts) for split, prompts in asked.items()}


@pytest.fixture(scope="module")
def begun(reward_shards: str, units: Units, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy that knows how to answer, and often not what."""
    questions = {"units": str(units["train"]), "share": 3}
    values = {"stages": [{"stage": 2, "steps": 30, "lr": 1e-2}], "student": TINY, "questions": questions}
    return sft_policy(reward_shards, tmp_path_factory.mktemp("sft"), evaluate_limit=1, **values, **RARE)


def start(shards: str, policy: str, out: Path, asked: Mapping[str, Any], **changes: Any) -> GRPO:
    """Questions alone, but where `asked` says otherwise."""
    values = {"questions": {"alone": True, **asked}, "regulariser": OFF, "loss": "dr_grpo", "scale": False, **changes}
    return GRPO(grpo_recipe(shards, policy, out, **values), CPU, log=lambda text: None)


def drawn(run: GRPO, which: int = 0) -> tuple[Any, Any, dict[str, Any]]:
    """A task of a run, a rollout of it, and its numbers."""
    task = run._tasks[which]
    batch = task.batch(iter([run.model.student.prepare(run.held_batches()[0])]))  # type: ignore[arg-type]
    student, config = run.model.student, run.config
    return task, *roll_out(student, batch, task.reward, run.table, config, run._sampler, run._autocast())


def test_it_learns_what_is_asked(reward_shards: str, units: Units, begun: str, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def note(step: int, numbers: Mapping[str, float]) -> None:
        seen.append(dict(numbers))

    asked = {"units": str(units["train"]), "held": str(units["evaluation"]), "share": 4, "length": 10}
    numbers = RARE | {"log_every": 1, "evaluate_every": 7, "evaluate_samples": 4}
    shape = {"steps": 14, "group": 8, "stream": {"batch_size": 3, "threads": 1}}
    run = start(reward_shards, begun, tmp_path, asked, lr=5e-3, beta=0.01, loss="grpo", scale=True, **shape, **numbers)
    before = run.ask()
    run.fit(on_numbers=note)
    after = run.ask()
    assert before is not None
    assert after is not None
    steps = [n for n in seen if "train/asked/reward/score" in n]
    (first, *_), last = steps, steps[-1]
    assert first["train/asked/ratio"] == last["train/asked/ratio"] == 1
    assert first["train/asked/kl"] == 0
    assert all(0 <= n["train/asked/gap"] < 1e-5 for n in seen if "train/asked/gap" in n)
    right = [n["train/asked/reward/accuracy"] for n in steps]
    assert sum(right[-4:]) > sum(right[:4]) + 0.4
    assert after.means()["sampled"] > before.means()["sampled"]
    held_out = [n for n in seen if "held/asked/score" in n]
    assert len(held_out) == 2
    assert held_out[-1].keys() >= {f"held/asked/{name}" for name in ("sampled", "cut", "depth")}
    assert {n.split("/")[1] for numbers in seen for n in numbers} <= {"asked", "gradient", "lr", "seconds"}  # no drive
    json.dumps(seen)
    assert before.means() == run.ask(run.before()).means()  # type: ignore[union-attr]


def test_resumed_after_a_kill_it_ends_with_the_same_bits(
    reward_shards: str, units: Units, begun: str, tmp_path: Path
) -> None:
    asked = {"units": str(units["train"]), "share": 1.5}
    shape = {"steps": 3, "inner": 2, "stream": {"batch_size": 2, "threads": 1}, "evaluate_every": 1000}
    start(reward_shards, begun, tmp_path / "whole", asked, keep=10, **shape).fit()
    start(reward_shards, begun, tmp_path / "killed", asked, **shape).fit(until=2)
    again = start(reward_shards, begun, tmp_path / "killed", asked, **shape)
    assert again.step == 2
    again.fit()
    assert_same(tmp_path / "whole" / "policy.pt", tmp_path / "killed" / "policy.pt")
    with pytest.raises(MismatchError, match=r"questions.weight: 1.0 -> 2.0"):
        start(reward_shards, begun, tmp_path / "killed", asked | {"weight": 2.0}, **shape)


def test_a_step_adds_the_gradients_of_drives_and_questions(
    reward_shards: str, units: Units, begun: str, tmp_path: Path
) -> None:
    """By their weight; and what stands in the log of each is its own."""
    changes = {"loss": "dapo", "scale": True, "regulariser": {"wm": 0.1, "geo": 0.1}, "optimiser": {"clip": 1e9}}
    asked_too = {"units": str(units["train"]), "alone": False, "weight": 0.25, "share": 3, "length": 10}
    run = start(reward_shards, begun, tmp_path, asked_too, **changes)
    parts = [drawn(run, which)[:2] for which in range(2)]
    assert [task.name for task, _ in parts] == ["", ASKED]
    assert all(rollout.size.answers for _, rollout in parts)
    run._optimiser = torch.optim.SGD([{"params": list(run.model.parameters()), "scale": 0.0}])  # type: ignore[assignment]

    def gradient(learnt: Any) -> dict[str, torch.Tensor]:
        run._tally.add(run._learn(learnt))
        return {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}

    drives, asked, both = gradient(parts[:1]), gradient(parts[1:]), gradient(parts)
    task, rollout = parts[1]
    assert gradient([(task._replace(weight=1.0), rollout)])["student.start"].norm() == pytest.approx(
        4 * asked["student.start"].norm()
    )
    assert any("asking" in name for name in asked)
    assert not any("asking" in name for name in drives)
    assert both.keys() == drives.keys() | asked.keys()
    for name, value in both.items():
        expected = sum(part[name] for part in (drives, asked) if name in part)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-4, msg=name)
    logged = run._tally.take(CPU)
    assert {"loss", "kl", "align_wm", "gradient", "asked/loss", "asked/kl", "asked/align_wm"} <= logged.keys()


def pairs(count: int) -> list[Prompt]:
    """Units of two prompts, one of which is Yes."""
    return [
        prompt("fb", ("Yes", "No"), answer, unit=f"fb-{i}", side=side, split="train", token=f"{i:08x}{i:08x}")
        for i in range(count)
        for side, answer in ((1, "Yes"), (2, "No"))
    ]


def test_both_prompts_of_a_unit_are_in_one_batch_and_earn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = pairs(6)
    words = Words.fit([*(said(p.answer) for p in prompts), *(p.question for p in prompts), "Yes", "No"])
    student = asking(words)
    monkeypatch.setattr(student, "prepare", lambda batch: batch)
    scenes = dict(zip((p.token for p in prompts[::2]), range(6), strict=True))
    drives = batch_of(6)

    def read(asked: Prompt) -> Any:
        i = scenes[asked.token]
        return Example(
            asked.token, drives.images[i].numpy(), drives.status[i].numpy(), 0, drives.future[i].numpy(), {}, asked
        )

    def of_step(ranks: int, share: float) -> list[Batch]:
        monkeypatch.setattr("trainer.distributed.world_size", lambda: ranks)
        out = []
        for rank in range(ranks):
            monkeypatch.setattr("trainer.distributed.rank", lambda rank=rank: rank)
            made = QuestionBatches(
                prompts, read, student, drives=4 // ranks, share=share, accumulate=1, seed=0, whole=True
            )
            out.append(made._make(1))
        return out

    alone, shared = of_step(1, 1), of_step(2, 1)
    assert [(p.unit, p.side) for p in alone[0].asked] == [(p.unit, p.side) for b in shared for p in b.asked]
    for batch in (*alone, *shared):
        assert [p.side for p in batch.asked] == [1, 2] * (len(batch) // 2)
    batch, config = alone[0], AskedConfig.model_validate({"units": "/nowhere"})
    group = 3
    yes = words.encode([said("Yes")] * len(batch) * group)
    rows, counted = rewarded(student, batch, yes, config)
    assert counted.all()
    assert rows["accuracy"].shape == (len(batch), group)
    assert rows["accuracy"].sum() == 0  # always Yes is half right, and of no pair
    assert rows["form"].min() == 1  # an answer in its tags; a thought is not asked for
    each, _ = rewarded(student, batch, yes, config.model_copy(update={"pairs": False}))
    assert each["accuracy"].mean() == 0.5
    texts = [said(p.answer if i else "No") for p in batch.asked for i in range(group)]
    right, _ = rewarded(student, batch, words.encode(texts), config)
    assert right["accuracy"].tolist() == [[0, 1, 1]] * len(
        batch
    )  # the first to one side goes with the first to the other
    torch.testing.assert_close(right["score"], right["accuracy"] + 0.5)
    with pytest.raises(ConfigError, match="both sides are needed equally often"):
        rewarded(student, batch[0:1], yes[:group], config)


def test_answers_that_are_none_or_cut_are_counted_and_earn_nothing(
    reward_shards: str, units: Units, begun: str, tmp_path: Path
) -> None:
    run = start(
        reward_shards,
        begun,
        tmp_path,
        {"units": str(units["train"]), "length": 2},
        stream={"batch_size": 4, "threads": 1},
    )
    _, rollout, numbers = drawn(run)
    count = numbers["answers"]
    assert numbers["unparsed"] == count == 4 * 4
    assert numbers["cut"] > count / 2
    assert numbers["cut"] == (rollout.answers != run.model.student.speech.end).all(1).sum()
    assert numbers["dropped"] == numbers["scenes"] == 4
    assert numbers["reward/score"] == rollout.size.answers == 0
    assert rollout.size.length == 2
    run.fit(until=1)  # a step in which there is nothing to learn
    found = Answered((prompt("depth", ("A", "B"), "A"),), (("<answer>A</answer>", "<ans", "<ans"),), (False,), "pixels")
    assert found.means() == {"score": 1, "sampled": 0, "depth": 1, "cut": 0}
    alone = Answered(found.prompts, (("<answer>A",),), (True,), "pixels")
    assert alone.means() == {"score": 0, "depth": 0, "cut": 1}  # nothing was drawn: no mean


def test_a_policy_that_thinks_before_it_drives_answers_at_once(
    reward_shards: str, units: Units, tmp_path: Path
) -> None:
    asked = {"units": str(units["train"]), "length": 10}
    questions, few = {"units": asked["units"]}, {"evaluate_limit": 1, **RARE}
    stages = [{"stage": 2, "steps": 2}]
    policy = sft_policy(reward_shards, tmp_path / "sft", thought="text", questions=questions, stages=stages, **few)
    changes = {"steps": 1, "group": 2, "evaluate_samples": 1, **few, "log_every": 1}
    run = start(reward_shards, policy, tmp_path / "grpo", asked | {"alone": False}, **changes)
    drives, answers = (drawn(run, which)[1] for which in range(2))
    assert drives.words > 0 == answers.words
    seen: dict[str, float] = {}
    run.fit(on_numbers=lambda step, numbers: seen.update(numbers))
    assert seen.keys() >= {"train/cut", "train/asked/cut", "train/reward/score", "train/asked/reward/score"}


def test_what_cannot_be_is_refused_at_the_start(reward_shards: str, units: Units, begun: str, tmp_path: Path) -> None:
    asked = {"units": str(units["train"])}
    train, evaluation = (read_units(units[split]) for split in ("train", "evaluation"))
    mine = write_units(tmp_path / "mine.jsonl", [*evaluation, train[0]])
    theirs = [question.model_copy(update={"split": "train"}) for question in evaluation]
    taught = write_units(tmp_path / "taught.jsonl", theirs)
    with pytest.raises(ConfigError, match="has units of 1 scenes that this run learns from"):
        start(reward_shards, begun, tmp_path, asked | {"held": str(mine)})
    with pytest.raises(ConfigError, match="nothing may be trained on these"):
        start(reward_shards, begun, tmp_path, {"units": str(units["evaluation"])})
    with pytest.raises(ConfigError, match="has units of 1 logs that this run holds out"):
        start(reward_shards, begun, tmp_path, {"units": str(taught)})
    mute = sft_policy(reward_shards, tmp_path / "mute", stages=[{"stage": 2, "steps": 1}])
    with pytest.raises(ConfigError, match="this policy cannot be asked"):
        start(reward_shards, mute, tmp_path, asked)
    with pytest.raises(AbsentError, match="gone"):
        start(reward_shards, begun, tmp_path, asked | {"alone": False}, reward={"column": "gone"})
    start(reward_shards, begun, tmp_path, asked, reward={"column": "gone"})  # which nobody reads
