"""Each example runs, on a dataset that the real job made."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import last_shards as ls
from jobs import teachers as teachers_job
from shards_schema.lens import Lens
from tests.blocks import block
from tests.chaos import small
from tests.inline_job import run_inline
from tests.made_once import drive, made_once
from tests.trainer import trl_toys
from trainer.data import DataConfig, ExampleMaker
from trainer.latents import TargetConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
ORACLE = EXAMPLES / "oracle_teacher"
sys.path.append(str(ORACLE))  # where pip's link to it would lead


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten scenes of two logs with the columns samples, vggt and pdm."""
    data = drive(tmp_path_factory)
    config = small.settings(data, shard_size=3, teachers={"vggt": small.VGGT, "pdm": {"maps_root": f"{data}/maps"}})

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "job.yaml").write_text(yaml.safe_dump(config))
        with pytest.MonkeyPatch.context() as patch:
            run_inline(patch)
            teachers_job.main([str(folder / "job.yaml"), f"out={folder / 'out'}"])

    return str(made_once(tmp_path_factory, "examples", make) / "out")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_read_with_torch(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("read_with_torch").main(out)
    said = capsys.readouterr().out
    assert "epoch 1: 10 samples" in said
    assert '"epoch": 1, "position": 10' in said


def test_read_with_webdataset(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("read_with_webdataset").main(out)
    assert capsys.readouterr().out.endswith("10 samples\n")


def test_read_with_zarr(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("read_with_zarr").main(out)
    said = capsys.readouterr().out
    assert "10 scenes; mean" in said
    assert "10 scenes planned from 2 logs; 0 quarantined" in said


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_score_trajectories(out: str, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("score_trajectories").main(out, version)
    lines = capsys.readouterr().out.splitlines()
    human, aside = zip(*(map(float, line.split()[1:]) for line in lines[1:5]), strict=True)
    assert sum(human) > sum(aside)
    assert any(line.startswith("no_at_fault_collisions") for line in lines)


def test_grpo_reward_trl(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL's trainer, one step of a random model: it says nothing that parses, and the human's own drives are paid."""
    pytest.importorskip("trl")
    trl_toys.model(positions=1024).save_pretrained(tmp_path / "model")
    trl_toys.tokenizer().save_pretrained(tmp_path / "model")
    small: dict[str, Any] = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 8}
    machine: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no"}
    where = str(tmp_path / "model"), str(tmp_path / "runs")
    log = example("grpo_reward_trl").main(out, *where, max_steps=1, **small, **machine)
    assert (log["reward"], log["pdms/unparsed"]) == (0, 1)
    reward = ls.Reward(out)
    samples = ls.Dataset(out, columns=["samples"])
    drives = [
        samples.read(t, {"samples": ["json"]})["samples"]["json"]["future"]["trajectory"][:8] for t in reward.tokens
    ]
    paid = reward.score(reward.tokens, torch.tensor(drives, dtype=torch.float64).unsqueeze(1)).score.mean().item()
    (told,) = re.findall(r"own drives: ([\d.]+), the mean of 10 scenes", capsys.readouterr().out)
    assert float(told) == pytest.approx(paid, abs=2e-3)  # written with two decimals


def test_add_a_teacher() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "add_a_teacher.py")],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


class TestOracle(example("oracle_teacher/test_oracle_teacher").TestOracle):  # type: ignore[misc]
    """Its own suite, on a drive that is there."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _drive(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.source = small.source(drive(tmp_path_factory))


def test_the_oracle_is_found_by_its_entry_point_and_trained_on(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's command, and the latents that are aligned to what it made."""
    info = tmp_path / "site" / "oracle_teacher-0.1.0.dist-info"  # what pip writes
    info.mkdir(parents=True)
    project = tomllib.loads((ORACLE / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"[{group}]\n{k} = {v}\n" for group, of in project["entry-points"].items() for k, v in of.items()]
    (info / "entry_points.txt").write_text("".join(points))
    monkeypatch.syspath_prepend(str(info.parent))
    run_inline(monkeypatch)
    grown, job = str(tmp_path / "out"), Path(out).parent / "job.yaml"
    shutil.copytree(out, grown)
    maps = yaml.safe_load(job.read_text())["source"]["root"]
    commands = [shlex.split(line) for line in block("training", "oracle").replace("\\\n", " ").splitlines()]
    _, made, trained = (command[4:] for command in commands)  # after python -m JOB CONFIG
    teachers_job.main([str(job), f"out={grown}", *(a.replace("data/world", maps) for a in made)])
    given = dict(a.removeprefix("targets.").split("=", 1) for a in trained if a.startswith("targets."))
    targets = {kind: yaml.safe_load(text) for kind, text in given.items()}
    dataset = ls.Dataset(grown, columns=["samples", "oracle"])
    maker = ExampleMaker(dataset, DataConfig(), {k: TargetConfig(**v) for k, v in targets.items()})
    example = maker.read(dataset.tokens("samples", "oracle")[0])
    assert {k: v.shape for k, v in example.targets.items()} == {"wm": (3, 9), "geo": (12, 4)}


def test_a_point_ahead_is_seen_where_the_page_of_the_format_says(out: str) -> None:
    """Of a front camera: below the middle, and what is to the left stands to the left; and `inspect` sees the same."""
    names: dict[str, Any] = {}
    exec(block("format", "project").replace("out/demo", out), names)
    (ahead, left), size = np.stack([names["u"] / names["w"], names["v"] / names["w"]], axis=1), names["camera"]["size"]
    assert 0 < left[0] < ahead[0] < size[0]
    assert size[1] / 2 < ahead[1] < size[1]
    eye = Lens(names["camera"])
    assert np.allclose(eye.project(eye.to_camera(names["points"]))[0], [ahead, left])


def test_what_is_printed_of_an_object_is_a_line(out: str) -> None:
    dataset = ls.Dataset(out)
    stream = ls.ShardStream(dataset, {"samples": ["json"], "vggt": ["l3_tok12"]})
    reward = ls.Reward(dataset)
    result = reward.score(reward.tokens[:1], torch.zeros(1, 2, 8, 3))
    job = yaml.safe_load((Path(out).parent / "job.yaml").read_text())
    found = ls.plan(job, out=out)
    for one in (
        dataset,
        dataset.plan,
        stream,
        stream.table,
        ls.Mixture([(stream, 1)]),
        reward,
        result,
        found,
        found.scan,
    ):
        said = repr(one)
        assert said.startswith(f"{type(one).__name__}(")
        assert len(said) < 300
        assert "\n" not in said
    assert repr(stream.table) == f"SampleTable({out!r}: 10 samples of samples, vggt)"
    assert "begun with 10 scenes" in repr(dataset)
    assert "0 GB to write" in repr(found)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_the_readmes_lines_read_a_batch(out: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL)
    assert '"out/demo"' in code
    found: dict[str, Any] = {}
    exec(compile(code.replace("out/demo", out), "README.md", "exec"), found)
    assert len(found["future"]) == len(found["images"]) == 2  # the last of ten, eight at a time
    assert found["stream"].state_dict()["position"] == 10
