"""The jobs of the trainer, as a user starts them: a killed run ends as an undisturbed one, and says what it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from jobs import experiments, sft
from reports import controls
from shards_schema.errors import ConfigError
from tests.trainer.shard_toys import recipe_values, write_dataset
from trainer import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


def written(data: str, folder: Path, **changes: object) -> str:
    """A recipe as a file."""
    path = folder / "recipe.yaml"
    values = recipe_values(data, folder / "run", **changes)
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k not in ("out",)}))
    return str(path)


def test_the_whole_job(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    rows = sft.main([written(data, tmp_path), f"out={out}"])
    text = capsys.readouterr().out
    assert {"quantisation alone", "constant velocity", "stage 1", "stage 2"} <= rows.keys()
    assert sum("ego-status MLP" in name for name in rows) == 3
    assert rows["quantisation alone"]["ade_1"] <= rows["stage 2"]["ade_1"]
    assert text.index("quantisation, held out") < text.index("constant velocity")  # told before training
    assert "WARNING: The frames are generated (synthetic)" in text
    assert "RANDOM WEIGHTS" in text
    assert "gradients are exactly zero where it forbids" in text
    assert (out / "log.jsonl").read_text().count("train/loss") == 6
    again = sft.main([written(data, tmp_path), f"out={out}"])  # nothing left to do: the same table
    assert again == rows


def test_killed_and_started_again_it_ends_with_the_same_bits(data: str, tmp_path: Path) -> None:
    """SIGKILL, at a moment that nobody chose."""
    stages = [{"stage": 1, "steps": 40, "lr": 1e-3}, {"stage": 2, "steps": 40, "lr": 1e-3}]
    config = written(data, tmp_path, stages=stages, evaluate_every=1000, save_every=1, baselines=False)
    sft.main([config, f"out={tmp_path / 'whole'}"])
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "jobs.sft", config, f"out={out}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while checkpoint.latest(out / "checkpoints") is None and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = checkpoint.latest(out / "checkpoints")
    assert left is not None
    assert checkpoint.load(left)["step"] < 80
    sft.main([config, f"out={out}"])
    whole, killed = (checkpoint.load(p / "stage_2.pt") for p in (tmp_path / "whole", out))
    for part in ("student", "adapters"):
        assert whole[part].keys() == killed[part].keys()
        assert all(torch.equal(value, killed[part][name]) for name, value in whole[part].items())


def test_a_recipe_that_cannot_be_names_the_key(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages.0.stage"):
        sft.main([written(data, tmp_path), f"out={tmp_path}", "stages=[{stage: 3, steps: 1}]"])
    with pytest.raises(ConfigError, match="targets"):
        sft.main([written(data, tmp_path), f"out={tmp_path}", "targets={}"])


def test_the_demo_recipe_is_valid() -> None:
    from jobs import config
    from trainer.config import SFTConfig

    recipe = config.load(SFTConfig, [str(ROOT / "configs" / "sft_demo.yaml")])
    assert recipe.counts == {"wm": 36, "geo": 12}
    first, second = recipe.stages
    weights = [(s.loss_weights.wm, s.loss_weights.geo, s.loss_weights.answer) for s in (first, second)]
    assert weights == [(1, 1, 0.1), (0.1, 0.1, 1)]


def test_experiments_print_every_control(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{"stage": 1, "steps": 2, "lr": 1e-3}, {"stage": 2, "steps": 2, "lr": 1e-3}]
    arguments = [written(data, tmp_path, stages=stages), f"out={tmp_path / 'runs'}", "seeds=[0,1]"]
    results = experiments.main(arguments)
    text = capsys.readouterr().out
    for name in ("the recipe", "teachers shuffled", "latents zeroed", "no staged training", "no mask", "images hidden"):
        assert set(results[name]) == {0, 1}
        assert name in text
    blind = [name for name in results if "ego-status MLP" in name or name == "constant velocity"]
    assert len(blind) == 4
    assert all(set(results[name]) == {0, 1} and f"- {name}: ADE" in text for name in blind)
    assert results["latents zeroed"][0]["answer"] != results["the recipe"][0]["answer"]
    assert results["teachers shuffled"][0]["cosine_geo"] != results["the recipe"][0]["cosine_geo"]
    assert "WARNING" in text
    assert experiments.main(arguments) == results  # what was trained is kept
    late = experiments.main([*arguments[:1], f"out={tmp_path / 'late'}", "seeds=[0,1]", "minutes=0.0000001"])
    assert not late["the recipe"]
    assert capsys.readouterr().out.count("NOT RUN") == 10


def test_verdicts_say_no_more_than_the_spread_allows() -> None:
    recipe = {0: {"ade_4": 1.0}, 1: {"ade_4": 1.1}, 2: {"ade_4": 0.9}}

    def control(*values: float) -> str:
        return controls.verdict("x", recipe, {i: {"ade_4": v} for i, v in enumerate(values)}, "ade_4")

    assert control(2.0, 2.1, 1.9).endswith("worse than the recipe")
    assert control(0.5, 0.6, 0.4).endswith("BETTER than the recipe")
    assert control(1.5, 0.8, 1.2).endswith("no difference can be told")
    assert "nothing can be said" in controls.verdict("x", recipe, {0: {"ade_4": 2.0}}, "ade_4")
    unparsed: dict[int, dict[str, float]] = {0: {"unparsed": 1.0}, 1: {"ade_4": 2.0}, 2: {"unparsed": 1.0}}
    assert "1 pairs, nothing can be said" in controls.verdict("x", recipe, unparsed, "ade_4")


def test_a_table_of_a_policy_that_says_nothing_shows_nothing(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text that one step has taught nothing: no answer parses."""
    rows = sft.main(
        [
            written(
                data, tmp_path, answers={"kind": "text", "digits": 0}, stages=[{"stage": 2, "steps": 1, "lr": 1e-5}]
            ),
            f"out={tmp_path / 'run'}",
        ]
    )
    text = capsys.readouterr().out
    assert rows["stage 2"]["unparsed"] == 1
    (line,) = [line for line in text.splitlines() if line.startswith("stage 2 ")]
    assert line.split()[2:4] == ["-", "-"]
    assert line.split()[-1] == "100.0%"
    assert "held/ade" not in (tmp_path / "run" / "log.jsonl").read_text()
