"""A training run, whichever loop it is: what it reads, when it logs, evaluates and saves, and how it goes on.

A loop (`sft.SFT`, `grpo.GRPO`) says what a step is; this says all around it, once. Everything that decides step n is a
function of the config, the dataset and the state in the checkpoint: weights, optimiser, RNG of each rank, the stream's
cursor, and what the loop adds. So a run that was killed and started again ends with the same bits on the CPU. A policy
file that is due is written before the checkpoint of that step: a kill between the two costs steps, never the file.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor, nn

from pipeline.reading.reader import Dataset
from pipeline.stream import ShardStream
from trainer import checkpoint, distributed, seeds
from trainer.answers.base import Answers
from trainer.batch import Batch, Example, collate
from trainer.data import ExampleMaker
from trainer.held import HeldOut
from trainer.model import SFTModel
from trainer.optimiser import clipped
from trainer.resuming import ELASTIC, FREE, Config, refuse_other, refuse_other_step, step_samples
from trainer.splits import Split, refuse_too_few, spread
from trainer.students.base import Student

Log = Callable[[str], None]
Batches = Generator[Batch, None, None]


class Run(ABC, Generic[Config]):
    """What every run has; a loop's constructor calls `_read`, makes the model, then `_resume`.

    Args:
        config: the recipe.
        device: of this rank.
        log: takes lines for a person; called on every rank.

    Attributes:
        step: optimiser steps (SFT) or batches of scenes (GRPO) done.
        dtype: of autocast; float32 is none.
        dataset: open with the columns that are needed.
        train_tokens, held_tokens: samples to train on and held out, in plan order.
        notices: what has to be said of whatever comes out.
        reader: makes examples as evaluation sees them.
        stream: training examples, without end; its cursor is part of the state.
        model: student and adapters.
        answers: what the student says.
    """

    recipe: ClassVar[str]
    """Key of the recipe in a checkpoint."""
    also_free: ClassVar[Set[str]] = frozenset()
    """What may differ when a run goes on, besides `FREE`."""

    dataset: Dataset
    notices: list[str]
    reader: ExampleMaker
    model: SFTModel
    answers: Answers
    _optimiser: torch.optim.Optimizer

    def __init__(self, config: Config, device: torch.device, log: Log) -> None:
        self.config: Config = config
        self.device, self.step = device, 0
        self.dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self._log = log
        self._checkpoints = checkpoint.Checkpoints(self._folder, config.keep)

    @property
    @abstractmethod
    def total(self) -> int:
        """Steps of the whole run."""

    @abstractmethod
    def _advance(self, batches: Batches) -> None:
        """Step `self.step`, on the next batches."""

    @abstractmethod
    def _numbers(self, steps: int, seconds: float) -> dict[str, float]:
        """What is logged of training since the last time; `steps` in `seconds` of this process. Every rank calls."""

    @abstractmethod
    def _held(self, batches: Sequence[Batch]) -> dict[str, float]:
        """What is logged of held-out samples. Every rank calls."""

    @abstractmethod
    def _policy_path(self) -> Path | None:
        """The file of the policy that is due after `self.step` steps; None: none is."""

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """What checkpoints and policy files say of this run."""

    def _policy_extra(self) -> dict[str, Any]:
        """What a policy file has besides."""
        return {}

    def _state(self) -> dict[str, Any]:
        """What a checkpoint has besides. Every rank calls."""
        return {}

    @property
    def step_samples(self) -> int:
        """Samples of a step, over all ranks."""
        return step_samples(self.config, distributed.world_size())

    @property
    def _folder(self) -> Path:
        return Path(self.config.out) / "checkpoints"

    def _read(self, parts: Split, reader: ExampleMaker, maker: ExampleMaker, *, held_batch: int) -> None:
        """Take up the data.

        Args:
            parts: tokens to train on, and held out.
            reader: makes held-out examples.
            maker: makes those of the stream.
            held_batch: held-out samples that go through the model at once.

        Raises:
            ConfigError: there is no whole step in an epoch.
        """
        self.train_tokens, self.held_tokens = parts
        self._held_batch = held_batch
        refuse_too_few(self.config.data, self.train_tokens, self.step_samples)
        self.reader = reader
        self.stream = ShardStream(
            self.dataset, maker.wanted, self.config.stream, tokens=self.train_tokens, transform=maker
        )

    def _place(self, student: Student, model: nn.Module) -> None:
        """Put a student, and the adapters of the model that it is in, on the device, in parts where they are asked for.

        What `build.make_student` has left on a disk is read then, by each rank its part.
        """
        others = model.adapters.values() if isinstance(model, SFTModel) else ()
        distributed.shard(
            student, student.blocks, others, self.config.parallel, self.device, self.dtype, student.unread()
        )
        model.to(self.device)

    def _recorded(self) -> dict[str, Any] | None:
        """The newest checkpoint in the run's place, or None.

        Raises:
            MismatchError: it is of another recipe, or its steps had other samples.
        """
        path = checkpoint.latest(self._folder)
        if path is None:
            return None
        content = checkpoint.load(path)
        recorded = refuse_other(content[self.recipe], self.config, path, FREE | ELASTIC | self.also_free)
        refuse_other_step(recorded, len(content["rng"]), self.config, path)  # each rank left the state of its RNG
        return content

    def _resume(self, content: Mapping[str, Any]) -> None:
        """Stand where the newest checkpoint stood: weights, optimiser, RNG of this rank, cursor."""
        self.step = int(content["step"])
        seed = seeds.mixed(self.config.seed, "dropout", distributed.rank(), self.step)
        self._checkpoints.restore(self.step, content, self.model, self._optimiser, seed)
        self.stream.load_state_dict(content["stream"])
        self._log(f"resumed at step {self.step} of {self.total}")

    def held_batches(self, limit: int | None = None) -> HeldOut:
        """Held-out samples in batches on the CPU, in plan order, each read when it is asked for.

        Args:
            limit: so many samples at most, evenly spread over them.
        """
        return HeldOut(self.reader, spread(self.held_tokens, limit), self._held_batch)

    def fit(
        self,
        *,
        until: int | None = None,
        on_step: Callable[[int], None] | None = None,
        on_numbers: Callable[[int, Mapping[str, float]], None] | None = None,
        on_policy: Callable[[], None] | None = None,
    ) -> None:
        """Train to the end, or to step `until`, from where the run stands. Every rank calls, with the same `until`.

        Args:
            until: stop after this step, as a kill between two steps would (what was not saved is lost).
            on_step: called with each step done.
            on_numbers: called on rank 0 with (step, numbers) for what is logged, ``train/...`` or ``held/...``.
            on_policy: called after each policy file and its checkpoint; an evaluation in it needs every rank.

        Raises:
            DivergedError: a gradient that is not finite.
            SampleError, AbsentError: a sample that cannot be read, or (GRPO) not scored.
        """
        config, end = self.config, self.total if until is None else min(until, self.total)
        if self.step >= end:
            return

        def report(part: str, numbers: Mapping[str, float]) -> None:
            if on_numbers is not None and distributed.rank() == 0:
                on_numbers(self.step, {f"{part}/{name}": value for name, value in numbers.items()})

        held = self.held_batches(config.evaluate_limit)
        batches = batches_of(self.stream, self._collate, config.optimiser.accumulate, self.device)
        began, since = time.perf_counter(), self.step
        with self._checkpoints:
            while self.step < end:
                self._advance(batches)
                self.step += 1
                if on_step is not None:
                    on_step(self.step)
                if self.step % config.log_every == 0:
                    report("train", self._numbers(self.step - since, time.perf_counter() - began))
                policy = self._policy_path()
                if self.step % config.evaluate_every == 0 or policy is not None:
                    report("held", self._held(held))
                if policy is not None:
                    self._save_policy(policy)
                if self.step % config.save_every == 0 or policy is not None:
                    self.save()
                if policy is not None and on_policy is not None:
                    on_policy()
        batches.close()

    def _collate(self, examples: Sequence[Example]) -> Batch:
        """A training batch, ready for the device; in the stream's threads."""
        return self.model.student.prepare(collate(examples))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _clipped(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """See `optimiser.clipped`."""
        config = self.config.optimiser
        return clipped(self.model, config.clip, self.step, numbers, checkpoint.latest(self._folder))

    def save(self) -> None:
        """Begin to write a checkpoint of this step, which lets go of old ones. Every rank calls."""
        rest = self._common() | {"step": self.step, "stream": self.stream.state_dict(), **self._state()}
        self._checkpoints.save(self.step, self.model, self._optimiser, rest)

    def _save_policy(self, path: Path) -> None:
        weights = checkpoint.parts_of(checkpoint.weights_of(self.model))
        self._checkpoints.wait()
        content = self._common() | weights | {"step": self.step} | self._policy_extra()
        checkpoint.save(path, content, self._checkpoints.group)

    def _common(self) -> dict[str, Any]:
        return self._describe() | {
            "dataset": self.dataset.digest,
            "held_out": list(self.held_tokens),
            "notices": self.notices,
        }


def batches_of(
    stream: ShardStream, collate: Callable[[Sequence[Example]], Batch], accumulate: int, device: torch.device
) -> Batches:
    """Whole batches of this rank without end, epoch after epoch; the cursor moves when one is handed out.

    An epoch ends with the last whole step (`accumulate` batches of every rank) that is in it, so that the samples of a
    step are the same however many ranks and batches share it.
    """
    together = stream.config.batch_size * distributed.world_size()
    while True:
        steps = (stream.size - stream.start) // (together * accumulate)
        read = stream.batches(collate=collate, pin_memory=device.type == "cuda", drop_last=True)
        for batch in islice(read, steps * accumulate):
            stream.advance(together)
            yield batch
        stream.set_epoch(stream.epoch + 1)
