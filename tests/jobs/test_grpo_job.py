"""The jobs of GRPO, as a user starts them: the closing table, the seeds, and a recipe that is checked."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from jobs import config as job_config
from jobs import grpo, grpo_experiments
from reports import grpo as reported
from reports.intervals import Interval, clustered, over, t_95
from shards_schema.errors import ConfigError, MismatchError, MissingFileError
from tests.blocks import block
from tests.questions_toys import write_units
from tests.trainer.reward_toys import grpo_values, sft_policy, sft_recipe, write_reward_dataset
from tests.trainer.test_asked import question
from trainer import checkpoint
from trainer.build import load_policy
from trainer.grpo_config import GRPOConfig
from trainer.scored import Driven
from trainer.sft import SFT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A dataset, and a policy."""
    root = tmp_path_factory.mktemp("grpo")
    data = write_reward_dataset(root, every=6)
    return data, sft_policy(data, root / "sft")


def written(made: tuple[str, str], folder: Path, **changes: object) -> str:
    """A recipe as a file."""
    path = folder / "recipe.yaml"
    values = grpo_values(*made, folder / "run", **{"steps": 3, "evaluate_every": 3, **changes})
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "out"}))
    return str(path)


def test_the_whole_job(made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = [written(made, tmp_path), f"out={out}"]
    outcome = grpo.main(arguments)
    text = capsys.readouterr().out
    assert outcome is not None
    assert list(outcome.rows) == ["human", "constant velocity", "before", "after"]
    for name in ("PDMS", "sampled", "NC", "DAC", "EP", "TTC", "sanity: human", "WARNING", "policy.pt"):
        assert name in text
    assert outcome.rows["human"].means()["ade_4"] == 0
    assert (out / "log.jsonl").read_text().count("train/reward/score") == 3
    result = json.loads((out / "result.json").read_text())
    assert result["rows"]["after"]["scores"]["score"] == outcome.rows["after"].scores["score"].tolist()
    assert len(result["tokens"]) == len(result["logs"]) == len(outcome.logs)
    change = outcome.change("score")
    expected = outcome.rows["after"].means()["score"] - outcome.rows["before"].means()["score"]
    assert change.middle == pytest.approx(expected, abs=1e-12)
    load_policy(out / "policy.pt")
    recipe = job_config.load(GRPOConfig, arguments)
    read = reported.finished(recipe)
    assert read is not None
    assert {k: v.means() for k, v in read.rows.items()} == {k: v.means() for k, v in outcome.rows.items()}
    assert read.change("sampled") == outcome.change("sampled")
    with pytest.raises(MismatchError, match="group: 4 -> 5"):
        reported.finished(recipe.model_copy(update={"group": 5}))
    assert reported.finished(recipe.model_copy(update={"out": str(tmp_path)})) is None
    other = tmp_path / "other.pt"
    checkpoint.save(other, checkpoint.load(Path(recipe.policy)) | {"notices": ["another one"]})
    with pytest.raises(MismatchError, match="another policy"):
        reported.finished(recipe.model_copy(update={"policy": str(other)}))
    assert reported.finished(recipe.model_copy(update={"policy": str(tmp_path / "gone.pt")})) is not None
    again = grpo.main(arguments)  # nothing left to do: the same table
    assert again is not None
    assert {k: v.means() for k, v in again.rows.items()} == {k: v.means() for k, v in outcome.rows.items()}


def test_questions_beside_drives_and_alone(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the page says it; a table by kind, a page of some, and what a dataset without the reward column allows."""
    run = SFT(sft_recipe(made[0], "/nowhere"), torch.device("cpu"), log=str)
    splits = {"train": run.train_tokens, "evaluation": run.held_tokens}
    (tmp_path / "out/questions").mkdir(parents=True)
    for split, tokens in splits.items():
        asked = [question(token, n, split=split) for n, token in enumerate(tokens)]
        write_units(tmp_path / f"out/questions/{split}.jsonl", asked)
    units = {"units": str(tmp_path / "out/questions/train.jsonl")}
    policy = sft_policy(made[0], tmp_path / "runs/asked", questions=units, stages=[{"stage": 2, "steps": 2}])
    changes = {"steps": 1, "group": 2, "evaluate_every": 1, "evaluate_samples": 1}
    recipe = written((made[0], policy), tmp_path, **changes)
    places = {
        "configs/grpo_demo.yaml": recipe,
        "runs/asked/stage_2.pt": policy,
        "=out/demo": f"={made[0]}",
        "=out/questions": f"={tmp_path}/out/questions",
        "=runs": f"={tmp_path}/runs",
    }
    outcomes = []
    for line in block("grpo", "questions").splitlines():
        for typed, here in places.items():
            line = line.replace(typed, here)
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "jobs.grpo"]
        outcomes.append(grpo.main(words[3:]))
    both, alone = outcomes
    assert both is not None
    assert alone is not None
    assert both.rows
    assert not alone.rows
    assert [*both.asked] == [*alone.asked] == ["before", "after"]
    told = capsys.readouterr().out
    assert "PDMS" in told
    rows = [line.split() for line in told.splitlines() if line.split()[:1] in (["depth"], ["overall"])]
    assert [row[:3] for row in rows] == [
        [name, str(len(run.held_tokens)), "0.333"] for name in ("depth", "overall")
    ] * 2
    result = json.loads((tmp_path / "runs/grpo_alone/result.json").read_text())
    assert result["tokens"] == []
    assert len(result["questions"]["after"]["units"]) == len(run.held_tokens)
    assert "after: " in (tmp_path / "runs/grpo_alone/questions.html").read_text()
    assert "train/asked/reward/accuracy" in (tmp_path / "runs/grpo_alone/log.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"jobs\.grpo_experiments compares drives"):
        grpo_experiments.main(
            [recipe, f"out={tmp_path}/e", f"questions.units={units['units']}", "questions.alone=true"]
        )


def test_experiments_hold_the_control_against_the_recipe(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [written(made, tmp_path), f"out={tmp_path / 'runs'}"]
    results = grpo_experiments.main([*arguments, "seeds=[0,1]"])
    text = capsys.readouterr().out
    assert set(results) == {"the recipe", "advantages shuffled"}
    assert all(set(rows) == {0, 1} for rows in results.values())
    first = {name: rows[0].rows["before"].means() for name, rows in results.items()}
    assert first["the recipe"] == first["advantages shuffled"]  # both began with the same policy
    recorded = json.loads((tmp_path / "runs" / "advantages_shuffled_1" / "result.json").read_text())
    assert recorded["rows"]["before"]["means"] == first["the recipe"]
    assert "mean change over 2 seeds" in text
    assert text.count("held-out score") >= 2
    assert grpo_experiments.main([*arguments, "seeds=[0,1]", "minutes=0.0000001"]).keys() == results.keys()
    assert "NOT RUN" not in capsys.readouterr().out  # what is there is not done again
    late = grpo_experiments.main([arguments[0], f"out={tmp_path / 'late'}", "seeds=[0,1]", "minutes=0.0000001"])
    assert not late["the recipe"]


def test_a_recipe_that_cannot_be_names_the_key(made: tuple[str, str], tmp_path: Path) -> None:
    recipe = written(made, tmp_path)
    with pytest.raises(ConfigError, match="loss"):
        grpo.main([recipe, f"out={tmp_path}", "loss=ppo"])
    with pytest.raises(ConfigError, match="seeds"):
        grpo_experiments.main([recipe, f"out={tmp_path}", "seeds=[1]"])
    with pytest.raises(MissingFileError, match="nothing"):
        grpo.main([recipe, f"out={tmp_path}", "policy=nothing.pt"])


def test_the_demo_recipe_is_valid() -> None:
    recipe = job_config.load(GRPOConfig, [str(ROOT / "configs" / "grpo_demo.yaml")])
    assert (recipe.loss, recipe.scale, recipe.reward.version) == ("dr_grpo", False, "v1")
    assert recipe.regulariser.on
    assert not recipe.controls.shuffle_advantages


def test_intervals() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 5, 9, 10, 14, 30, 200):
        assert t_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)
    values = [0.1, 0.3, 0.2, 0.6]
    low, high = stats.t.interval(0.95, 3, loc=0.3, scale=stats.sem(values))
    found = over(values)
    assert (found.middle - found.half, found.middle + found.half) == pytest.approx((low, high), abs=1e-3)
    alone = clustered(values, range(4))
    assert alone.half == pytest.approx(found.half)  # every scene a log of its own
    twice = clustered(values * 2, [*range(4)] * 2)
    assert twice == pytest.approx(found, abs=1e-12)  # to see a scene twice is to know no more
    assert clustered(values, [0] * 4).half == over([1.0]).half == float("inf")
    assert over([]) is None
    assert clustered([], []) is None
    assert str(Interval(0.2, float("inf"))) == "+0.2000 (no interval: one value alone)"  # of one log, or of one seed
    assert str(Interval(0.2, 0.1)) == "+0.2000 (95 %: +0.1000 .. +0.3000)"
    assert Interval(0.2, 0.1).excludes_zero
    assert not Interval(-0.05, 0.1).excludes_zero


def test_a_change_is_of_scenes_that_have_the_number_before_and_after() -> None:
    def driven(score: list[float], parsed: list[bool]) -> Driven:
        values = torch.tensor(score, dtype=torch.float64)
        none = torch.full_like(values, torch.nan)
        return Driven(("a", "b", "c"), {"score": values, "comfort": values}, none, torch.tensor(parsed), {})

    before, after = driven([0.5, 0.0, 0.5], [True, False, True]), driven([1.0, 0.5, 0.0], [True, True, False])
    outcome = reported.Outcome(
        {name: after if name == "after" else before for name in ("human", "constant velocity", "before", "after")},
        ["x", "y", "z"],
        [],
    )
    score, comfort = outcome.change("score"), outcome.change("comfort")
    assert score is not None
    assert comfort is not None
    assert score.middle == pytest.approx((0.5 + 0.5 - 0.5) / 3)  # an answer that does not parse has score 0
    assert (comfort.middle, comfort.half) == (0.5, float("inf"))  # and no sub-score: scene a alone has both
    assert outcome.change("sampled") is None
    assert not outcome.changed("sampled")
    assert outcome.rows["after"].means()["comfort"] == 0.75
    silent = reported.rows_table(reported.Outcome({**outcome.rows, "after": driven([0.0] * 3, [False] * 3)}, [], []))
    assert silent.splitlines()[-1].split() == ["after", "0.00", "-"]


def test_verdicts_say_no_more_than_the_interval_allows() -> None:
    assert grpo_experiments.verdict(Interval(0.02, 0.01)) == "the held-out score rises"
    assert grpo_experiments.verdict(Interval(-0.02, 0.01)) == "the held-out score FALLS"
    assert "no change" in grpo_experiments.verdict(Interval(0.02, 0.03))
