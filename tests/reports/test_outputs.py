"""No job writes into a dataset: one check, at the config, before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs import score
from jobs.config import load
from jobs.data import DataConfig
from jobs.export import ExportConfig
from jobs.fidelity import FidelityConfig
from jobs.inspect import InspectConfig
from jobs.signal import SignalConfig
from pipeline.stores.places import outside
from pipeline.writing.run import begin
from reports.evaluation.config import EvaluateConfig
from shards_schema.errors import ConfigError
from shards_schema.plan import PlanConfig
from tests.toys import ToySource
from trainer.config import SFTConfig
from trainer.grpo_config import GRPOConfig

OUTPUTS: list[tuple[type[BaseModel], str]] = [
    (ExportConfig, "to"),
    (ExportConfig, "images"),
    (InspectConfig, "page"),
    (SignalConfig, "page"),
    (EvaluateConfig, "out"),
    (FidelityConfig, "out"),
    (SFTConfig, "out"),
    (GRPOConfig, "out"),
    (DataConfig, "out"),
]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    begin(ToySource("nowhere"), str(tmp_path / "out"), [], plan_config=PlanConfig())
    return tmp_path / "out"


@pytest.mark.parametrize(("model", "key"), OUTPUTS)
def test_an_output_inside_a_dataset_is_refused(dataset: Path, tmp_path: Path, model: type[BaseModel], key: str) -> None:
    (tmp_path / "link").symlink_to(dataset)
    for inside in (dataset, dataset / "toy" / "x.jsonl", tmp_path / "link" / "x"):
        with pytest.raises(ConfigError, match=f"{key}: .*lies in the dataset {dataset}"):
            load(model, [f"{key}={inside}"])
    assert outside(tmp_path / "beside") == tmp_path / "beside"


def test_score_refuses_it_too(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        score.parse(["--trajectories", "x.json", "--out", str(dataset / "scores.json")])
    assert left.value.code == 2
    assert "lies in the dataset" in capsys.readouterr().err


def test_a_dataset_inside_a_dataset_is_refused(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="lies in the dataset"):
        begin(ToySource("nowhere"), str(dataset / "deeper" / "out"), [], plan_config=PlanConfig())
    assert not (dataset / "deeper").exists()
