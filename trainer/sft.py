"""The supervised stages: a run (`run.Run`) whose step is the losses of a batch, accumulated, and one of the optimiser.

Stages share the weights and the stream; each has its own optimiser and schedule, and leaves a policy file. The learning
rate is a function of the step. The batch of a step is `stream.batch_size` x ranks x `accumulate` samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.reading.reader import Dataset
from questions.units import Prompt as Question
from shards_schema.errors import AbsentError, ConfigError
from trainer import build, distributed, seeds
from trainer.baselines import scores
from trainer.batch import ANSWERS, Batch, Example
from trainer.config import SFTConfig, StageConfig
from trainer.data import ExampleMaker, notices, shuffled
from trainer.evaluate import evaluate, zeroed_latents
from trainer.latents import Statistics, TargetConfig, channel_sums, merged_sums
from trainer.leaks import check
from trainer.model import SFTModel
from trainer.optimiser import learning_rate, make_optimiser, set_rate
from trainer.questions import QuestionBatches, QuestionReader, QuestionsConfig, training_questions
from trainer.run import Batches, Log, Run
from trainer.segments import allow_table
from trainer.splits import split
from trainer.tally import Number, read
from trainer.thoughts import Thoughts


class SFT(Run[SFTConfig]):
    """A supervised run, ready to `fit`: data, model and, where there is a checkpoint, the state to go on from.

    Args:
        config: the recipe.
        device: of this rank.
        log: takes lines for a person.

    Raises:
        ConfigError, DatasetError: the data is not what the recipe says.
        MismatchError: `out` holds a run of another recipe.
    """

    recipe = "config"
    also_free = frozenset({"baselines", "check_mask"})

    def __init__(self, config: SFTConfig, device: torch.device, *, log: Log = print) -> None:
        super().__init__(config, device, log)
        columns = dict.fromkeys(["samples", *(t.column for t in config.aligned.values())])
        thinks = config.thought == "text"
        self.dataset = Dataset(config.data, columns=None if thinks else columns)
        parts = split(self.dataset, self.dataset.tokens(*columns), config.samples)
        self.notices = notices(self.dataset, config.aligned)
        other = shuffled(parts[0], config.seed) if config.controls.shuffle_teachers else None
        grey, thoughts = config.controls.hide_images, Thoughts(self.dataset) if thinks else None
        if thoughts is not None and thoughts.lights is None:
            log("no column pdm of v2: which light is red on the route is not known, and no thought says it")
        self._read(
            parts,
            ExampleMaker(self.dataset, config.samples, config.aligned, grey=grey, thoughts=thoughts),
            ExampleMaker(self.dataset, config.samples, config.aligned, other, grey=grey, thoughts=thoughts),
            held_batch=max(config.stream.batch_size, 16),
        )
        self._asked = self._questions(config.questions, parts[1], other) if config.questions is not None else []
        self._build(self._recorded())

    def _questions(
        self, asked: QuestionsConfig, held: Sequence[str], other: Mapping[str, str] | None
    ) -> list[Question]:
        config = self.config
        self._read_question = QuestionReader(
            self.dataset, config.samples, config.aligned, other, surds=asked.surds, grey=config.controls.hide_images
        )
        return training_questions(asked, self._read_question, self.dataset, held, self._log)

    def _build(self, recorded: Mapping[str, Any] | None) -> None:
        config = self.config
        self._history = int(self.dataset.columns["samples"].provenance["num_history"])
        if recorded is None:
            statistics = self._statistics()
            self.answers = build.make_answers(config.answers, config.student, self._drives, config.samples.steps)
        else:
            statistics = build.restore_statistics(recorded)
            self.answers = build.restore_answers(recorded["answers"], config.student)
        torch.manual_seed(seeds.mixed(config.seed, "weights"))
        student = build.make_student(
            config.student,
            self.answers,
            config.counts,
            views=len(config.samples.pictures),
            history=self._history,
            words=build.make_words(config.student, self._asked, thinks=config.thought == "text"),
            thinks=config.thought == "text",
            unread=distributed.sharded(config.parallel),
        )
        channels = {kind: self.reader.channels(kind) for kind in config.aligned}
        self.model = SFTModel(student, channels, config.adapter, statistics)
        self._place(student, self.model)
        unused = config.thought == "text" and config.questions is None  # of a tiny one, what reads questions
        self._wrapped = distributed.wrap(self.model, config.parallel, self.device, unused=unused)
        torch.manual_seed(seeds.mixed(config.seed, "dropout", distributed.rank(), 0))  # each rank its own
        self._optimiser = make_optimiser(self.model, config.optimiser)
        self._losses: dict[str, Number] = {}
        self._question_batches: QuestionBatches | None = None
        if config.questions is not None:
            self._question_batches = QuestionBatches(
                self._asked,
                self._read_question,
                student,
                drives=config.stream.batch_size,
                share=config.questions.share,
                accumulate=config.optimiser.accumulate,
                seed=config.seed,
            )
        if recorded is not None:
            self._resume(recorded)

    def _drives(self) -> tuple[Tensor, Tensor]:
        """Futures and status of the training split; each rank reads its share."""
        futures, status = zip(*distributed.in_blocks(self.train_tokens, self.reader.drives), strict=True)
        return torch.cat(futures), torch.cat(status)

    def _statistics(self) -> dict[str, Statistics]:
        if not self.config.aligned:
            return {}
        if self.config.statistics == "split":
            parts = distributed.in_blocks(self.train_tokens, lambda some: channel_sums(self.reader.targets(some)))
            return {kind: Statistics.of(sums) for kind, sums in merged_sums(parts).items()}
        return {kind: self._column_statistics(target) for kind, target in self.config.aligned.items()}

    def _column_statistics(self, target: TargetConfig) -> Statistics:
        spec = self.dataset.specs(target.column)[target.target]
        axis = spec.channel_axis
        if axis is None or spec.dims[axis] != target.channel:
            raise ConfigError(
                f"statistics: column: those of {target.column}/{target.target} are not along {target.channel!r} (its "
                f"dims are {spec.dims}); take statistics: split"
            )
        try:
            return Statistics.of(self.dataset.statistics(target.column, target.target))
        except AbsentError as error:
            raise ConfigError(f"statistics: column: {error}; take statistics: split") from error

    @property
    def total(self) -> int:
        """Optimiser steps of all stages."""
        return self.config.total_steps

    @property
    def stage(self) -> StageConfig:
        """That of the last step done; before the first, the first."""
        return self.config.stages[self._where(max(self.step - 1, 0))[0]]

    def _where(self, step: int) -> tuple[int, int]:
        """The stage that a step belongs to, and its number in it."""
        for i, stage in enumerate(self.config.stages):
            if step < stage.steps or i == len(self.config.stages) - 1:
                return i, step
            step -= stage.steps
        raise AssertionError("a recipe has stages")

    def oracle(self, batches: list[Batch]) -> dict[str, float]:
        """ADE and FDE of the answers' own quantisation, and the share that does not parse: no student can beat it."""
        future, status = torch.cat([b.future for b in batches]), torch.cat([b.status for b in batches])
        decoded, parsed = self.answers.decode(self.answers.encode(future, status), status)
        return {**scores(decoded[parsed], future[parsed]), "unparsed": 1 - parsed.float().mean().item()}

    def evaluate(self, batches: Sequence[Batch], stage: StageConfig | None = None) -> dict[str, float]:
        """Held-out metrics, see `evaluate.evaluate`, under the table of `stage` (None: of the present one)."""
        table = (stage or self.stage).table_stage
        if self.config.controls.zero_latents:
            with zeroed_latents(self.model.student):
                return evaluate(self.model, batches, table, self.device, dtype=self.dtype)
        return evaluate(self.model, batches, table, self.device, dtype=self.dtype)

    def check_mask(self, batch: Batch) -> None:
        """Refuse a student that does not obey the tables of its stages (not under FSDP, whose hooks are in the way)."""
        if self.config.parallel.mode == "fsdp" and distributed.world_size() > 1:
            return
        small = self.model.student.prepare(batch[0:1]).to(self.device)
        answers = self.answers.encode(small.future, small.status)
        for table in {stage.table_stage for stage in self.config.stages}:
            check(self.model.student, small, answers, allow_table(table))

    def _collate(self, examples: Sequence[Example]) -> Batch:
        """With the answers: writing them out takes numbers, which a device would be asked for."""
        batch = self.model.student.thinking(super()._collate(examples))
        answers = self.answers.encode(batch.future, batch.status)
        return replace(batch, prepared={**batch.prepared, ANSWERS: answers})

    def _advance(self, batches: Batches) -> None:
        """One optimiser step; keeps the means of its losses on this rank, and the norm of its gradient."""
        config = self.config.optimiser
        index, k = self._where(self.step)
        stage = self.config.stages[index]
        if k == 0 and self.step:  # a stage begins with an optimiser of its own
            self._optimiser = make_optimiser(self.model, config)
        rate = learning_rate(stage, k)
        set_rate(self._optimiser, rate)
        self._wrapped.train()
        self._optimiser.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for i in range(config.accumulate):
            batch = next(batches).to(self.device)
            asked = self._questions_of(i)
            with distributed.no_sync(self._wrapped, last=i == config.accumulate - 1):
                with self._autocast():
                    loss, parts = self._wrapped(batch, stage.table_stage, stage.loss_weights, *asked)
                (loss / config.accumulate).backward()
            losses = {n: losses.get(n, torch.zeros_like(v)) + v / config.accumulate for n, v in parts.items()}
        norm = self._clipped(losses)
        self._optimiser.step()
        self._losses = {**losses, "gradient": norm, "lr": torch.tensor(rate).item()}  # in float32, as the others

    def _questions_of(self, part: int) -> tuple[Batch, float] | tuple[()]:
        """Those that go with a batch of this step, and their weight; nothing where none are trained on."""
        if self._question_batches is None or self.config.questions is None:
            return ()
        return self._question_batches.at(self.step, part).to(self.device), self.config.questions.weight

    def _numbers(self, steps: int, seconds: float) -> dict[str, float]:
        """Of the last step, and samples per second."""
        rate = steps * self.step_samples / seconds
        return read(self._losses) | {"samples_per_s": rate}

    def _held(self, batches: Sequence[Batch]) -> dict[str, float]:
        return self.evaluate(batches)

    def _policy_path(self) -> Path | None:
        """A stage ends with a file."""
        index, k = self._where(self.step - 1)
        return Path(self.config.out) / f"stage_{index + 1}.pt" if k + 1 == self.config.stages[index].steps else None

    def _policy_extra(self) -> dict[str, Any]:
        return {"stage": self.stage.stage, "table_stage": self.stage.table_stage}

    def _describe(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump_json(),
            "answers": self.answers.state(),
            "statistics": {k: {"mean": s.mean, "std": s.std} for k, s in self.model.statistics.items()},
            "history": self._history,
            **({"words": words.state()} if self._asked and (words := self.model.student.words) is not None else {}),
        }
