"""A chain of facts before the answer: written of labels, learnt, and written by the policy itself where it drives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.reading.reader import Dataset
from shards_schema.errors import ConfigError
from tests.trainer.reward_toys import grpo_recipe, sft_policy
from tests.trainer.shard_toys import recipe, recipe_values
from tests.trainer.test_hf_student import text_answers
from tests.trainer.trainer_toys import (
    COUNTS,
    a_group_of_answers_stands_behind_one_prompt,
    assert_same,
    batch_of,
    motion_answers,
    tiny_student,
)
from tests.trainer.vlm_toys import hf_student, image_processor, tokenizer, vlm
from trainer import checkpoint, thoughts
from trainer.answers.base import Answers
from trainer.batch import THOUGHT, Batch
from trainer.build import load_policy, make_student, make_words
from trainer.config import SFTConfig
from trainer.drive import drive
from trainer.dry_run import grpo_needs, sft_needs
from trainer.grpo import GRPO
from trainer.grpo_config import GRPOConfig
from trainer.rollouts import roll_out
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.students.base import Student
from trainer.students.hf import FAMILIES
from trainer.thoughts import Thoughts, facts_said

CPU = torch.device("cpu")
SHORT = {"evaluate_limit": 1, "evaluate_samples": 1}
ONE_STAGE = [{"stage": 2, "steps": 3, "lr": 3e-3}]


def scene(**changes: Any) -> dict[str, Any]:
    boxes = [[30, -1, 0, 4, 2, 2, 0], [12, 0.4, 0, 4, 2, 2, 0], [9, 4, 0, 1, 1, 2, 0], [-5, 0, 0, 4, 2, 2, 0]]
    boxes += [[3, 0, 0, 1, 1, 1, 0], [20, 9, 0, 4, 2, 2, 0], [40, 0, 0, 2, 1, 1, 0]]
    names = ["vehicle", "vehicle", "pedestrian", "vehicle", "traffic_cone", "vehicle", "bicycle"]
    velocity = [[None, None, None], [3, 0.4, 0], [0, 1, 0], *[[0, 0, 0]] * 4]
    return {
        "token": "t0",
        "ego": {"command": "straight", "velocity": [7.4, 0.1]},
        "annotations": {"boxes": boxes, "names": names, "velocity": velocity},
        **changes,
    }


class Lit:
    """What `Thoughts` asks of a dataset: one scene with three areas, of which the nearest is red later."""

    columns = ("samples", "pdm")

    def specs(self, column: str) -> dict[str, None]:
        return dict.fromkeys(thoughts._LIGHTS if column == "pdm" else [])

    def tokens(self, column: str) -> list[str]:
        return ["t0"]

    def read(self, token: str, wanted: object) -> dict[str, dict[str, Any]]:
        square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]])
        active = np.zeros((4, 41), dtype=bool)
        active[1:, 0] = active[0, 5:] = True
        xy = np.concatenate([square + offset for offset in ([4, 0], [40, 0], [18, 0], [-9, 0])])
        offsets = np.arange(0, 17, 4)
        found = {"active": active, "xy": xy, "rings": offsets, "polygons": np.arange(5)}
        return {"pdm": {f"v2_light_{name}": value for name, value in found.items()}}


def test_facts_are_those_of_now() -> None:
    write = Thoughts(Lit())  # type: ignore[arg-type]
    others = "vehicle 12 m ahead at 3 m/s. vehicle 30 m ahead 1 m right."
    near = "pedestrian 9 m ahead 4 m left at 1 m/s."
    assert write(scene()) == f"straight, 7 m/s. red light 18 m ahead. {near} {others}"
    assert write(scene(token="other", annotations=None)) == "straight, 7 m/s. light unknown. others unknown."
    empty = {"boxes": [], "names": [], "velocity": []}
    assert write(scene(annotations=empty)).endswith(" nobody ahead.")
    assert facts_said(f"straight, 8 m/s. {near}", f"straight, 7 m/s. red light 18 m ahead. {near}") == (1, 3)


def test_a_tiny_students_words_have_every_thought(reward_shards: str) -> None:
    """Of a dataset with a map: its lights are those of the reward's column."""
    words = make_words(tiny_student().config, (), thinks=True)
    dataset = Dataset(reward_shards)
    write = Thoughts(dataset)
    assert words is not None
    assert write.lights == "pdm"
    every = [write(dataset.read(t, {"samples": ["json"]})["samples"]["json"]) for t in dataset.tokens("pdm")]
    every += [
        "unknown, 99 m/s. no red light. nobody ahead.",
        "right, 0 m/s. light unknown. others unknown.",
        thoughts.WIDEST,
    ]
    encoded = words.encode(every)
    assert words.decode(encoded) == every
    assert not (encoded == 1).any()
    assert encoded.shape[1] == thoughts.LENGTH == words.length
    for token, said in zip(dataset.tokens("pdm"), every, strict=False):
        red = dataset.read(token, {"pdm": ["v2_light_active"]})["pdm"]["v2_light_active"][:, :1].any()
        assert red or "no red light." in said


