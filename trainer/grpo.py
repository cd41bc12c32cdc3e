"""GRPO from a supervised policy, with NAVSIM's score as the reward, and that of questions: a run (`run.Run`).

A step samples G answers of each scene, scores them from the reward column (`rollouts`), and takes `inner` optimiser
steps on those whose group has any spread (`policy_gradient`); groups without are dropped and counted. Questions are
another task of the same step: their losses are added, by their weight. Policy and reference are in eval mode
throughout, so that no dropout stands between who answered and who is asked. Beside what any run keeps, a checkpoint has
the sampling generator of each rank and the digest of the policy that the run began with. The end is a policy file like
those of SFT's stages, ``policy.pt``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.reading.reader import Dataset
from questions.units import Prompt as Question
from questions.units import units_of
from shards_schema.errors import AbsentError, ConfigError, MismatchError, MissingFileError
from trainer import build, checkpoint, distributed, seeds
from trainer.answered import Answered, policy_answers
from trainer.batch import Batch
from trainer.config import SFTConfig
from trainer.data import ExampleMaker, notices
from trainer.grpo_config import AskedConfig, GRPOConfig
from trainer.held import HeldBatches
from trainer.latents import LATENTS
from trainer.model import SFTModel
from trainer.optimiser import learning_rate, make_optimiser, set_rate
from trainer.policy_gradient import PolicyPass, backward, reference_logps
from trainer.questions import QuestionBatches, QuestionReader, held_questions, training_questions
from trainer.reward import POSES, Reward
from trainer.rollouts import Rollout, roll_out
from trainer.run import Batches, Log, Run
from trainer.scored import Driven, policy_scores
from trainer.segments import allow_table
from trainer.splits import split_like, spread
from trainer.students.base import Student
from trainer.tally import ASKED, Number, Tally, add

POLICY = "policy.pt"
HELD_BATCH = 32
"""Held-out scenes that are answered at once."""


class Task(NamedTuple):
    """What a step has answers to.

    Attributes:
        name: that stands before its numbers.
        batch: the next one, of the drives' batches or of its own.
        reward: of `roll_out`.
        weight: of its losses.
    """

    name: str
    batch: Callable[[Batches], Batch]
    reward: Reward | AskedConfig
    weight: float


class GRPO(Run[GRPOConfig]):
    """A run of GRPO, ready to `fit`.

    Args:
        config: the recipe.
        device: of this rank.
        log: takes lines for a person.

    Attributes:
        sft: the recipe that the policy comes from.
        table: the allow table that it answers under.
        reward: scores drives; None where questions are alone.
        read_question: makes examples of questions; None where there are none.
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
        self.table = allow_table(begun["table_stage"])
        self._aligns = config.regulariser.on and bool(self.sft.aligned)
        if config.regulariser.on and not self._aligns:
            log(f"no alignment: {config.policy} has no latents (thought: {self.sft.thought}); regulariser does nothing")
        self._drives = config.questions is None or not config.questions.alone
        if self._drives and self.sft.samples.steps != POSES:
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
        targets = sft.aligned if self._aligns else {}
        scored = [config.reward.column] if self._drives else []
        columns = dict.fromkeys(["samples", *(t.column for t in targets.values()), *scored])
        try:
            self.dataset = Dataset(config.data, columns=columns)
        except MissingFileError as error:
            raise AbsentError(
                f"{config.data}: {error}; GRPO needs the columns {', '.join(columns)} (`python -m jobs.teachers`, "
                "docs/reward.md"
                + ("; regulariser.wm=0 regulariser.geo=0 does without the teachers')" if targets else ")")
            ) from error
        self.reward = Reward(self.dataset, device=self.device, **config.reward.model_dump()) if self._drives else None
        self.notices = list(dict.fromkeys([*begun["notices"], *notices(self.dataset, targets)]))
        held_before = frozenset(begun["held_out"])
        parts = split_like(self.dataset, self.dataset.tokens(*columns), held_before, sft.samples)
        reader = ExampleMaker(self.dataset, sft.samples, targets)
        self._read(parts, reader, reader, held_batch=HELD_BATCH)
        self.read_question: QuestionReader | None = None
        self._asked: list[Question] = []
        self._asked_held: list[Question] = []
        if (asked := config.questions) is not None:
            self.read_question = QuestionReader(self.dataset, sft.samples, targets, surds=asked.surds)
            self._asked = training_questions(asked, self.read_question, self.dataset, parts[1], self._log)
            if asked.held is not None:
                taught = {*self.train_tokens, *(question.token for question in self._asked)}
                self._asked_held = held_questions(asked.held, self.read_question, taught, self._log)

    def _build(self, begun: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> None:
        config = self.config
        student = build.student_of(begun, unread=distributed.sharded(config.parallel))
        self.answers = student.answers
        statistics = build.restore_statistics(begun)
        channels = {kind: len(statistics[kind].mean) for kind in LATENTS if kind in statistics}
        self.model = SFTModel(student, channels, self.sft.adapter, statistics)
        self._frozen: dict[str, Any] = {}
        if not self._aligns:
            self.model.adapters.requires_grad_(False)
            self._frozen = {"adapters": begun["adapters"]}
        self._place(student, self.model)
        checkpoint.load_weights(student, begun["student"])
        checkpoint.load_weights(self.model.adapters, begun["adapters"])
        self.model.eval()
        self.reference = self._first(begun) if config.beta else None
        policy = PolicyPass(self.model, config, self.table)
        unused = "words" in begun or config.questions is not None or self.sft.thought == "text"
        self._pass = distributed.wrap(policy, config.parallel, self.device, unused=unused).eval()
        self._sampler = seeds.generator(self.device, config.seed, "answers", distributed.rank(), 0)
        torch.manual_seed(seeds.mixed(config.seed, "dropout", distributed.rank(), 0))
        self._optimiser = make_optimiser(self.model, config.optimiser)
        self._tally = Tally()
        self._tasks = [] if self.reward is None else [Task("", next, self.reward, 1.0)]
        if self.read_question is not None and (asked := config.questions) is not None:
            _ = student.speech  # or it cannot be asked
            batches = QuestionBatches(
                self._asked, self.read_question, student,
                drives=config.stream.batch_size, share=asked.share, accumulate=1, seed=config.seed, whole=True,
            )  # fmt: skip
            self._tasks.append(Task(ASKED, lambda _: batches.at(self.step, 0), asked, asked.weight))
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
        assert self.reward is not None
        return policy_scores(
            student or self.model.student, batches, self.reward, self.table, self.device,
            temperature=self.config.temperature, samples=self.config.evaluate_samples, dtype=self.dtype,
        )  # fmt: skip

    def ask(self, student: Student | None = None, limit: int | None = None) -> Answered | None:
        """Held-out questions, answered likewise, of at most so many units; None: there are none."""
        config = self.config
        if self.read_question is None or config.questions is None or not self._asked_held:
            return None
        units = units_of(self._asked_held)
        some = [question for unit in spread((*units,), limit) for question in units[unit]]
        return policy_answers(
            student or self.model.student, HeldBatches(self.read_question, some, HELD_BATCH), config.questions,
            self.table, self.device,
            temperature=config.temperature, samples=config.evaluate_samples, dtype=self.dtype,
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
        config = self.config
        learnt: list[tuple[Task, Rollout]] = []
        for task in self._tasks:
            batch = task.batch(batches).to(self.device)
            rollout, numbers = roll_out(
                self.model.student, batch, task.reward, self.table, config, self._sampler, self._autocast()
            )
            self._tally.add({task.name + name: value for name, value in numbers.items()})
            if rollout.size.answers or self._aligns:  # else no group of any rank has any spread
                learnt.append((task, rollout))
        if learnt:
            self._tally.add(self._learn(learnt))

    def _learn(self, learnt: Sequence[tuple[Task, Rollout]]) -> dict[str, Number]:
        """The optimiser steps on the rollouts of a step; sums of what is logged of them."""
        config = self.config
        set_rate(self._optimiser, learning_rate(config, self.step))
        references = [
            reference_logps(self.reference, rollout, self.table, config.temperature, self._autocast())
            for _, rollout in learnt
        ]
        old: list[list[torch.Tensor]] = [[] for _ in learnt]
        numbers: dict[str, Number] = {}
        for _ in range(config.inner):
            self._optimiser.zero_grad(set_to_none=True)
            losses: dict[str, torch.Tensor] = {}
            for (task, rollout), reference, first in zip(learnt, references, old, strict=True):
                found = backward(self._pass, rollout, reference, first, config, self._autocast(), task.weight)
                losses |= {task.name + name: value for name, value in found.items()}
            norm = self._clipped(losses)
            self._optimiser.step()
            add(numbers, {**losses, "gradient": norm, "updates": 1.0})
        return numbers

    def _numbers(self, steps: int, seconds: float) -> dict[str, float]:
        """Means since the last time, the rate of the last step, and seconds a step."""
        rate = learning_rate(self.config, self.step - 1)
        return self._tally.take(self.device) | {"lr": rate, "seconds": seconds / steps}

    def _held(self, batches: Sequence[Batch]) -> dict[str, float]:
        found = {} if self.reward is None else self.evaluate(batches).means()
        asked = self.ask(limit=self.config.evaluate_limit)
        return found | ({} if asked is None else {ASKED + name: value for name, value in asked.means().items()})

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
