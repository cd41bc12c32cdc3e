"""The blocks of docs/streaming.md that need no library but those of the tests, run as they stand there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.stream import Dataset, SampleTable, ShardStream, StreamConfig
from tests.blocks import block

HERE = {"vggt": "toy", "l3_tok12": "grid"}
"""What the page's column and target are called in the dataset of the tests."""


@pytest.fixture
def folder(reward_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a block runs: it finds its dataset at `out/demo`."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo").symlink_to(reward_shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text_of(name: str) -> str:
    text = block("streaming", name)
    for page, here in HERE.items():
        text = text.replace(page, here)
    return text


class StoppedError(Exception):
    """In place of a power cut."""


def test_the_whole_loop_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of("loop").replace("BATCH, EPOCHS, SAVE_EVERY = 8, 3, 50", "BATCH, EPOCHS, SAVE_EVERY = 2, 3, 2")
    whole: dict[str, Any] = {}
    exec(text, whole)
    assert whole["stream"].epoch == 2
    log_of = dict(zip(*(whole["dataset"].plan.table[name].to_pylist() for name in ("token", "log")), strict=True))
    train, held = whole["train"], whole["held"]
    assert {log_of[t] for t in train}.isdisjoint(log_of[t] for t in held)
    assert set(whole["stream"].tokens) == set(train)
    assert whole["table"].tokens == held
    Path("runs/loop.pt").unlink()
    replace = os.replace
    for saves in (1, 2, 3):  # in an epoch, at its end, in the next one
        done = 0

        def cut(source: str, target: str, saves: int = saves) -> None:
            nonlocal done
            replace(source, target)
            done += 1
            if done == saves:
                raise StoppedError

        monkeypatch.setattr(os, "replace", cut)
        with pytest.raises(StoppedError):
            exec(text, {})
    monkeypatch.setattr(os, "replace", replace)
    resumed: dict[str, Any] = {}
    exec(text, resumed)
    for name, value in whole["model"].state_dict().items():
        assert torch.equal(value, resumed["model"].state_dict()[name])


class Mean(torch.nn.Module):
    """A model that notes the samples that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)
        self.seen = 0

    def forward(self, batch: Any = None, x: Any = None) -> Any:
        rows = batch["toy"]["grid"].float().flatten(1, -2).mean(1) if x is None else x
        self.seen += len(rows)
        loss = self.layer(rows).square().mean()
        return loss if x is None else {"loss": loss}


def names(dataset: Dataset) -> dict[str, Any]:
    """What the page has defined before."""
    model = Mean()
    return {
        "dataset": dataset, "targets": {"samples": ["json"], "toy": ["grid"]}, "model": model, "DataLoader": DataLoader,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1), "ShardStream": ShardStream, "SampleTable": SampleTable,
        "StreamConfig": StreamConfig,
    }  # fmt: skip


def test_accelerate_in_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and JSON are in the batches: what Accelerate deals, it must be able to cut and join."""
    pytest.importorskip("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    given = names(Dataset("out/demo", columns=["samples", "toy"]))
    exec(text_of("accelerate"), given)
    assert given["stream"].position == len(given["stream"].tokens)


def test_hugging_faces_trainer(folder: Path) -> None:
    pytest.importorskip("transformers")
    given = names(Dataset("out/demo", columns=["toy"])) | {"targets": {"toy": ["grid"]}}
    small = "TrainingArguments(num_train_epochs=1, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy='no', "
    exec(text_of("hf-trainer").replace("TrainingArguments(", small), given)
    assert given["model"].seen == 2 * len(given["table"])


def test_hugging_faces_datasets_reads_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables want one type a list, so a traffic light is a record."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    given: dict[str, Any] = {}
    exec(text_of("datasets"), given)
    rows, dataset = given["rows"], given["dataset"]
    assert set(rows["__key__"]) == set(dataset.tokens("samples"))
    lights = 0
    for row in rows:
        stored = dataset.read(row["__key__"], {"samples": ["json"]})["samples"]["json"]
        assert row["json"]["traffic_lights"] == stored["traffic_lights"]
        lights += len(stored["traffic_lights"])
    assert lights