def thinking_tiny(answers: Answers | None = None) -> Student:
    config, words = tiny_student().config, make_words(tiny_student().config, (), thinks=True)
    torch.manual_seed(0)
    said = answers or motion_answers()
    return make_student(config, said, COUNTS, views=1, history=4, words=words, thinks=True).eval()


def thinking_batch(student: Student, count: int = 3) -> Batch:
    told = ("straight, 7 m/s.", "left, 1 m/s. nobody ahead.", "red light 18 m ahead.")
    return student.prepare(replace(batch_of(count), thoughts=told[:count]))


def thinking_soon(kind: str) -> Student:
    """One whose thoughts have five words at most, differ in length, and are often cut."""
    if kind == "tiny":
        student = thinking_tiny()
    else:
        student = hf_student(kind, text_answers() if kind == "qwen2_5_vl" else None).eval()
    student.thinks, own, words = 5, student.logits, student.words
    assert words is not None

    def soon(hidden: torch.Tensor, asks: bool = False) -> torch.Tensor:
        """The end is likely."""
        made = own(hidden, asks)
        return made + 3 * torch.nn.functional.one_hot(torch.tensor(words.end), made.shape[-1]) if asks else made

    student.logits = soon  # type: ignore[method-assign]
    return student


@pytest.mark.parametrize("kind", ["tiny", "internvl", "qwen3_vl"])
@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_thought_is_thought_once(kind: str, stage: int) -> None:
    """Sampled by prefill and decode, thoughts of several lengths: the probabilities of one teacher-forced pass."""
    student = thinking_soon(kind)
    batch, table = thinking_batch(student), allow_table(stage)
    sampled = student.sample(batch, table, group=4, generator=torch.Generator().manual_seed(2))
    assert sampled.thought is not None
    lengths = (sampled.thought >= 0).sum(1)
    assert lengths.min() < lengths.max()
    places = tuple(i for i in range(3) for _ in range(4))
    many = batch.take(torch.tensor(places), places)
    told = replace(many, prepared={**many.prepared, THOUGHT: sampled.thought})
    with torch.no_grad():
        torch.testing.assert_close(student.logp(told, sampled.tokens, table), sampled.logp, atol=1e-5, rtol=0)
        other = sampled.thought.clone()
        other[:, 0] = (other[:, 0] + 1) % 20
        changed = replace(told, prepared={**told.prepared, THOUGHT: other})
        assert (student.logp(changed, sampled.tokens, table) - sampled.logp).abs().max() > 1e-4  # it reads its thought


@pytest.mark.parametrize("kind", ["tiny", *FAMILIES])
def test_thoughts_of_a_group_are_drawn_asked_about_and_learnt(kind: str) -> None:
    student, table = thinking_soon(kind), allow_table(2)
    batch = thinking_batch(student, 2)
    a_group_of_answers_stands_behind_one_prompt(student, batch, table)
    drawn = student.sample(batch, table, group=8, generator=torch.Generator().manual_seed(0))
    assert drawn.thought is not None
    assert drawn.cut is not None
    assert student.words is not None
    assert drawn.cut.tolist() == [student.words.end not in row for row in drawn.thought.tolist()]
    assert 0 < drawn.cut.sum() < 16
    student.zero_grad()
    words = drawn.thought.shape[1]
    student.logp(batch, torch.cat((drawn.thought, drawn.tokens), 1), table, words=words)[:, :words].sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in student.blocks[-1].parameters())


def test_the_one_answer_is_the_same_each_time_and_draws_no_thought() -> None:
    for answers in (motion_answers(), motion_answers(expected=True)):
        student = thinking_tiny(answers)
        batch, state = thinking_batch(student), torch.get_rng_state()
        first, second = (student.answer(batch, allow_table(2))[0] for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), state)


