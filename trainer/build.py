"""From a config, or from what a stage left, to a student: the one place that knows which students there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from questions.controls import said
from questions.units import Prompt as Question
from trainer import checkpoint, thoughts
from trainer.answers.base import Answers
from trainer.answers.motion import MotionAnswers, MotionConfig
from trainer.answers.text import TextAnswers
from trainer.answers.words import Words
from trainer.config import AnswerConfig, SFTConfig, StudentConfig
from trainer.latents import Statistics
from trainer.students.base import Student
from trainer.students.hf import load, load_tokenizer
from trainer.students.hf_config import HFConfig
from trainer.students.tiny import TinyStudent, told


def make_answers(
    config: AnswerConfig, student: StudentConfig, drives: Callable[[], tuple[Tensor, Tensor]], steps: int
) -> Answers:
    """What a student will say; `drives` gives training futures [n, S, 3] and status [n, H, 7] where they are needed."""
    if isinstance(config, MotionConfig):
        return MotionAnswers.fit(*drives(), config)
    return _text(steps, config.digits, student)


def restore_answers(state: Mapping[str, Any], student: StudentConfig) -> Answers:
    """The inverse of `Answers.state`."""
    if state["kind"] == "motion":
        return MotionAnswers(
            state["motions"],
            state["steps"],
            state["smoothing"],
            state["relative"],
            regression=state["regression"],
            expected=state["expected"],
        )
    return _text(state["steps"], state["digits"], student)


def _text(steps: int, digits: int, student: StudentConfig) -> TextAnswers:
    if not isinstance(student, HFConfig):
        return TextAnswers(steps, digits)
    tokenizer = load_tokenizer(student)
    return TextAnswers(
        steps,
        digits,
        encoder=lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        decoder=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        vocabulary=len(tokenizer),
        end=tokenizer.eos_token_id,
    )


def make_student(
    config: StudentConfig,
    answers: Answers,
    counts: Mapping[str, int],
    *,
    views: int,
    history: int,
    words: Words | None = None,
    thinks: bool = False,
    unread: bool = False,
) -> Student:
    """A student with the weights that it begins with (torch's global seed decides the random ones).

    `words` are a tiny student's, if it is asked questions or thinks in text; a large one has its tokenizer's. With
    `unread`, weights that lie on a disk are left there, see `Student.unread`.
    """
    if isinstance(config, HFConfig):
        student: Student = load(config, answers, counts, unread=unread)
    else:
        student = TinyStudent(config, answers, counts, views=views, history=history, words=words)
    if thinks and student.words is not None:
        student.thinks = student.words.encode([thoughts.WIDEST]).shape[1]
    return student


def make_words(config: StudentConfig, questions: Sequence[Question], *, thinks: bool = False) -> Words | None:
    """What a tiny student reads and says: the pieces of all questions that it is trained on, of their answers, and of
    its thoughts in text.
    """
    texts = [text for question in questions for text in (told(question), said(question.answer))]
    if isinstance(config, HFConfig) or not (texts or thinks):
        return None
    if thinks:
        return Words.fit([*texts, *thoughts.PHRASES], thoughts.LENGTH, reads=bool(texts))
    return Words.fit(texts)


def restore_words(
    state: Mapping[str, Any] | None, config: StudentConfig | None = None, *, thinks: bool = False
) -> Words | None:
    """The inverse of `Words.state`, of a policy that was trained on questions, or of one that was not."""
    if state and state["pieces"]:
        return Words.of_pieces(state["pieces"], *([thoughts.LENGTH] if thinks else []))
    return None if config is None else make_words(config, (), thinks=thinks)


@dataclass(frozen=True, slots=True)
class Policy:
    """What drives: a student, without adapters.

    Attributes:
        student: in eval mode, on the CPU.
        config: of the run that made it.
        table_stage: whose allow table holds.
        history: H, status steps that it was trained with.
        notices: what has to be said of it (synthetic frames, random teachers).
        held_out: tokens of the samples that it was not trained on.
    """

    student: Student
    config: SFTConfig
    table_stage: int
    history: int
    notices: tuple[str, ...]
    held_out: tuple[str, ...]


def load_policy(path: Path) -> Policy:
    """The policy of a file that a run left (``stage_2.pt``, ``policy.pt``); adapters are not read.

    Raises:
        MissingFileError, DatasetError: there is none, or it is damaged.
    """
    return policy_of(checkpoint.load(path))


def policy_of(content: Mapping[str, Any]) -> Policy:
    """The policy of the content of such a file.

    Raises:
        DatasetError: weights of another student than its recipe's.
    """
    config, student = SFTConfig.model_validate_json(content["config"]), student_of(content)
    checkpoint.load_weights(student, content["student"])
    return Policy(
        student=student.eval(),
        config=config,
        table_stage=content["table_stage"],
        history=content["history"],
        notices=tuple(content["notices"]),
        held_out=tuple(content["held_out"]),
    )


def student_of(content: Mapping[str, Any], *, unread: bool = False) -> Student:
    """The student of the content of such a file, with the weights that it began with; see `make_student`."""
    config = SFTConfig.model_validate_json(content["config"])
    answers = restore_answers(content["answers"], config.student)
    return make_student(
        config.student,
        answers,
        config.counts,
        views=len(config.samples.pictures),
        history=content["history"],
        words=restore_words(content.get("words"), config.student, thinks=config.thought == "text"),
        thinks=config.thought == "text",
        unread=unread,
    )


def restore_statistics(content: Mapping[str, Any]) -> dict[str, Statistics]:
    """Latent kind -> what standardises its targets, of the content of a checkpoint or a policy file."""
    return {kind: Statistics(**stored) for kind, stored in content["statistics"].items()}
