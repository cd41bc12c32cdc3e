"""Ways to think before driving, side by side, as the page says to type it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from jobs import evaluate, experiments, grpo
from reports import paradigms
from reports.paradigms import Measured
from shards_schema.errors import ConfigError
from tests.blocks import block
from tests.questions_toys import write_units
from tests.trainer.reward_toys import grpo_values, sft_recipe
from tests.trainer.test_asked import training
from trainer.asked import WAYS
from trainer.scored import Driven
from trainer.thoughts import LENGTH

STAGES = [{"stage": 1, "steps": 1, "lr": 1e-3}, {"stage": 2, "steps": 1, "lr": 1e-3}]


def test_what_the_page_says_to_type(reward_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(sft_recipe(reward_shards, "x", stages=STAGES).model_dump_json())
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({k: v for k, v in values.items() if k not in ("data", "out", "questions")})
    )
    (tmp_path / "out/questions").mkdir(parents=True)
    asked = training(reward_shards)[:4]
    write_units(tmp_path / "out/questions/train.jsonl", asked)
    held = [prompt.model_copy(update={"split": "evaluation"}) for prompt in asked[:2]]
    write_units(tmp_path / "out/questions/evaluation.jsonl", held)
    line = block("training", "paradigms")
    places = {"configs/sft_demo.yaml": f"{tmp_path}/recipe.yaml", "=out/world": f"={reward_shards}"}
    for typed, here in {**places, "=runs": f"={tmp_path}/runs", "=out/questions": f"={tmp_path}/out/questions"}.items():
        line = line.replace(typed, here)
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "jobs.experiments"]
    found = experiments.main([*words[3:], "seeds=[0,1]"])
    told = capsys.readouterr().out
    arms = ["answers directly", "thinks in text", "latents alone", "latents and teachers", "without questions"]
    assert [*found] == arms
    for arm, rows in found.items():
        assert {*rows} == {0, 1}
        assert all({"ade_4", "fde_4", "score", "tokens", "passes", "ms"} <= row.keys() for row in rows.values())
        ways = {name for name in rows[0] if name.startswith("asked/")}
        latents = arm.startswith("latents")
        wanted = [] if arm == "without questions" else WAYS if latents else ["stage_2", "hidden"]
        assert ways == {f"asked/{way}" for way in wanted}
    direct, text, teachers = (found[arm][0] for arm in (arms[0], arms[1], arms[3]))
    assert direct["passes"] == 8  # one over the prompt, and one a motion after the first
    assert 8 < text["passes"] <= 8 + LENGTH
    assert text["tokens"] - direct["tokens"] == pytest.approx(text["passes"] - direct["passes"])
    assert teachers["tokens"] - direct["tokens"] == sum(sft_recipe(reward_shards, "x").counts.values())
    assert 0 <= text["facts"] <= 1
    assert "facts" not in direct
    assert all(f"{arm}, asked; all seeds" in told for arm in arms[:4])
    assert "latents and teachers less answers directly, ADE 4 s: " in told
    assert "stage_1 less stage_1_zeroed: " in told
    assert "WARNING: " in told
    kept = json.loads((tmp_path / "runs/paradigms/paradigms.json").read_text())
    assert kept[arms[1]]["1"]["numbers"]["ade_4"] == found[arms[1]][1]["ade_4"]
    refine = grpo_values(reward_shards, "", "", steps=1, group=2, evaluate_limit=1, evaluate_samples=1)
    (tmp_path / "grpo.yaml").write_text(json.dumps({k: v for k, v in refine.items() if k not in ("policy", "out")}))
    for line in block("grpo", "thoughts").splitlines():
        for typed, here in {
            **places,
            "configs/grpo_demo.yaml": f"{tmp_path}/grpo.yaml",
            "=runs": f"={tmp_path}/runs",
        }.items():
            line = line.replace(typed, here)
        job = {"jobs.grpo": grpo.main, "jobs.evaluate": evaluate.main}[shlex.split(line)[2]]
        assert job(shlex.split(line)[3:]) is not None
    told = capsys.readouterr().out
    assert told.count("no alignment: ") == 2
    scores = pd.read_parquet(tmp_path / "runs/scores_text/scores.parquet")
    assert scores[scores["policy"] == "policy"]["score"].notna().all()
    with pytest.raises(ConfigError, match="no policy of this recipe trains on questions"):
        experiments.main([*(w for w in words[3:] if not w.startswith("questions.")), "seeds=[0,1]"])


def driven(*errors: float) -> Driven:
    n = len(errors)
    return Driven(
        tokens=tuple(f"t{i}" for i in range(n)),
        scores={"score": torch.ones(n, dtype=torch.float64)},
        sampled=torch.full((n,), torch.nan),
        parsed=torch.tensor([e >= 0 for e in errors]),
        errors={"ade_4": torch.tensor(errors, dtype=torch.float64), "fde_4": torch.zeros(n, dtype=torch.float64)},
    )


def test_differences_are_paired_and_say_over_what() -> None:
    logs = {"t0": "a", "t1": "a", "t2": "b", "t3": "b"}
    cost = {"tokens": 1.0, "passes": 1.0, "ms": 1.0}
    arms = {
        paradigms.DIRECT: [driven(1, 2, 3, 4), driven(2, 2, 2, 2)],
        paradigms.TEACHERS: [driven(1.5, 2.5, 3.5, 4.5), driven(2.7, 2.7, 2.7, -1)],
    }
    found = {arm: {seed: Measured(d, {}, cost, None) for seed, d in enumerate(rows)} for arm, rows in arms.items()}
    lines = [line for line in paradigms.text(found, logs).splitlines() if line.startswith("latents and teachers less")]
    assert lines[0] == (
        "latents and teachers less answers directly, ADE 4 s: +0.600 (-0.671 .. +1.871) over 2 seeds, "
        "+0.575 (+0.257 .. +0.893) over logs"
    )
    alone = {arm: {0: replace(rows[0])} for arm, rows in found.items()}
    assert "(one value alone) over 1 seeds" in paradigms.text(alone, logs)
