"""Questions beside drives: what a run reads of a unit file, and which questions a step has.

A question is an example that is asked about, in the place of status and command, and whose answer is words. Its scene
may lack a teacher's column: then its targets are NaN, and it trains what it has (`losses.alignment_known`).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from pipeline.reading.reader import Dataset
from pipeline.stores.disk import wrap_read_errors
from pipeline.stores.places import LocalPath
from questions.controls import said
from questions.units import Prompt, read_units, refuse_training, units_of
from shards_schema import layout
from shards_schema.errors import ConfigError, MissingFileError, SampleError
from shards_schema.inputs.models import StrictModel
from trainer import distributed, seeds
from trainer.batch import ANSWERS, Batch, Example, collate
from trainer.data import DataConfig, ExampleMaker, as_seen
from trainer.latents import TargetConfig
from trainer.splits import logs_of
from trainer.students.base import Student


class QuestionsConfig(StrictModel):
    """Questions that are trained on beside the drives."""

    units: LocalPath
    """The unit file, of a train split."""
    surds: LocalPath | None = None
    """The folder of SURDS, for its units; null: the units are of the run's dataset."""
    share: float = Field(default=1.0, gt=0, le=64)
    """Questions a drive, in each batch."""
    weight: float = Field(default=1.0, ge=0)
    """Of their loss, beside that of the drives."""


class QuestionReader:
    """A question -> an `Example`.

    Args:
        dataset: open with `samples` and the columns of `targets`; of SURDS' units it may be None.
        config: views and image size of the student.
        targets: latent kind -> what it is aligned to; empty where nothing is trained.
        other: see `ExampleMaker`.
        surds: the folder of SURDS, where the questions are of it.
        grey: all pixels are 128.

    Raises:
        ConfigError: neither of dataset and SURDS; SURDS, which has one picture, and a student that sees several; what
            `ExampleMaker` refuses.
    """

    def __init__(
        self,
        dataset: Dataset | None,
        config: DataConfig,
        targets: Mapping[str, TargetConfig] | None = None,
        other: Mapping[str, str] | None = None,
        *,
        surds: Path | None = None,
        grey: bool = False,
    ) -> None:
        if dataset is None and surds is None:
            raise ConfigError("give one of data=DATASET and surds=DIR: where the images of the units are")
        if surds is not None and len(config.pictures) != 1:
            raise ConfigError(f"SURDS has one picture a question; this student sees {', '.join(config.pictures)}")
        self._config, self._surds, self._grey = config, surds, grey
        self._tokens = frozenset() if dataset is None else frozenset(dataset.tokens(layout.SAMPLES))
        self._kinds: dict[str, frozenset[str]] = {}
        self._missing: dict[str, NDArray[np.float32]] = {}
        if dataset is not None:

            @lru_cache
            def maker(kinds: tuple[str, ...]) -> ExampleMaker:
                wanted = {kind: (targets or {})[kind] for kind in kinds}
                return ExampleMaker(dataset, config, wanted, other, grey=grey)

            self._maker = maker
            maker(())  # what the dataset cannot give is told before anything is asked
            for kind, target in (targets or {}).items():
                self._kinds[kind] = frozenset(dataset.tokens(layout.SAMPLES, target.column))
                shape = (target.latents, maker((*(targets or {}),)).channels(kind))
                self._missing[kind] = np.full(shape, np.nan, dtype=np.float32)

    def why_not(self, question: Prompt) -> str | None:
        """Why a question cannot be asked of this student, in a word; None: it can."""
        if question.left_out is not None:
            return question.left_out
        if self._surds is not None:
            return _why_no_picture(self._surds, question)
        if question.token not in self._tokens:
            return "no_scene"
        seen = question.shown_past(lambda frame: frame.back is not None and frame.back <= self._config.history)
        if question.kind.part == "observed" and seen is None:
            return "unseen_past"
        return None if {*question.views} <= {*self._config.views} else "unseen_view"

    def __call__(self, question: Prompt) -> Example:
        """Its pictures are those of all views, and its text says which one is meant.

        Raises:
            MissingFileError, SampleError: there is no such picture, or none that can be decoded.
        """
        views, frames = self._config.views, 1 + self._config.history
        if self._surds is not None:
            example = self._of_surds(self._surds, question)
        else:
            example = self._maker(tuple(kind for kind, have in self._kinds.items() if question.token in have)).read(
                question.token
            )
            if len(views) > 1:
                places = " and ".join(str((views.index(view) + 1) * frames) for view in question.views)
                asked = f"Of pictures 1 to {len(views) * frames}, about {places}: {question.question}"
                question = question.model_copy(update={"question": asked})
        return replace(example, targets={**self._missing, **example.targets}, question=question)

    def picture(self, question: Prompt) -> NDArray[np.uint8]:
        """What the student sees of it now: RGB, uint8 [h, w, 3], of the first view that it is about."""
        at = 0 if self._surds is not None else self._config.pictures.index(question.views[0])
        return np.ascontiguousarray(self(question).images[at].transpose(1, 2, 0))

    def _of_surds(self, folder: Path, question: Prompt) -> Example:
        """A picture alone: no status, no future, no target."""
        path = folder / question.images[0]
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                seen = as_seen(np.array(image.convert("RGB")), self._config.image)
        except FileNotFoundError:
            raise MissingFileError(f"unit {question.unit}: there is no image {path}") from None
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise SampleError("image_damaged", f"unit {question.unit}: {path}: {error}") from error
        return Example(
            token=question.token,
            images=np.full_like(seen, 128)[None] if self._grey else seen[None],
            status=np.zeros((1, 7), dtype=np.float32),
            command=0,
            future=np.full((self._config.steps, 3), np.nan, dtype=np.float32),
            targets={},
        )


