"""`python -m jobs.reason`: a policy asked in five ways; every prompt accounted for; what it leaves is scored anew."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs import questions as questions_job
from jobs import reason, sft
from questions.controls import said
from questions.outputs import read_outputs
from questions.units import Prompt, read_units
from reports import questions as tables
from shards_schema.errors import ConfigError, StoreError
from tests.blocks import block
from tests.questions_toys import write_units
from tests.trainer.reward_toys import grpo_recipe
from tests.trainer.shard_toys import recipe_values, write_dataset
from tests.trainer.test_asked import question, training
from tests.trainer.vlm_toys import image_processor, tokenizer, vlm
from trainer.asked import WAYS
from trainer.batch import Batch
from trainer.config import SFTConfig
from trainer.grpo import GRPO
from trainer.leaks import check
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.students.base import Sampled

TRAINED = {"stages": [{"stage": 1, "steps": 1, "lr": 1e-3}, {"stage": 2, "steps": 1, "lr": 1e-3}]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


def trained(shards: str, out: Path, student: dict[str, object] | None = None) -> tuple[SFT, Path]:
    """A run of a step of each stage on drives and questions, and the units to ask."""
    units = write_units(out / "train.jsonl", training(shards))
    values = recipe_values(shards, out / "run", questions={"units": str(units), "share": 0.5}, **TRAINED)
    if student is not None:
        values |= {"student": student, "stream": {"batch_size": 2, "threads": 1}}
    run = SFT(SFTConfig.model_validate(values), torch.device("cpu"), log=lambda text: None)
    run.fit()
    x, y = (24, 16)
    held = run.held_tokens[:2]
    asked = [question(t, n, split="evaluation") for t in held for n in (0, 1)]
    point = {"category": "xy2d", "options": (), "answer": f"[{x}, {y}]", "unit": "xy2d-0", "question": "Where is it?"}
    asked.append(asked[0].model_copy(update=point))
    return run, write_units(out / "evaluation.jsonl", asked)


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_large_student_takes_steps_on_questions_and_is_asked(family: str, shards: str, tmp_path: Path) -> None:
    """A real model of random weights, from a folder: masks of a question, both stages, all ways of asking, GRPO."""
    folder = tmp_path / "model"
    for part in (vlm(family), tokenizer(), image_processor(family)):
        part.save_pretrained(folder)  # type: ignore[operator, union-attr]
    run, units = trained(shards, tmp_path, {"kind": "hf", "model": str(folder)})
    assert run._question_batches is not None
    asked = run._question_batches.at(0, 0)
    words = run.model.student.words
    assert words is not None
    assert words.decode(asked.prepared["answers"]) == [said(q.answer) for q in asked.asked]
    for stage in (1, 2):
        check(run.model.student, asked, asked.prepared["answers"], allow_table(stage))
    policy = f"policy={tmp_path}/run/stage_2.pt"
    for choosing in ("said", "likeliest"):
        out = tmp_path / choosing
        command = [policy, f"units={units}", f"data={shards}", f"out={out}", f"choosing={choosing}", "length=4"]
        assert reason.main([*command, "device=cpu"]) == 0
        outputs = read_outputs(out / "stage_1.jsonl", read_units(units))
        assert len(outputs) == 5
        assert all(output.text is not None for output in outputs.values())
        if choosing == "likeliest":
            options = {said(option) for p in read_units(units) for option in p.options}
            assert {o.text for (unit, _), o in outputs.items() if unit != "xy2d-0"} <= options
    refined = refined_by_questions(shards, tmp_path, units)
    again = [f"policy={refined}", f"units={units}", f"data={shards}", f"out={tmp_path}/again", "length=4", "drawn=0"]
    assert reason.main([*again, "ways=[stage_2]", "device=cpu"]) == 0


def refined_by_questions(shards: str, out: Path, units: Path) -> Path:
    """Two steps of GRPO: of its own words, which earn nothing, and of words that are put into its mouth."""
    asked = {"units": str(out / "train.jsonl"), "held": str(units), "alone": True, "length": 4}
    values = {
        "steps": 2,
        "group": 2,
        "evaluate_every": 2,
        "evaluate_limit": 1,
        "evaluate_samples": 1,
        "questions": asked,
    }
    values |= {"stream": {"batch_size": 2, "threads": 1}, "regulariser": {"wm": 0, "geo": 0}}
    run = GRPO(grpo_recipe(shards, str(out / "run/stage_2.pt"), out / "grpo", **values), torch.device("cpu"), log=str)
    student, seen = run.model.student, list[dict[str, float]]()

    def note(step: int, numbers: Mapping[str, float]) -> None:
        seen.append(dict(numbers))

    def by_heart(batch: Batch, *_: object, group: int = 1, **__: object) -> Sampled:
        texts = [said(q.answer if i else "No") for q in batch.asked for i in range(group)]
        tokens = student.speech.encode(texts)
        return Sampled(tokens, torch.zeros(tokens.shape))

    run.fit(until=1, on_numbers=note)
    student.sample = by_heart  # type: ignore[method-assign]
    run.fit(on_numbers=note)
    own, theirs = (numbers for numbers in seen if "train/asked/cut" in numbers)
    assert own["train/asked/cut"] == own["train/asked/dropped"] == own["train/asked/unparsed"] == 1
    assert "train/asked/loss" not in own
    assert (theirs["train/asked/reward/accuracy"], theirs["train/asked/reward/form"]) == (0.5, 1)
    assert theirs["train/asked/ratio"] == 1
    assert theirs["train/gradient"] > 0
    return out / "grpo" / "policy.pt"


def test_what_is_left_is_what_score_reads(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, units = trained(shards, tmp_path)
    unseen = [question(run.held_tokens[0], 7, split="evaluation", views=("cam_l0",))]
    write_units(units, [*read_units(units), *unseen, *training(shards, split="evaluation")[:1]])
    out = tmp_path / "out"
    command = [f"policy={tmp_path}/run/stage_2.pt", f"units={units}", f"data={shards}", f"out={out}", "device=cpu"]
    assert reason.main([*command, "choosing=likeliest", "batch_size=3"]) == 0
    told = capsys.readouterr().out
    assert "planned 7 = scored 6 + unanswered 1 (unseen_view 1)" in told
    assert "NOTE: 1 units are of scenes that this policy did not hold out" in told
    assert "NOTE: The frames are generated (synthetic)" in told
    head, depth = (line.split() for line in told.splitlines() if line.split()[:1] in (["score"], ["depth"]))
    assert [*WAYS] == head[5:]
    assert depth[1:3] == ["5", "0.3333"]
    page = (out / "examples.html").read_text()
    assert all(f"{way}: " in page for way in WAYS)
    for way in WAYS:
        score = ["score", f"units={units}", f"outputs={out}/{way}.jsonl", "rules=official", "coordinates=pixels"]
        assert questions_job.main([*score, f"out={tmp_path}/{way}.json"]) == 0  # its one null says why
        again = json.loads((tmp_path / f"{way}.json").read_text())["official"]["units"]
        own = json.loads((out / "scores.json").read_text())[way]["units"]
        assert [unit for unit in again if unit["unit"] != unseen[0].unit] == own
    assert reason.main([*command[:3], "device=cpu", "limit=2", "ways=[hidden]", "drawn=0", f"out={tmp_path}/few"]) == 0
    assert [p.name for p in sorted((tmp_path / "few").iterdir())] == ["hidden.jsonl", "scores.json"]


def test_nothing_to_ask_is_no_success(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(shards, tmp_path)
    units = write_units(tmp_path / "none.jsonl", [question("f" * 16)])
    command = [f"policy={tmp_path}/run/stage_2.pt", f"units={units}", f"out={tmp_path}/out", "device=cpu"]
    assert reason.main([*command, f"data={shards}"]) == 1
    assert "unanswered 1 (no_scene 1)" in capsys.readouterr().out
    for places in ([], [f"data={shards}", f"surds={tmp_path}"]):
        with pytest.raises(ConfigError, match=r"give one of data=DATASET and surds=DIR"):
            reason.main([*command, *places])
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file: File exists"):  # before anything is asked
        reason.main([*command[:2], f"data={shards}", f"out={tmp_path}/file", "device=cpu"])
    with pytest.raises(ConfigError, match=r"coordinates: .*'model_input'"):
        reason.main([*command, f"data={shards}", "coordinates=model_input"])
    names = ("whole.png", "damaged.png", "gone.png")
    asked = [question(f"image{i}", i, log=None, images=(name,), views=("CAM_FRONT",)) for i, name in enumerate(names)]
    write_units(units, [*asked, question("f" * 16)])
    Image.new("RGB", (48, 32)).save(tmp_path / "whole.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    assert reason.main([*command, f"surds={tmp_path}", "ways=[hidden]", "limit=1000"]) == 0
    told = capsys.readouterr().out
    assert "planned 4 = scored 1 + unanswered 3 (image_damaged 1, image_missing 1, no_scene 1)" in told


def test_ways_are_compared_with_their_intervals() -> None:
    prompts: list[Prompt] = [question(f"{i:08x}{i:08x}", i) for i in range(20)]
    found = tables.scoring.answered_by(lambda p: said(p.answer), prompts)
    nothing = tables.scoring.answered_by(lambda p: "", prompts)
    rows = [line.split() for line in tables.ways({"a": found, "b": nothing}, "official").splitlines()]
    assert rows[0][5:] == ["a", "b"]
    assert ["depth", "20", "0.3333", "1.000", "(1.000", "..", "1.000)", "0.000", "(0.000", "..", "0.000)"] in rows
    assert ["valid", "1.000", "0.000"] in rows


def test_what_the_page_says_to_type(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on drives and questions, then asked."""
    values = recipe_values(shards, tmp_path / "run", baselines=False, check_mask=False, **TRAINED)
    (tmp_path / "recipe.yaml").write_text(json.dumps({k: v for k, v in values.items() if k not in ("data", "out")}))
    prompts = training(shards)
    (tmp_path / "out/questions").mkdir(parents=True)
    write_units(tmp_path / "out/questions/train.jsonl", prompts)
    write_units(tmp_path / "out/questions/evaluation.jsonl", training(shards, split="evaluation")[:4])
    places = {
        "configs/sft_demo.yaml": f"{tmp_path}/recipe.yaml",
        "=out/demo": f"={shards}",
        "=runs": f"={tmp_path}/runs",
        "=out/questions": f"={tmp_path}/out/questions",
        "=out/asked": f"={tmp_path}/asked",
    }
    jobs: dict[str, Callable[[list[str]], Any]] = {"jobs.sft": sft.main, "jobs.reason": reason.main}
    for line in block("questions", "asked").splitlines():
        for typed, here in places.items():
            line = line.replace(typed, here)
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"]
        result = jobs[words[2]](words[3:])
        assert result == 0 if words[2] == "jobs.reason" else {"stage 1", "stage 2"} <= result.keys()
    told = capsys.readouterr().out
    assert f"{len(prompts)} questions of {tmp_path}/out/questions/train.jsonl" in told
    assert "train/asked_answer" in (tmp_path / "runs/asked/log.jsonl").read_text()
    assert (tmp_path / "asked/examples.html").exists()
