"""`python -m benchmarks few_drives`: only the chosen drives teach the answer, and all three arms are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.few_drives import NOTHING, Config, forget_drives, run
from tests.trainer.shard_toys import recipe, recipe_values, write_dataset
from trainer.losses import LossWeights
from trainer.sft import SFT


def test_a_drive_that_is_forgotten_has_no_gradient(tmp_path: Path) -> None:
    sft = SFT(recipe(write_dataset(tmp_path), tmp_path / "run"), torch.device("cpu"), log=lambda text: None)
    batch = sft._collate([sft.reader.read(token) for token in sft.train_tokens[:4]])
    sft.model.eval()  # nothing is drawn
    drives, aligned = NOTHING, LossWeights(wm=1, geo=1, answer=0)
    forget_drives(sft, {sft.train_tokens[0]})
    before = [sft.model(batch, 2, weights)[0].item() for weights in (drives, aligned)]
    future = batch.future.clone()
    future[1:] += 5
    moved = replace(batch, future=future, prepared={"answers": sft.answers.encode(future, batch.status)})
    assert [sft.model(moved, 2, weights)[0].item() for weights in (drives, aligned)] == before
    future[0] += 5
    moved = replace(batch, future=future, prepared={"answers": sft.answers.encode(future, batch.status)})
    assert sft.model(moved, 2, drives)[0].item() != before[0]


def test_all_arms_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = recipe_values(write_dataset(tmp_path), tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    run(Config(recipe=str(tmp_path / "recipe.yaml"), settings=("answers.smoothing=0.1",), share=0.4, seeds=(0,)))
    said = capsys.readouterr().out
    assert [arm in said for arm in ("\nno alignment ", "\naligned ", "\naligned, shuffled ")] == [True] * 3