def _why_no_picture(surds: Path, question: Prompt) -> str | None:
    if not question.images:
        return "no_scene"  # it is of a dataset
    path = surds / question.images[0]
    try:
        with wrap_read_errors(str(path)):
            path.stat()
    except MissingFileError:
        return "image_missing"
    return None


def training_questions(
    config: QuestionsConfig,
    reader: QuestionReader,
    dataset: Dataset,
    held: Sequence[str],
    tell: Callable[[str], None],
) -> list[Prompt]:
    """The questions that a run may learn from.

    Args:
        config: which.
        reader: of the run.
        dataset: of the run.
        held: tokens that the run holds out.
        tell: is told how many there are, and how many are not asked, and why.

    Raises:
        ConfigError: units of an evaluation split, or of a log that the run holds out; none that can be asked.
        MissingFileError, StoreError, DatasetError: see `read_units`.
    """
    every = read_units(config.units)
    refuse_training(every, str(config.units))
    logs = {} if config.surds else logs_of(dataset)
    held_logs = {logs[token] for token in held if token in logs}
    within = {logs.get(q.token, q.log or "") for q in every} & held_logs
    if within:
        raise ConfigError(
            f"{config.units}: has units of {len(within)} logs that this run holds out ({min(within)}); make them with "
            "the run's own held_out, split_seed, and columns (docs/questions.md)"
        )
    return _usable(every, config.units, reader, tell)


def held_questions(path: Path, reader: QuestionReader, taught: Set[str], tell: Callable[[str], None]) -> list[Prompt]:
    """The questions that a run is scored by.

    Args:
        path: the unit file.
        reader: of the run.
        taught: tokens of all scenes that the run learns from.
        tell: see `training_questions`.

    Raises:
        ConfigError: units of scenes that the run learns from; none that can be asked.
        MissingFileError, StoreError, DatasetError: see `read_units`.
    """
    asked = _usable(read_units(path), path, reader, tell)
    if seen := sorted({question.token for question in asked} & taught):
        raise ConfigError(
            f"{path}: has units of {len(seen)} scenes that this run learns from ({seen[0]}); give those of the logs "
            "that it holds out, made with its held_out, split_seed, and columns (docs/questions.md)"
        )
    return asked


def _usable(every: Sequence[Prompt], path: Path, reader: QuestionReader, tell: Callable[[str], None]) -> list[Prompt]:
    """Those that can be asked."""
    reasons = [(question, reader.why_not(question)) for question in every]
    usable = [question for question, reason in reasons if reason is None]
    left = Counter(reason for _, reason in reasons if reason is not None)
    if not usable:
        raise ConfigError(f"{path}: no question can be asked: {', '.join(f'{w} {n}' for w, n in left.items())}")
    tell(f"{len(usable)} questions of {path}" + "".join(f", {n} not asked ({why})" for why, n in sorted(left.items())))
    return usable


class QuestionBatches:
    """The questions of each step: an order by seed and epoch, dealt to steps, batches and ranks; made one ahead.

    Args:
        questions: to ask.
        read: makes examples.
        student: prepares them, and says what answers are made of.
        drives: of a batch of this rank.
        share: questions a drive.
        accumulate: batches a step.
        seed: of the order.
        whole: units are dealt, with all of their prompts; `share` counts them then.
    """

    def __init__(
        self,
        questions: Sequence[Prompt],
        read: Callable[[Prompt], Example],
        student: Student,
        *,
        drives: int,
        share: float,
        accumulate: int,
        seed: int,
        whole: bool = False,
    ) -> None:
        self._dealt = [*units_of(questions).values()] if whole else [(question,) for question in questions]
        self._read, self._student = read, student
        self._size, self._accumulate, self._seed = max(1, round(share * drives)), accumulate, seed
        self._order = lru_cache(2)(self._shuffled)
        self._pool = ThreadPoolExecutor(1, "questions")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def at(self, step: int, part: int) -> Batch:
        """On the CPU, prepared, with answers: batch `part` of optimiser step `step`, of this rank."""
        number = step * self._accumulate + part
        ahead, self._ahead = self._ahead, None
        made = ahead[1] if ahead is not None and ahead[0] == number else self._pool.submit(self._make, number)
        batch = made.result()
        self._ahead = (number + 1, self._pool.submit(self._make, number + 1))
        return batch

    def _make(self, number: int) -> Batch:
        begin = (number * distributed.world_size() + distributed.rank()) * self._size
        places = (divmod(place, len(self._dealt)) for place in range(begin, begin + self._size))
        dealt = (self._dealt[self._order(epoch)[place]] for epoch, place in places)
        batch = self._student.prepare(collate([self._read(question) for some in dealt for question in some]))
        answers = self._student.speech.encode([said(question.answer) for question in batch.asked])
        return replace(batch, prepared={**batch.prepared, ANSWERS: answers})

    def _shuffled(self, epoch: int) -> list[int]:
        generator = seeds.generator("cpu", self._seed, "questions", epoch)
        order: list[int] = torch.randperm(len(self._dealt), generator=generator).tolist()
        return order
