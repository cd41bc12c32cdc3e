"""The stream in Accelerate and in Hugging Face's Trainer; docs/streaming.md's own blocks are in test_stream_blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.reading.reader import Dataset
from pipeline.stream import SampleTable, ShardStream, StreamConfig
from tests.pipeline.stream.stream_toys import SMALL, make

CONFIG = StreamConfig(batch_size=4, seed=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(make(tmp_path_factory.mktemp("trainers")))


def flat(sample: dict[str, Any]) -> dict[str, Any]:
    return {"x": sample["toy"]["mean"], "token": int(sample["token"], 16)}


class Probe(torch.nn.Module):
    """A model that notes which samples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append(token.tolist())
        return {"loss": self.layer(x).square().mean()}


def batches(dataset: Dataset, epoch: int) -> list[list[int]]:
    stream = ShardStream(dataset, SMALL, CONFIG)
    stream.set_epoch(epoch)
    return [[int(t, 16) for t in batch["token"]] for batch in stream.batches()]


@pytest.mark.parametrize("workers", [0, 1])
def test_accelerate(dataset: Dataset, workers: int) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    stream = ShardStream(dataset, SMALL, CONFIG, transform=flat, rank=0, world_size=1)
    loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=stream.collate)
    model = Probe()
    prepared, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1), loader)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            accelerator.backward(prepared(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
            stream.advance(4 * accelerator.num_processes)
            if epoch == 1 and stream.position == 8:
                break
    assert model.seen == batches(dataset, 0) + batches(dataset, 1)[:2]
    # accelerate reads one batch ahead; what the trainer counted is what it used
    state = stream.state_dict()
    assert (state["epoch"], state["position"]) == (1, 8)
    stream.load_state_dict(state)
    loader.set_epoch(1)
    assert [batch["token"].tolist() for batch in loader] == batches(dataset, 1)[2:]


def _trainer(folder: Path, model: Probe, data: Any, collate: Any, **arguments: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no",
            remove_unused_columns=False, disable_tqdm=True, **arguments,
        ),
        train_dataset=data,
        data_collator=collate,
    )  # fmt: skip


def test_hugging_faces_trainer(dataset: Dataset, tmp_path: Path) -> None:
    stream = ShardStream(dataset, SMALL, CONFIG, transform=flat, rank=0, world_size=1)
    model = Probe()
    _trainer(tmp_path, model, stream, stream.collate, num_train_epochs=2).train()
    assert model.seen == batches(dataset, 0) + batches(dataset, 1)


def test_hugging_faces_trainer_with_a_table(dataset: Dataset, tmp_path: Path) -> None:
    table = SampleTable(dataset, SMALL, transform=flat)
    model = Probe()
    _trainer(tmp_path, model, table, table.collate, num_train_epochs=1).train()
    assert sorted(t for batch in model.seen for t in batch) == sorted(int(t, 16) for t in table.tokens)