def test_questions_are_answered_without_a_thought_and_need_words() -> None:
    student = thinking_tiny()
    drives = thinking_batch(student)
    assert student.sample(drives, allow_table(2), temperature=0).thought is not None
    with pytest.raises(ConfigError, match="this policy cannot be asked"):
        student.spoken(replace(drives, asked=(object(),) * 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("thought", ["text", "none"])
def test_a_run_without_latents_resumes_and_drives(thought: str, shards: str, tmp_path: Path) -> None:
    def run(out: Path, until: int | None = None) -> SFT:
        made = SFT(recipe(shards, out, thought=thought, stages=ONE_STAGE), CPU, log=said.append)
        made.fit(until=until, on_numbers=lambda step, numbers: losses.update(numbers))
        return made

    said: list[str] = []
    losses: dict[str, float] = {}
    whole = run(tmp_path / "whole")
    assert ("train/thought" in losses) == (thought == "text")
    assert any("no thought says it" in line for line in said) == (thought == "text")
    assert not any("cosine" in name for name in losses)
    run(tmp_path / "cut", until=2)
    run(tmp_path / "cut")
    assert_same(tmp_path / "whole/stage_1.pt", tmp_path / "cut/stage_1.pt")
    policy = load_policy(tmp_path / "whole/stage_1.pt")
    assert bool(policy.student.thinks) == (thought == "text")
    batch = whole.held_batches()[0]
    blind = replace(batch, targets={}, thoughts=())  # as an evaluation reads it: nobody tells it what to think
    poses, parsed = drive(policy, blind)
    whole.model.eval()
    assert torch.equal(poses, whole.model.student.answer(batch, allow_table(2))[0])
    assert parsed.all()
    whole.check_mask(batch)


@pytest.mark.parametrize("thought", ["text", "none"])
def test_what_cannot_be_is_said_at_the_start(thought: str, tmp_path: Path) -> None:
    values = recipe_values("nowhere", tmp_path, thought=thought)
    with pytest.raises(ValidationError, match=f"thought: {thought} has no latents, and under the mask of stage 1"):
        SFTConfig.model_validate(values)
    masked = [{"stage": 1, "mask": 2, "steps": 1}, *ONE_STAGE]
    assert SFTConfig.model_validate({**values, "stages": masked}).counts == {"wm": 0, "geo": 0}
    with pytest.raises(ValidationError, match=r"controls\.zero_latents: thought"):
        SFTConfig.model_validate({**values, "stages": masked, "controls": {"zero_latents": True}})


@pytest.fixture(scope="module")
def thinkers(reward_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What SFT left of each."""
    root = tmp_path_factory.mktemp("thinkers")
    stages = [{"stage": 2, "steps": 12, "lr": 3e-3}]
    return {way: sft_policy(reward_shards, root / way, thought=way, stages=stages) for way in ("text", "none")}


def refined(shards: str, policy: str, out: Path, until: int | None = None, **changes: Any) -> tuple[GRPO, list[Any]]:
    """A run of GRPO, and what it said and reported."""
    told: list[Any] = []
    run = GRPO(grpo_recipe(shards, policy, out, **changes), CPU, log=told.append)
    run.fit(until=until, on_numbers=lambda step, numbers: told.append(dict(numbers)))
    return run, told


@pytest.mark.parametrize("thought", ["text", "none"])
def test_grpo_goes_on_from_policies_without_latents(
    thought: str, thinkers: dict[str, str], reward_shards: str, tmp_path: Path
) -> None:
    changes = {"steps": 2, "inner": 2, "micro": 3, "stream": {"batch_size": 2, "threads": 1}, **SHORT}
    policy = thinkers[thought]
    run, told = refined(reward_shards, policy, tmp_path / "whole", **changes)
    assert told[0] == f"no alignment: {policy} has no latents (thought: {thought}); regulariser does nothing"
    assert {*run.dataset.columns} == {"samples", "pdm"}
    first, last = (numbers for numbers in told if "train/loss" in numbers)
    assert all(0 < numbers["train/gap"] < 1e-5 for numbers in (first, last))
    assert last["train/kl"] > 0
    assert ("train/cut" in first) == (thought == "text")
    assert not any("align" in name for name in first)
    refined(reward_shards, policy, tmp_path / "cut", until=1, **changes)
    again, said = refined(reward_shards, policy, tmp_path / "cut", **changes)
    assert "resumed at step 1 of 2" in said
    assert_same(tmp_path / "whole/policy.pt", tmp_path / "cut/policy.pt")
    after, before = load_policy(tmp_path / "whole/policy.pt"), checkpoint.load(Path(policy))["student"]
    moved = {name for name, value in before.items() if not torch.equal(value, after.student.state_dict()[name])}
    assert "head.table_out" in moved
    assert ("asking.head.table_out" in moved) == (thought == "text")
    poses, parsed = drive(after, again.held_batches()[0])
    assert torch.equal(poses, again.model.student.answer(again.held_batches()[0], allow_table(2))[0])
    assert parsed.all()


@pytest.mark.parametrize("family", [pytest.param("internvl", marks=pytest.mark.slow), "qwen3_vl"])
def test_grpo_of_a_large_model_that_thinks(family: str, reward_shards: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for part in (vlm(family), tokenizer(), image_processor(family)):
        part.save_pretrained(folder)  # type: ignore[operator, union-attr]
    values = {"student": {"kind": "hf", "model": str(folder)}, "thought": "text", "evaluate_limit": 1}
    policy = sft_policy(reward_shards, tmp_path / "sft", stages=[{"stage": 2, "steps": 1}], **values)
    changes = {"steps": 1, "group": 6, "stream": {"batch_size": 2, "threads": 1}, **SHORT}
    _, told = refined(reward_shards, policy, tmp_path / "grpo", **changes)
    train = told[1]
    assert train["train/ratio"] == 1
    assert 0 < train["train/gap"] < 1e-4
    assert 0 < train["train/cut"] <= train["train/unparsed"] < 1  # it has hardly learnt to end one
    assert load_policy(tmp_path / "grpo/policy.pt").student.thinks > 100


def test_thoughts_count_in_the_loss_and_one_that_is_cut_earns_nothing(
    thinkers: dict[str, str], reward_shards: str, tmp_path: Path
) -> None:
    run = GRPO(grpo_recipe(reward_shards, thinkers["text"], tmp_path, group=8), CPU, log=str)
    student = run.model.student
    student.thinks = 24
    generator, half = torch.Generator().manual_seed(0), torch.autocast("cpu", enabled=False)
    batch = run.held_batches()[0]
    rollout, numbers = roll_out(student, batch, run.reward, run.table, run.config, generator, half)  # type: ignore[arg-type]
    assert student.words is not None
    cut = (rollout.answers[:, : rollout.words] != student.words.end).all(1)
    assert 0 < cut.sum() < len(cut)
    assert numbers["cut"] == numbers["unparsed"] == cut.sum()
    assert rollout.size.length == 24 + run.answers.length
    kept = torch.cat([part.rows for part in rollout.passes])
    assert rollout.size.tokens == (rollout.answers[kept] >= 0).sum()
    worst = rollout.advantage.view(-1, 8).amin(1).repeat_interleave(8)
    assert torch.equal(rollout.advantage[cut], worst[cut])


def test_it_learns_to_end_its_thoughts_and_the_control_does_not(
    thinkers: dict[str, str], reward_shards: str, tmp_path: Path
) -> None:
    """Only the words of thoughts say that: three of four do not end in so few."""
    found = {}
    for name, shuffle in (("honest", False), ("control", True)):
        changes = {
            "steps": 12, "group": 8, "lr": 1e-2, "beta": 0.0, "stream": {"batch_size": 7, "threads": 1},
            "evaluate_every": 99, "save_every": 99, **SHORT, "controls": {"shuffle_advantages": shuffle},
        }  # fmt: skip
        run = GRPO(grpo_recipe(reward_shards, thinkers["text"], tmp_path / name, **changes), CPU, log=str)
        run.model.student.thinks = 12
        cut: list[float] = []
        run.fit(on_numbers=lambda step, numbers, cut=cut: cut.append(numbers.get("train/cut", -1)))
        found[name] = [share for share in cut if share >= 0]
    assert found["honest"][0] == found["control"][0]
    assert sum(found["honest"][-3:]) < sum(found["control"][-3:]) - 0.6, found


def test_a_dry_run_counts_the_thought(tmp_path: Path) -> None:
    direct, text = (
        sft_needs(SFTConfig.model_validate(recipe_values("nowhere", tmp_path, thought=thought, stages=ONE_STAGE)))
        for thought in ("none", "text")
    )
    assert text.tokens == direct.tokens + thoughts.LENGTH
    assert text.memory["logits"] > direct.memory["logits"]
    refine = GRPOConfig.model_validate(
        {"policy": "nowhere", "data": "nowhere", "out": "nowhere", "steps": 1, "group": 4}
    )
    direct, text = (
        grpo_needs(refine, SFTConfig.model_validate(recipe_values("x", tmp_path, thought=way, stages=ONE_STAGE)))
        for way in ("none", "text")
    )
    assert text.tokens == direct.tokens + 4 * thoughts.LENGTH
    assert text.flops > direct.flops
