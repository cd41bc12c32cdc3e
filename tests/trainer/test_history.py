"""Students that see frames before now: which pixels, in which order, what is asked of them, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import export as export_job
from jobs import questions as questions_job
from jobs import reason
from pipeline.reading.reader import Dataset
from questions.units import PastFrame, Prompt
from questions.wording import taken
from shards_schema import layout
from shards_schema.errors import ConfigError
from tests.questions_toys import prompt, write_units
from tests.trainer.shard_toys import recipe, recipe_values, write_dataset
from tests.trainer.trainer_toys import batch_of
from tests.trainer.vlm_toys import hf_student, tokenizer
from trainer import checkpoint
from trainer.build import load_policy
from trainer.config import SFTConfig
from trainer.data import DataConfig, ExampleMaker
from trainer.dry_run import sft_needs
from trainer.questions import QuestionReader
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.students.hf import FAMILIES
from trainer.students.tiny import _disturbed

CPU = torch.device("cpu")
SEEN = {"image": [48, 32], "steps": 3, "held_out": 0.25, "history": 1}


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards with the frame before now."""
    return write_dataset(tmp_path_factory.mktemp("moving"), history=1)


def about_motion(token: str, **given: Any) -> list[Prompt]:
    """Both sides of a unit that asks whether a thing moves; the frame before is the sample's own."""
    past = (PastFrame(token=f"{token[:8]}{int(token[8:], 16) - 1:08x}", seconds=-0.5, back=1),)
    values = {
        "unit": f"moves-{token}", "token": token, "log": token[:8], "split": "train", "views": ("cam_f0",),
        "size": (48, 32), "benchmark": "toy", "past": past, **given,
    }  # fmt: skip
    sides = (("Is it moving?", "Yes"), ("Is it standing?", "No"))
    return [
        prompt("moves", ("Yes", "No"), answer, side=side, question=asked, **values)
        for side, (asked, answer) in enumerate(sides, 1)
    ]


def test_a_student_is_given_the_frames_before_in_the_order_of_time(moving: str) -> None:
    dataset = Dataset(moving, columns=["samples"])
    one, two = (ExampleMaker(dataset, DataConfig(steps=3, history=n), {}) for n in (0, 1))
    tokens = dataset.tokens("samples")
    for before, token in pairwise(tokens):
        alone, seen = one.read(token), two.read(token)
        assert (alone.images.shape[0], alone.frames) == (1, 1)
        assert (seen.images.shape[0], seen.frames) == (2, 2)
        assert np.array_equal(seen.images[1], alone.images[0])
        if before[:8] == token[:8]:  # of the log: the frame before is now of the sample before
            assert np.array_equal(seen.images[0], one.read(before).images[0])
            assert not np.array_equal(seen.images[0], seen.images[1])
    with pytest.raises(ConfigError, match=r"sees 2 frames before now .* hold 1; make .* samples\.history=2"):
        ExampleMaker(dataset, DataConfig(steps=3, history=2), {})


def test_a_dataset_without_them_is_refused_at_the_start(shards: str, tmp_path: Path) -> None:
    told = r"sees 1 frames before now \(samples\.history\), the samples hold 0"
    with pytest.raises(ConfigError, match=told):
        SFT(recipe(shards, tmp_path, samples=SEEN), CPU, log=lambda text: None)
    with pytest.raises(ConfigError, match=told):
        QuestionReader(Dataset(shards, columns=["samples"]), DataConfig(steps=3, history=1))


def test_a_student_learns_about_motion_and_is_asked(moving: str, tmp_path: Path) -> None:
    """Observed kinds are asked of who sees the past, and of no other; the past decides what it says."""
    dataset = Dataset(moving, columns=["samples", "toy"])
    held = SFT(recipe(moving, tmp_path, samples=SEEN), CPU, log=lambda text: None).held_tokens
    learnt = [p for t in dataset.tokens("samples", "toy") if t not in held for p in about_motion(t)]
    units = write_units(tmp_path / "train.jsonl", learnt)
    asked = {"units": str(units)}
    blind = {**SEEN, "history": 0}
    with pytest.raises(ConfigError, match="no question can be asked: unseen_past"):
        SFT(recipe(moving, tmp_path, samples=blind, questions=asked), CPU, log=lambda text: None)
    said: list[str] = []
    run = SFT(recipe(moving, tmp_path / "run", samples=SEEN, questions=asked), CPU, log=said.append)
    assert f"{len(learnt)} questions of {units}" in said
    run.fit()
    assert run._question_batches is not None
    batch = run._question_batches.at(0, 0)
    assert (batch.images.shape[1], batch.frames) == (2, 2)
    student, answers = run.model.student.eval(), batch.prepared["answers"]
    other = replace(batch, images=batch.images.clone())
    other.images[:, 0] = 255 - other.images[:, 0]  # the frame before alone
    with torch.no_grad():
        logits = [student(one, answers, allow_table(2)).logits for one in (batch, other)]
    assert not torch.equal(*logits)
    evaluation = [p for t in held[:2] for p in about_motion(t, split="evaluation")]
    far = evaluation[0].past[0].model_copy(update={"seconds": -1.0, "back": 2})
    evaluation += about_motion(held[0], split="evaluation", unit="far", past=(far, *evaluation[0].past))
    to_ask = write_units(tmp_path / "evaluation.jsonl", evaluation)
    out = [f"policy={tmp_path}/run/stage_2.pt", f"units={to_ask}", f"data={moving}", f"out={tmp_path}/asked"]
    assert reason.main([*out, "device=cpu", "ways=[stage_2, hidden]", "length=6"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "asked/stage_2.jsonl").read_text().splitlines()]
    assert [row.get("reason") for row in rows] == [None] * 4 + ["unseen_past"] * 2
    reader = QuestionReader(dataset, run.config.samples)
    assert np.array_equal(reader.picture(evaluation[0]).transpose(2, 0, 1), reader(evaluation[0]).images[1])
    with pytest.raises(ConfigError, match=r"SURDS has one picture a question; this student sees cam_f0.past1, cam_f0"):
        QuestionReader(None, DataConfig(history=1), surds=tmp_path)


