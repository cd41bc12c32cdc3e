"""The supervised stages: one loop over optimiser steps, resumable at any of them.

Everything that decides step n is a function of the config, the dataset and the state in the checkpoint (weights,
optimiser, RNG of each rank, stream cursor); the learning rate is a function of n. So a run that was killed and started
again ends with the same bits on the CPU. Stages share the weights and the stream; each has its own optimiser and
schedule. The batch of a step is `stream.batch_size` x ranks x `accumulate` samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.reader import Dataset
from pipeline.stream import ShardStream
from shards_schema.errors import AbsentError, ConfigError
from trainer import build, checkpoint, distributed
from trainer.baselines import scores
from trainer.batch import Batch, collate
from trainer.config import SFTConfig, StageConfig
from trainer.data import ExampleMaker, notices, shuffled, split
from trainer.evaluate import evaluate, zeroed_latents
from trainer.latents import LATENTS, Statistics, TargetConfig
from trainer.leaks import check
from trainer.loop import FREE, batches_of, clipped, learning_rate, make_optimiser, refuse_other, set_rate
from trainer.model import SFTModel
from trainer.segments import allow_table

Log = Callable[[str], None]


class SFT:
    """A run, ready to `fit`: data, model and, where there is a checkpoint, the state to go on from.

    Args:
        config: the recipe.
        device: of this rank.
        log: takes lines for a person (rank 0 only).
        on_step: takes (step, numbers) after each logged step and evaluation (rank 0 only).

    Attributes:
        step: optimiser steps done, over all stages.
        notices: what has to be said of whatever comes out.

    Raises:
        ConfigError, DatasetError: the data is not what the recipe says.
        MismatchError: `out` holds a run of another recipe.
    """

    def __init__(
        self,
        config: SFTConfig,
        device: torch.device,
        *,
        log: Log = print,
        on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.config, self.device, self.step = config, device, 0
        self._log, self._on_step = log, on_step or (lambda step, numbers: None)
        self._dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        columns = dict.fromkeys(["samples", *(t.column for t in config.targets.values())])
        self.dataset = Dataset(config.data, columns=columns)
        self.train_tokens, self.held_tokens = split(self.dataset, self.dataset.tokens(*columns), config.samples)
        if len(self.train_tokens) < self.config.stream.batch_size * distributed.world_size():
            raise ConfigError(
                f"{config.data}: {len(self.train_tokens)} training samples, fewer than stream.batch_size "
                f"{config.stream.batch_size} x {distributed.world_size()} ranks: there is no whole batch"
            )
        self.notices = notices(self.dataset, config.targets)
        other = shuffled(self.train_tokens, config.seed) if config.controls.shuffle_teachers else None
        grey = config.controls.hide_images
        self._maker = ExampleMaker(self.dataset, config.samples, config.targets, other, grey=grey)
        self.reader = ExampleMaker(self.dataset, config.samples, config.targets, grey=grey)
        self.stream = ShardStream(
            self.dataset, self._maker.wanted, config.stream, tokens=self.train_tokens, transform=self._maker
        )
        begun = checkpoint.latest(self._folder)
        self._resumed = None if begun is None else checkpoint.load(begun)
        if self._resumed is not None:
            recorded = SFTConfig.model_validate_json(self._resumed["config"])  # what came later has its default
            refuse_other(recorded.model_dump_json(), config, begun, FREE | {"baselines", "check_mask"})
        self._build()

    @property
    def _folder(self) -> Path:
        return Path(self.config.out) / "checkpoints"

    def _build(self) -> None:
        config, resumed = self.config, self._resumed
        history = int(self.dataset.columns["samples"].provenance["num_history"])
        if resumed is None:
            statistics = self._statistics()
            self.answers = build.make_answers(
                config.answers, config.student, lambda: self.reader.drives(self.train_tokens), config.samples.steps
            )
        else:
            statistics = {k: Statistics(v["mean"], v["std"]) for k, v in resumed["statistics"].items()}
            self.answers = build.restore_answers(resumed["answers"], config.student)
        torch.manual_seed(config.seed)
        student = build.make_student(
            config.student, self.answers, config.counts, views=len(config.samples.views), history=history
        )
        channels = {kind: self.reader.channels(kind) for kind in LATENTS}
        self.model = SFTModel(student, channels, config.adapter, statistics).to(self.device)
        distributed.shard(student, self.model.adapters.values(), config.parallel, self.device, self._dtype)
        self._wrapped = distributed.wrap(self.model, config.parallel, self.device)
        self._history = history
        torch.manual_seed(config.seed + distributed.rank())  # dropout: each rank its own
        self._stage = 0
        self._optimiser = make_optimiser(self.model, config.optimiser)
        if resumed is not None:
            self.step = int(resumed["step"])
            self._stage, _ = self._where(self.step)
            checkpoint.restore(self.model, self._optimiser, resumed, config.seed)
            self.stream.load_state_dict(resumed["stream"])
            self._log(f"resumed at step {self.step} of {config.total_steps}")

    def _statistics(self) -> dict[str, Statistics]:
        if self.config.statistics == "split":
            return Statistics.over(self.reader.targets(self.train_tokens))
        return {kind: self._column_statistics(target) for kind, target in self.config.targets.items()}

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

    def _where(self, step: int) -> tuple[int, int]:
        """The stage that a step belongs to, and its number in it."""
        for i, stage in enumerate(self.config.stages):
            if step < stage.steps or i == len(self.config.stages) - 1:
                return i, step
            step -= stage.steps
        raise AssertionError("a recipe has stages")

    def held_batches(self, limit: int | None = None) -> list[Batch]:
        """Held-out samples in batches, spread over the split where there is a limit; read once and kept."""
        tokens = self.held_tokens
        if limit is not None and limit < len(tokens):
            tokens = tuple(tokens[i * len(tokens) // limit] for i in range(limit))
        examples = [self.reader.read(t) for t in tokens]
        size = max(self.config.stream.batch_size, 16)
        return [collate(examples[i : i + size]) for i in range(0, len(examples), size)]

    def oracle(self, batches: list[Batch]) -> dict[str, float]:
        """ADE and FDE of the answers' own quantisation, and the share that does not parse: no student can beat it."""
        future, status = torch.cat([b.future for b in batches]), torch.cat([b.status for b in batches])
        decoded, parsed = self.answers.decode(self.answers.encode(future, status), status)
        return {**scores(decoded[parsed], future[parsed]), "unparsed": 1 - parsed.float().mean().item()}

    def evaluate(self, batches: list[Batch], stage: StageConfig | None = None) -> dict[str, float]:
        """Held-out metrics, under the table of `stage` (of the present one)."""
        stage = stage or self.config.stages[self._stage]
        if self.config.controls.zero_latents:
            with zeroed_latents(self.model.student):
                return evaluate(self.model, batches, stage.table_stage, self.device, dtype=self._dtype)
        return evaluate(self.model, batches, stage.table_stage, self.device, dtype=self._dtype)

    def check_mask(self, batch: Batch) -> None:
        """Refuse a student that does not obey the tables of its stages (not under FSDP, whose hooks are in the way)."""
        if self.config.parallel.mode == "fsdp" and distributed.world_size() > 1:
            return
        small = batch[0:1].to(self.device)
        answers = self.answers.encode(small.future, small.status)
        for table in {stage.table_stage for stage in self.config.stages}:
            check(self.model.student, small, answers, allow_table(table))

    def fit(
        self,
        *,
        until: int | None = None,
        on_batch: Callable[[int], None] | None = None,
        on_stage: Callable[[int], None] | None = None,
    ) -> None:
        """Train to the end, or to optimiser step `until`, from where the run stands.

        Args:
            until: stop after this step, as a kill between two steps would (what was not saved is lost).
            on_batch: called with each step done.
            on_stage: called with the index of each stage that ended.

        Raises:
            DivergedError: a loss that is not finite.
        """
        config, end = self.config, min(until or self.config.total_steps, self.config.total_steps)
        if self.step >= end:
            return
        held = self.held_batches(config.evaluate_limit)
        batches = batches_of(self.stream, config.stream.batch_size, self.device)
        began, since = time.perf_counter(), self.step
        while self.step < end:
            self._stage, k = self._where(self.step)
            stage = config.stages[self._stage]
            if k == 0 and self.step:  # a stage begins with an optimiser of its own
                self._optimiser = make_optimiser(self.model, config.optimiser)
            numbers = self._optimise(batches, stage, k)
            self.step += 1
            if on_batch is not None:
                on_batch(self.step)
            if self.step % config.log_every == 0:
                rate = (self.step - since) * self.step_samples / (time.perf_counter() - began)
                self._report({f"train/{n}": v.item() for n, v in numbers.items()} | {"train/samples_per_s": rate})
            ended = k + 1 == stage.steps
            if self.step % config.evaluate_every == 0 or ended:
                found = self.evaluate(held, stage)
                self._report({f"held/{n}": v for n, v in found.items()})
            if ended:  # before the checkpoint, or a kill between the two would leave the stage without its file
                self._save_stage(stage)
            if self.step % config.save_every == 0 or ended:
                self.save()
            if ended and on_stage is not None:
                on_stage(self._stage)
        batches.close()

    @property
    def step_samples(self) -> int:
        """Samples of an optimiser step, over all ranks."""
        return self.config.stream.batch_size * self.config.optimiser.accumulate * distributed.world_size()

    def _report(self, numbers: Mapping[str, float]) -> None:
        if distributed.rank() == 0:
            self._on_step(self.step, numbers)

    def _optimise(self, batches: Generator[Batch, None, None], stage: StageConfig, k: int) -> dict[str, Tensor]:
        """One optimiser step; the means of its losses, and the norm of its gradient."""
        config = self.config.optimiser
        rate = learning_rate(stage, k)
        set_rate(self._optimiser, rate)
        self._wrapped.train()
        self._optimiser.zero_grad(set_to_none=True)
        numbers: dict[str, Tensor] = {}
        for i in range(config.accumulate):
            batch = next(batches).to(self.device)
            with (
                distributed.no_sync(self._wrapped, last=i == config.accumulate - 1),
                torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not torch.float32),
            ):
                loss, parts = self._wrapped(batch, stage.table_stage, stage.loss_weights)
                (loss / config.accumulate).backward()
            numbers = {n: numbers.get(n, torch.zeros_like(v)) + v / config.accumulate for n, v in parts.items()}
        norm = clipped(self.model, config.clip, self.step, numbers, checkpoint.latest(self._folder))
        self._optimiser.step()
        return numbers | {"gradient": norm, "lr": torch.tensor(rate)}

    def save(self) -> None:
        """Write a checkpoint of this step, and let go of old ones."""
        content = self._common() | {
            "step": self.step,
            "stream": self.stream.state_dict(),
            **checkpoint.training_state(self.model, self._optimiser),
        }
        checkpoint.save(self._folder / f"step_{self.step:08d}.pt", content)
        checkpoint.prune(self._folder, self.config.keep)

    def _save_stage(self, stage: StageConfig) -> None:
        whole = checkpoint.weights_of(self.model)
        parts = {
            part: {k.removeprefix(f"{part}."): v for k, v in whole.items() if k.startswith(f"{part}.")}
            for part in ("student", "adapters")
        }
        content = self._common() | parts | {"step": self.step, "stage": stage.stage, "table_stage": stage.table_stage}
        checkpoint.save(Path(self.config.out) / f"stage_{self._stage + 1}.pt", content)

    def _common(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump_json(),
            "answers": self.answers.state(),
            "statistics": {k: {"mean": s.mean, "std": s.std} for k, s in self.model.statistics.items()},
            "history": self._history,
            "dataset": self.dataset.digest,
            "held_out": list(self.held_tokens),
            "notices": self.notices,
        }
