"""GRPO from a supervised policy, with NAVSIM's score as the reward: a run (`run.Run`) over batches of scenes.

A step samples G answers of each scene, scores them from the reward column (`rollouts`), and takes `inner` optimiser
steps on those whose group has any spread (`policy_gradient`); groups without are dropped and counted. Policy and
reference are in eval mode throughout, so that no dropout stands between who answered and who is asked. Beside what any
run keeps, a checkpoint has the sampling generator of each rank and the digest of the policy that the run began with.
The end is a policy file like those of SFT's stages, ``policy.pt``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.reading.reader import Dataset
from shards_schema.errors import AbsentError, ConfigError, MismatchError, MissingFileError
from trainer import build, checkpoint, distributed, seeds
from trainer.batch import Batch
from trainer.config import SFTConfig
from trainer.data import ExampleMaker, notices
from trainer.grpo_config import GRPOConfig
from trainer.latents import LATENTS
from trainer.model import SFTModel
from trainer.optimiser import learning_rate, make_optimiser, set_rate
from trainer.policy_gradient import PolicyPass, backward, reference_logps
from trainer.reward import POSES, Reward
from trainer.rollouts import Rollout, roll_out
from trainer.run import Batches, Log, Run
from trainer.scored import Driven, policy_scores
from trainer.segments import allow_table
from trainer.splits import split_like
from trainer.students.base import Student
from trainer.tally import Number, Tally, add

POLICY = "policy.pt"
HELD_BATCH = 32
"""Held-out scenes that are answered at once."""


class GRPO(Run[GRPOConfig]):
    """A run of GRPO, ready to `fit`.

    Args:
        config: the recipe.
        device: of this rank.
        log: takes lines for a person.

    Attributes:
        sft: the recipe that the policy comes from.
        table: the allow table that it answers under.
        reward: scores.
        reference: the policy as it was, frozen; None where `beta` is 0.

    Raises:
        MissingFileError: there is no policy file.
        ConfigError, DatasetError: data and policy do not fit.
        AbsentError: the dataset lacks a column.
        MismatchError: `out` holds a run of another recipe or of another policy.
    """

    recipe = "grpo"
    also_free = frozenset({"policy"})

    def __init__(self, config: GRPOConfig, device: torch.device, *, log: Log = print) -> None:
        super().__init__(config, device, log)
        begun = checkpoint.load(Path(config.policy))
        self._policy_digest = checkpoint.digest(Path(config.policy))
        self.sft = SFTConfig.model_validate_json(begun["config"])
        kept = ("config", "answers", "statistics", "history", "stage", "table_stage", "words")
        self._origin = {k: begun[k] for k in kept if k in begun}
        self.table = allow_table(begun["table_stage"], device)
        if self.sft.thought != "latents":
            raise ConfigError(
                f"{config.policy}: trained with thought: {self.sft.thought}; GRPO takes a policy with latents "
                "(thought: latents)"
            )
        if self.sft.samples.steps != POSES:
            raise ConfigError(
                f"{config.policy}: its answers have {self.sft.samples.steps} poses, the reward wants {POSES} (4 s)"
            )
        self._open(begun)
        recorded = self._recorded()
        if recorded is not None and recorded["policy_digest"] != self._policy_digest:
            raise MismatchError(f"{self._folder}: begun from another policy than {config.policy}; give another out")
        self._build(begun, recorded)

    def _open(self, begun: Mapping[str, Any]) -> None:
        """Data and reward: what SFT held out stays held out."""
        config, sft = self.config, self.sft
        targets = sft.targets if config.regulariser.on else {}
        columns = dict.fromkeys(["samples", *(t.column for t in targets.values()), config.reward.column])
        try:
            self.dataset = Dataset(config.data, columns=columns)
        except MissingFileError as error:
            raise AbsentError(
                f"{config.data}: {error}; GRPO needs the columns {', '.join(columns)} (`python -m jobs.teachers`, "
                f"docs/reward.md; regulariser.wm=0 regulariser.geo=0 does without the teachers')"
            ) from error
        self.reward = Reward(self.dataset, device=self.device, **config.reward.model_dump())
        self.notices = list(dict.fromkeys([*begun["notices"], *notices(self.dataset, targets)]))
        held_before = frozenset(begun["held_out"])
        parts = split_like(self.dataset, self.dataset.tokens(*columns), held_before, sft.samples)
        reader = ExampleMaker(self.dataset, sft.samples, targets)
        self._read(parts, reader, reader, held_batch=HELD_BATCH)

    def _build(self, begun: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> None:
        config = self.config
        student = build.student_of(begun, unread=distributed.sharded(config.parallel))
        self.answers = student.answers
        statistics = build.restore_statistics(begun)
        channels = {kind: len(statistics[kind].mean) for kind in LATENTS}
        self.model = SFTModel(student, channels, self.sft.adapter, statistics)
        self._frozen: dict[str, Any] = {}
        if not config.regulariser.on:
            self.model.adapters.requires_grad_(False)
            self._frozen = {"adapters": begun["adapters"]}
        self._place(student, self.model)
        checkpoint.load_weights(student, begun["student"])
        checkpoint.load_weights(self.model.adapters, begun["adapters"])
        self.model.eval()
        self.reference = self._first(begun) if config.beta else None
        policy = PolicyPass(self.model, config, self.table)
        self._pass = distributed.wrap(policy, config.parallel, self.device, unused="words" in begun).eval()
        self._sampler = seeds.generator(self.device, config.seed, "answers", distributed.rank(), 0)
        torch.manual_seed(seeds.mixed(config.seed, "dropout", distributed.rank(), 0))
        self._optimiser = make_optimiser(self.model, config.optimiser)
        self._tally = Tally()
        if recorded is not None:
            self._resume(recorded)
            self._restore_sampler(recorded["sampler"])

    def _restore_sampler(self, states: Sequence[torch.Tensor]) -> None:
        """Of each rank; with another number of ranks, or another kind of device, it starts from seed, rank and step."""
        if len(states) == distributed.world_size() and states[0].shape == self._sampler.get_state().shape:
            self._sampler.set_state(states[distributed.rank()])
        else:
            self._sampler.manual_seed(seeds.mixed(self.config.seed, "answers", distributed.rank(), self.step))

    @property
    def total(self) -> int:
        """Batches of scenes."""
        return self.config.steps

    def evaluate(self, batches: Sequence[Batch], student: Student | None = None) -> Driven:
        """Held-out scenes, driven by the policy as it is, or by another student, asked the same way."""
        return policy_scores(
            student or self.model.student, batches, self.reward, self.table, self.device,
            temperature=self.config.temperature, samples=self.config.evaluate_samples, dtype=self.dtype,
        )  # fmt: skip

    def before(self) -> Student:
        """The policy that the run began with, placed as the model is; read again where no reference was kept."""
        return self.reference or self._first(checkpoint.load(Path(self.config.policy)))

    def _first(self, begun: Mapping[str, Any]) -> Student:
        student = build.student_of(begun, unread=distributed.sharded(self.config.parallel)).requires_grad_(False)
        self._place(student, student)
        checkpoint.load_weights(student, begun["student"])
        return student.eval()

    def _advance(self, batches: Batches) -> None:
        """Sample, score, learn."""
        config, batch = self.config, next(batches).to(self.device)
        rollout, numbers = roll_out(
            self.model.student, batch, self.reward, self.table, config, self._sampler, self._autocast()
        )
        if rollout.size.answers or config.regulariser.on:  # else no group of any rank has any spread
            add(numbers, self._learn(rollout))
        self._tally.add(numbers)

    def _learn(self, rollout: Rollout) -> dict[str, Number]:
        """The optimiser steps on a rollout; sums of what is logged of them."""
        config = self.config
        set_rate(self._optimiser, learning_rate(config, self.step))
        references = reference_logps(self.reference, rollout, self.table, config.temperature, self._autocast())
        old: list[torch.Tensor] = []
        numbers: dict[str, Number] = {}
        for _ in range(config.inner):
            self._optimiser.zero_grad(set_to_none=True)
            losses = backward(self._pass, rollout, references, old, config, self._autocast())
            norm = self._clipped(losses)
            self._optimiser.step()
            add(numbers, {**losses, "gradient": norm, "updates": 1.0})
        return numbers

    def _numbers(self, steps: int, seconds: float) -> dict[str, float]:
        """Means since the last time, the rate of the last step, and seconds a step."""
        rate = learning_rate(self.config, self.step - 1)
        return self._tally.take(self.device) | {"lr": rate, "seconds": seconds / steps}

    def _held(self, batches: Sequence[Batch]) -> dict[str, float]:
        return self.evaluate(batches).means()

    def _policy_path(self) -> Path | None:
        """The end is a file."""
        return Path(self.config.out) / POLICY if self.step == self.config.steps else None

    def _policy_extra(self) -> dict[str, Any]:
        """Adapters that are frozen are not among what is trained: they are what they were."""
        return self._frozen

    def _state(self) -> dict[str, Any]:
        return {"sampler": distributed.gathered(self._sampler.get_state())}

    def _describe(self) -> dict[str, Any]:
        return self._origin | {
            "grpo": self.config.model_dump_json(),
            "policy_digest": self._policy_digest,
        }