def test_a_policy_of_before_there_was_a_history_loads(shards: str, tmp_path: Path) -> None:
    SFT(recipe(shards, tmp_path), CPU, log=lambda text: None).fit(until=4)
    content = checkpoint.load(tmp_path / "stage_1.pt")
    config = json.loads(content["config"])
    assert config["samples"].pop("history") == 0
    checkpoint.save(tmp_path / "before.pt", {**content, "config": json.dumps(config)})
    policy = load_policy(tmp_path / "before.pt")
    assert policy.config.samples.history == 0
    assert SFT(recipe(shards, tmp_path), CPU, log=lambda text: None).step == 4


def test_a_dry_run_counts_the_pictures() -> None:
    one, two = (SFTConfig.model_validate(recipe_values("x", "y", samples={**SEEN, "history": n})) for n in (0, 1))
    assert sft_needs(two).tokens - sft_needs(one).tokens == 3 * 2  # patches of 16 in 48 x 32


def test_frames_of_a_view_are_disturbed_alike() -> None:
    frame = torch.rand(2, 1, 3, 32, 48)
    pixels = frame.expand(-1, 3, -1, -1, -1).flatten(0, 1)
    torch.manual_seed(0)
    moved = _disturbed(pixels, 8, 0.2, 3).unflatten(0, (2, 3))
    assert torch.equal(moved[:, 0], moved[:, 2])
    assert not torch.equal(moved[0, 0], frame[0, 0])
    torch.manual_seed(0)
    assert torch.equal(_disturbed(frame.flatten(0, 1), 8, 0.2, 1), moved[:, 0])  # draws what it drew


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_student_is_told_which_picture_is_now(family: str) -> None:
    student, words = hf_student(family).eval(), tokenizer()
    batch = replace(batch_of(2, views=4), frames=2)
    times = "When they were taken: picture 1 0.5 s ago, picture 2 now, picture 3 0.5 s ago, picture 4 now.\n"
    for one in (batch, replace(batch, asked=tuple(about_motion("0" * 15 + "9")))):
        prepared = student.prepare(one)
        text = words.decode(prepared.prepared["ids"][0])
        assert text.count(times) == 1
        alone = student.prepare(replace(one, images=one.images[:, 1:2], frames=1))
        images = [int((x.prepared["ids"][0] == student._image_id).sum()) for x in (alone, prepared)]
        assert images[1] == 4 * images[0] > 0
        assert "When they were taken" not in words.decode(alone.prepared["ids"][0])
    answers = student.answers.encode(batch.future, batch.status)
    other = replace(batch, images=batch.images.clone())
    other.images[:, 0] = 255 - other.images[:, 0]
    with torch.no_grad():
        assert not torch.equal(*(student(b, answers, allow_table(2)).logits for b in (batch, other)))
    assert taken([0, 0]) == ""


def test_rows_for_another_trainer_have_the_pictures_in_the_order_of_time(moving: str, tmp_path: Path) -> None:
    assert export_job.main([f"out={moving}", f"to={tmp_path}/drives.jsonl"]) == 0
    (row, *_) = [json.loads(line) for line in (tmp_path / "drives.jsonl").read_text().splitlines()]
    names = [Path(image).name.partition(".")[2] for image in row["images"]]
    assert names == ["cam_f0.past1.jpg", "cam_f0.jpg"]
    content = row["messages"][0]["content"]
    assert content.startswith("<image>\n<image>\nWhen they were taken: picture 1 0.5 s ago, picture 2 now.\nYou drive")
    (token, *_) = Dataset(moving, columns=["samples"]).tokens("samples")  # the frame before is no sample
    units = write_units(tmp_path / "units.jsonl", about_motion(token))
    export = ["export", f"units={units}", f"data={moving}", f"to={tmp_path}/asked.jsonl", "use=train"]
    assert questions_job.main(export) == 0
    rows = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    stored = Dataset(moving).read(token, {layout.SAMPLES: [f"{n}.jpg" for n in ("cam_f0.past1", "cam_f0")]})["samples"]
    for one in rows:
        assert [Path(image).read_bytes() for image in one["images"]] == [*stored.values()]
        assert "Of several pictures the last one is of now" in one["messages"][0]["content"]
