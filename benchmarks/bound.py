"""What targets could gain a driver at most: blind MLPs, and the same that are given a column's targets as inputs.

A student has to read from images what the targets tell. Who is given them has nothing to read: where that gains nothing
on held-out logs, aligning to them cannot be expected to. Loss, optimiser and split are as of the trainer's baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.reading.reader import Dataset
from reports.controls import spread
from reports.tables import table
from shards_schema.inputs.models import StrictModel
from shards_schema.records import COMMANDS
from trainer import seeds
from trainer.baselines import scores
from trainer.data import DataConfig, ExampleMaker
from trainer.latents import Statistics
from trainer.splits import split
from trainer.students.tiny import STATUS_SCALE

HIDDEN = 512


class Config(StrictModel):
    """Knobs: the dataset, the column (its fixed targets are given), what is read of a sample, how long is trained."""

    data: str = "out/world"
    column: str = "oracle"
    samples: DataConfig = DataConfig()
    steps: int = Field(default=1800, ge=1)
    batch: int = Field(default=16, ge=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)


def run(config: Config) -> None:
    dataset = Dataset(config.data, columns=["samples", config.column])
    specs = {name: s for name, s in dataset.specs(config.column).items() if not s.ragged}
    parts = split(dataset, dataset.tokens("samples", config.column), config.samples)
    maker = ExampleMaker(dataset, config.samples, {})
    scenes = [maker.blind(tokens) for tokens in parts]
    inputs = {"": [_seen(batch.status, batch.command) for batch in scenes]}
    for name, spec in specs.items():
        told = [[_target(dataset, config.column, name, token) for token in tokens] for tokens in parts]
        known = Statistics.over({name: x[None]} for x in told[0])[name]
        arrays = (torch.from_numpy(np.stack(rows)) for rows in told)
        given = [known.standardise(array).clamp(-5, 5) for array in arrays]  # what is rare must not shout
        inputs[f"{name} {list(spec.shape)}"] = given
        if spec.dims[0] == "time":
            first = given[0].shape[1] // spec.fixed_shape[0]
            inputs[f"{name} {list(spec.shape)}, the first time"] = [x[:, :first] for x in given]
    rows, shown = [], ("ade_1", "ade_4", "fde_4")
    for name, given in inputs.items():
        seen = [torch.cat((blind, x), 1) if name else blind for blind, x in zip(inputs[""], given, strict=True)]
        found = [mlp_scores(config, seed, seen, [batch.future for batch in scenes]) for seed in config.seeds]
        rows.append([name or "nothing: blind", *(spread([f[k] for f in found if k in f]) for k in shown)])
    print(f"{len(parts[0])} training scenes, {len(parts[1])} held out; {config.steps} steps of {config.batch}\n")
    print(table(["given, besides status and command", "ADE 1 s", "ADE 4 s", "FDE 4 s"], rows))


def _seen(status: Tensor, command: Tensor) -> Tensor:
    scaled = (status / torch.tensor(STATUS_SCALE)).flatten(1)
    return torch.cat((scaled, nn.functional.one_hot(command, len(COMMANDS))), 1)


def _target(dataset: Dataset, column: str, name: str, token: str) -> Any:
    return np.asarray(dataset.read(token, {column: [name]})[column][name], dtype=np.float32).ravel()


def mlp_scores(config: Config, seed: int, seen: Sequence[Tensor], future: Sequence[Tensor]) -> dict[str, float]:
    """ADE and FDE of an MLP on held-out scenes.

    Args:
        config: steps and batch.
        seed: of weights and draws.
        seen: what it is given, [n, c] of the training scenes and of those held out.
        future: float32 [n, S, 3] of the same.
    """
    draw = seeds.generator("cpu", seed, "baseline scenes")
    torch.manual_seed(seeds.mixed(seed, "baseline weights"))
    sizes = [seen[0].shape[1], HIDDEN, HIDDEN, HIDDEN]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(HIDDEN, future[0][0].numel()), nn.Unflatten(1, future[0].shape[1:]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for _ in range(config.steps):
        rows = torch.randint(len(seen[0]), (config.batch,), generator=draw)
        loss = nn.functional.l1_loss(model(seen[0][rows]), future[0][rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return scores(model.eval()(seen[1]), future[1])
