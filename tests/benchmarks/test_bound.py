"""`python -m benchmarks bound`: who is given what decides the drive is better, and a dataset's targets are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.bound import Config, mlp_scores, run
from tests.trainer.shard_toys import write_dataset
from trainer.data import DataConfig


def test_who_is_given_what_decides_the_drive_is_better() -> None:
    draw = torch.Generator().manual_seed(0)
    blind = [torch.randn(n, 4, generator=draw) for n in (96, 32)]
    told = [torch.randn(n, 1, generator=draw) for n in (96, 32)]
    future = [x[:, :, None] * torch.ones(1, 8, 3) for x in told]
    config = Config(steps=60)
    seen = [torch.cat(pair, 1) for pair in zip(blind, told, strict=True)]
    assert mlp_scores(config, 0, seen, future)["ade_4"] < mlp_scores(config, 0, blind, future)["ade_4"] / 2


def test_each_target_of_a_column_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path)
    run(Config(data=data, column="toy", samples=DataConfig(steps=3), steps=2, seeds=(0, 1)))
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[4:]]
    assert rows == ["nothing: blind", "grid [3, 8, 12, 16]", "mean [3]"]  # the third is ragged
