"""Who drives: checkpoints and named baselines, each a name and a function from scenes to trajectories.

- ``constant_velocity``, ``stop``, ``ego_status_mlp``: blind, see `trainer.baselines`; the MLP is trained here, on the
  training split, as `jobs.sft` trains it.
- ``human``: what was driven. An upper reference, not a policy: it sees the future.
- ``best_of_n``: the checkpoint asked N times, and the answer that *the score itself* likes best. An upper bound of what
  choosing among its answers could give; no one can choose like that on the road.

Legend: S scenes, C candidates, T = 8 poses of 0.5 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.reading.reader import Dataset
from reports.evaluation.config import EvaluateConfig
from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError
from trainer import baselines
from trainer.baselines import EgoStatusMLP, Scenes, train_mlp
from trainer.batch import collate
from trainer.build import Policy
from trainer.data import DataConfig, ExampleMaker
from trainer.drive import drive
from trainer.reward import POSES


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """`poses` float32 [S, C, T, 3]; `parsed` bool [S, C], false where an answer could not be read (its poses are 0)."""

    poses: Tensor
    parsed: Tensor


def checked(name: str, tokens: Sequence[str], answers: Answers) -> Answers:
    """The same.

    Raises:
        SampleError: code ``bad_trajectory``: poses that are not finite; driver and token are named.
    """
    bad = (~answers.poses.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise SampleError(
            "bad_trajectory",
            f"{name}: token {tokens[bad[0]]}: poses that are not finite ({len(bad)} of {len(tokens)} scenes): "
            f"{answers.poses[bad[0]].tolist()}",
        )
    return answers


class Driver(Protocol):
    """A name, and trajectories for scenes."""

    @property
    def name(self) -> str:
        """In tables and files."""
        ...

    def answer(self, documents: Sequence[Mapping[str, Any]], scenes: Scenes) -> Answers:
        """Candidates for S scenes: their ``json`` members, and status, command and future of them as tensors."""
        ...


@dataclass(frozen=True)
class Blind:
    """A baseline that needs no image."""

    name: str
    mlp: EgoStatusMLP | None = None

    @torch.no_grad()
    def answer(self, documents: Sequence[Mapping[str, Any]], scenes: Scenes) -> Answers:
        """One candidate a scene."""
        if self.mlp is not None:
            poses = self.mlp(scenes.status, scenes.command)
        elif self.name == "human":
            poses = scenes.future
        else:
            poses = {"constant_velocity": baselines.constant_velocity, "stop": baselines.stop}[self.name](
                scenes.status, POSES
            )
        known = poses.isfinite().flatten(1).all(1)  # nobody drove in some synthetic scenes, so `human` has no answer
        return Answers(poses.masked_fill(~known[:, None, None], 0.0).unsqueeze(1), known.unsqueeze(1))


class Checkpoint:
    """A trained policy.

    Args:
        name: in tables and files.
        policy: on its device.
        maker: makes its examples, with the policy's own views and image size.
        batch: answers at once.
        samples: 1: the likeliest answer; N > 1: N drawn ones a scene.
        temperature, seed: of drawing. Scene by scene and in order, so that N draws are the same whatever the batch is.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        maker: ExampleMaker,
        *,
        batch: int = 16,
        samples: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.name, self._policy, self._maker = name, policy, maker
        self._batch, self._samples, self._temperature = batch, samples, temperature
        self._generator = torch.Generator(next(policy.student.parameters()).device).manual_seed(seed)

    def answer(self, documents: Sequence[Mapping[str, Any]], scenes: Scenes) -> Answers:
        """`samples` candidates a scene."""
        tokens = [d["token"] for d in documents]
        if self._samples > 1:
            parts = [self._draw(token) for token in tokens]
        else:
            batches = [tokens[i : i + self._batch] for i in range(0, len(tokens), self._batch)]
            parts = [drive(self._policy, collate([self._maker.read(t) for t in some])) for some in batches]
        poses, parsed = (torch.cat(p) for p in zip(*parts, strict=True))
        return Answers(poses.view(len(tokens), self._samples, *poses.shape[1:]), parsed.view(len(tokens), -1))

    def _draw(self, token: str) -> tuple[Tensor, Tensor]:
        batch = collate([self._maker.read(token)])
        return drive(self._policy, batch, temperature=self._temperature, group=self._samples, generator=self._generator)


def make_drivers(
    config: EvaluateConfig,
    dataset: Dataset,
    data: DataConfig,
    training: Sequence[str],
    policies: Mapping[str, Policy],
) -> list[Driver]:
    """Policies first, then baselines in the order given; `training` are the tokens that a baseline may learn from."""
    makers = {name: ExampleMaker(dataset, p.config.samples, {}) for name, p in policies.items()}
    drivers: list[Driver] = [Checkpoint(n, p, makers[n], batch=config.batch) for n, p in policies.items()]
    for baseline in config.baselines:
        if baseline == "best_of_n":
            name = next(iter(policies))
            drivers.append(
                Checkpoint(
                    f"{name}_best_of_{config.samples}",
                    policies[name],
                    makers[name],
                    samples=config.samples,
                    temperature=config.temperature,
                    seed=config.seed,
                )
            )
        elif baseline == "ego_status_mlp":
            drivers.append(Blind(baseline, _train_mlp(config, dataset, data, training, policies)))
        else:
            drivers.append(Blind(baseline))
    return drivers


def _train_mlp(
    config: EvaluateConfig, dataset: Dataset, data: DataConfig, tokens: Sequence[str], policies: Mapping[str, Policy]
) -> EgoStatusMLP:
    if not tokens:
        raise ConfigError("ego_status_mlp has nothing to learn from: the dataset has fewer than two logs")
    trained = next((p.config for p in policies.values()), None)
    steps = config.mlp.steps or (trained.total_steps if trained else 1000)
    batch = config.mlp.batch or (trained.stream.batch_size * trained.optimiser.accumulate if trained else 64)
    scenes = Scenes.read(ExampleMaker(dataset, data, {}), documents_of(dataset, tokens))
    inputs = scenes.status.shape[1] if config.mlp.all_status else 0
    print(f"training ego_status_mlp on {len(tokens)} scenes, {steps} steps of {batch}", flush=True)
    return train_mlp(scenes, inputs=inputs, steps=steps, batch=batch, seed=trained.seed if trained else config.seed)


def documents_of(dataset: Dataset, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """The samples' ``json`` members."""
    return [dataset.read(t, {layout.SAMPLES: ["json"]})[layout.SAMPLES]["json"] for t in tokens]
