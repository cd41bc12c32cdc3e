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
from tests.trainer.reward_toys import grpo_recipe, sft_recipe
from tests.trainer.shard_toys import recipe, recipe_values
from tests.trainer.trainer_toys import COUNTS, assert_same, batch_of, motion_answers, tiny_student
from tests.trainer.vlm_toys import hf_student
from trainer import checkpoint, thoughts
from trainer.answers.base import Answers
from trainer.batch import THOUGHT, Batch
from trainer.build import load_policy, make_student, make_words
from trainer.config import SFTConfig
from trainer.drive import drive
from trainer.dry_run import sft_needs
from trainer.grpo import GRPO
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.students.base import Student
from trainer.thoughts import Thoughts, facts_said

CPU = torch.device("cpu")
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


@pytest.mark.parametrize("kind", ["tiny", "internvl", "qwen3_vl"])
@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_thought_is_thought_once(kind: str, stage: int) -> None:
    """Sampled by prefill and decode, thoughts of several lengths: the probabilities of one teacher-forced pass."""
    student = thinking_tiny() if kind == "tiny" else hf_student(kind).eval()
    student.thinks = 5
    assert student.words is not None
    end = student.words.end
    batch, table = thinking_batch(student), allow_table(stage)
    own = student.logits

    def soon(hidden: torch.Tensor, asks: bool = False) -> torch.Tensor:
        """The end is likely, so that thoughts differ in length."""
        made = own(hidden, asks)
        return made + 4 * torch.nn.functional.one_hot(torch.tensor(end), made.shape[-1]) if asks else made

    student.logits = soon  # type: ignore[method-assign]
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
def test_what_cannot_be_is_said_at_the_start(thought: str, reward_shards: str, tmp_path: Path) -> None:
    values = recipe_values("nowhere", tmp_path, thought=thought)
    with pytest.raises(ValidationError, match=f"thought: {thought} has no latents, and under the mask of stage 1"):
        SFTConfig.model_validate(values)
    masked = [{"stage": 1, "mask": 2, "steps": 1}, *ONE_STAGE]
    assert SFTConfig.model_validate({**values, "stages": masked}).counts == {"wm": 0, "geo": 0}
    with pytest.raises(ValidationError, match=r"controls\.zero_latents: thought"):
        SFTConfig.model_validate({**values, "stages": masked, "controls": {"zero_latents": True}})
    SFT(sft_recipe(reward_shards, tmp_path, thought=thought, stages=ONE_STAGE), CPU, log=lambda text: None).fit()
    with pytest.raises(ConfigError, match=f"trained with thought: {thought}; GRPO takes a policy with latents"):
        GRPO(grpo_recipe(reward_shards, str(tmp_path / "stage_1.pt"), tmp_path / "grpo"), CPU)
    assert checkpoint.load(tmp_path / "stage_1.pt")["statistics"] == {}


def test_a_dry_run_counts_the_thought(tmp_path: Path) -> None:
    direct, text = (
        sft_needs(SFTConfig.model_validate(recipe_values("nowhere", tmp_path, thought=thought, stages=ONE_STAGE)))
        for thought in ("none", "text")
    )
    assert text.tokens == direct.tokens + thoughts.LENGTH
    assert text.memory["logits"] > direct.memory["logits"]
