"""Questions on disk: `units.jsonl`, one line a prompt. This is the contract between who makes, who asks and who scores.

A unit is what is scored: one prompt, or two about the same truth ("Which is closer?", "Which is farther?") that only
count together. Both lines of a pair have the same `unit` and differ in `side`. `KINDS` says of each category how its
answers are scored; a new kind is a row there.

    {"unit": "fb-0a1b2c3d4e5f6071-7-12", "side": 1, "category": "fb", "benchmark": "shards-spatial", "style": "fair",
     "split": "evaluation", "token": "0a1b2c3d4e5f6071", "log": "2021.05.12...", "views": ["cam_f0"],
     "size": [1920, 1080], "objects": [{"desc": "red lorry", "box2d": [612, 540, 790, 662], ...}, ...],
     "question": "Is the red lorry in front of ...?", "options": ["Yes", "No", "Almost the same ..."], "answer": "Yes"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator

from shards_schema.errors import ConfigError, DatasetError, MissingFileError, StoreError
from shards_schema.inputs import documents
from shards_schema.inputs.models import StrictModel
from shards_schema.inputs.refusals import problems

Metric = Literal["choice", "point", "place"]
"""choice: one of the options; point: pixels in the object's box, scored by centerness; place: metres in the car's
frame, right within a tolerance."""
Part = Literal["", "observed", "forecast"]
"""Of a benchmark: what frames up to now show, or what came after; the logged future is one of several."""


_SLACK = 0.1
"""Seconds: frames are not to the millisecond where they should be."""


@dataclass(frozen=True)
class Kind:
    """One category of questions.

    Attributes:
        sides: prompts a unit: 2 for a pair, which scores 1 only where both answers are right.
        metric: how one answer is scored.
        sides_ask: a word for what each side asks.
        same: whether "almost the same" is an answer, which is the last option.
        part: of the benchmark; "": it has none.
        of_ego: whether it is about the car itself, and so about no object.
        back: seconds before now from which on it has to be shown what happened.
    """

    sides: int
    metric: Metric
    sides_ask: tuple[str, ...] = ("",)
    same: bool = False
    part: Part = ""
    of_ego: bool = False
    back: float = 0.0


KINDS: dict[str, Kind] = {
    "yaw": Kind(2, "choice", ("camera faces north", "camera faces south")),
    "xy2d": Kind(1, "point"),
    "depth": Kind(1, "choice"),
    "dis": Kind(2, "choice", ("closer", "farther"), same=True),
    "lr": Kind(2, "choice", ("left", "right"), same=True),
    "fb": Kind(2, "choice", ("in front of", "behind"), same=True),
    "ego_speed": Kind(1, "choice", part="observed", back=1.5, of_ego=True),
    "ego_turn": Kind(1, "choice", part="observed", back=1.5, of_ego=True),
    "moves": Kind(2, "choice", ("moving", "standing"), part="observed", back=1.0),
    "heading_motion": Kind(2, "choice", ("camera faces north", "camera faces south"), part="observed", back=1.0),
    "closing": Kind(2, "choice", ("closer", "farther"), same=True, part="observed", back=1.0),
    "faster": Kind(2, "choice", ("faster", "slower"), same=True, part="observed", back=1.0),
    "speed_range": Kind(1, "choice", part="observed", back=1.0),
    "ego_next": Kind(1, "choice", part="forecast", of_ego=True),
    "where_later": Kind(1, "place", part="forecast"),
    "gap_later": Kind(2, "choice", ("larger", "smaller"), same=True, part="forecast"),
    "first": Kind(2, "choice", ("nearer", "less near"), part="forecast"),
}
"""SURDS' six in the order of its own files, then those that ask about motion."""


class Target(StrictModel):
    """An object that a question is about."""

    model_config = ConfigDict(allow_inf_nan=False)

    desc: str
    """What it is called, without an article."""
    box2d: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the image."""
    p_cam: tuple[float, float, float]
    """Its centre in the camera frame [m]: x right, y down, z forward."""
    track: str | None = None
    """Its track in the log; None of an image without one."""


class PastFrame(StrictModel):
    """A frame before now."""

    token: str
    """Of the frame."""
    seconds: float
    """From now; negative."""
    back: int | None = None
    """Which of the scene's own images of before now shows it (`layout.past_image`); None: none does."""


class Prompt(StrictModel):
    """One question to one picture, or to one and those before it."""

    model_config = ConfigDict(allow_inf_nan=False)

    unit: str
    """The unit's id; both prompts of a pair have it."""
    side: Literal[1, 2] = 1
    """1, or 2 for the second prompt of a pair."""
    category: str
    """A key of `KINDS`."""
    benchmark: str
    """Whose questions these are: ``surds``, ``shards-spatial``, ..."""
    style: Literal["official", "fair"]
    """Whose rules made the options: ``official`` or ``fair``."""
    split: Literal["train", "evaluation"]
    """``train``, or ``evaluation``: then nothing may learn from it (`refuse_training`)."""
    token: str
    """Of the scene; of SURDS the image's name without its ending."""
    log: str | None = None
    """Of the scene; None where none is known."""
    views: tuple[str, ...] = Field(min_length=1)
    """The cameras that are shown."""
    images: tuple[str, ...] = ()
    """Where they lie in the folder that was imported; none for the images of a dataset of ours."""
    size: tuple[PositiveInt, PositiveInt]
    """Width, height [px] that coordinates and boxes are of."""
    objects: tuple[Target, ...]
    """What is asked about, in the order of the question."""
    question: str
    """The question alone."""
    options: tuple[str, ...] = ()
    """The choices, as the answer has to say them; none for a point."""
    answer: str
    """The right one; of a point, a right one."""
    value: float | None = None
    """The number behind a range [m, m/s], where the options are ranges."""
    past: tuple[PastFrame, ...] = ()
    """The frames before now that belong to a question about motion, oldest first; their pictures are of `views`."""
    tolerance: float | None = None
    """How far from the truth a place may be [m]."""
    index: int | None = None
    """The prompt's place in the official file of its category, by which official outputs name it."""
    text: str | None = None
    """The whole prompt, where it was given word by word; None is `questions.wording.whole`."""
    left_out: str | None = None
    """Why the unit is not asked, in a word (``ambiguous``); it keeps its line, so that nothing is missing."""

    @model_validator(mode="after")
    def _whole(self) -> Prompt:
        kind = KINDS.get(self.category)
        if kind is None:
            raise ValueError(f"category {self.category!r}: expected one of {', '.join(KINDS)}")
        if self.side > kind.sides:
            raise ValueError(f"side {self.side} of {self.category}, whose units have one prompt")
        if kind.metric == "choice" and self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options {list(self.options)}")
        if kind.of_ego == bool(self.objects):
            raise ValueError("an object, and it asks about the car itself" if kind.of_ego else "no object")
        if kind.metric == "place" and self.tolerance is None:
            raise ValueError("no tolerance")
        return self

    @property
    def kind(self) -> Kind:
        """How it is scored."""
        return KINDS[self.category]

    def shown_past(self, has: Callable[[PastFrame], bool]) -> tuple[PastFrame, ...] | None:
        """The frames before now that can be shown: those that one `has`, back to the first that one has not.

        None where the question has to be shown more: an observed kind cannot be asked then.
        """
        shown = tuple(takewhile(has, reversed(self.past)))[::-1]
        needed = sum(-frame.seconds <= self.kind.back + _SLACK for frame in self.past)
        return None if len(shown) < needed or (self.kind.part == "observed" and not needed) else shown

    @property
    def group(self) -> str:
        """What it is not independent of: its log, or its image where no log is known."""
        return self.log or self.token


def units_of(prompts: Iterable[Prompt], where: str = "units") -> dict[str, tuple[Prompt, ...]]:
    """The prompts of each unit by side, units in the order of their first prompt.

    Raises:
        DatasetError: a side is missing or twice there, or the sides are of different categories.
    """
    found: dict[str, dict[int, Prompt]] = {}
    for prompt in prompts:
        if prompt.side in found.setdefault(prompt.unit, {}):
            raise DatasetError(f"{where}: side {prompt.side} of unit {prompt.unit} is there twice")
        found[prompt.unit][prompt.side] = prompt
    out = {name: tuple(sides[side] for side in sorted(sides)) for name, sides in found.items()}
    for name, sides in out.items():
        if len({p.category for p in sides}) > 1 or len(sides) != sides[0].kind.sides:
            raise DatasetError(
                f"{where}: unit {name} has the prompts {', '.join(f'{p.category} {p.side}' for p in sides)}; a unit "
                f"of {sides[0].category} has {sides[0].kind.sides}"
            )
    return out


def refuse_training(prompts: Iterable[Prompt], where: str) -> None:
    """Refuse to learn from questions that are there to evaluate.

    Raises:
        ConfigError: one of them is.
    """
    held = sorted({f"{p.benchmark} {p.split}" for p in prompts if p.split != "train"})
    if held:
        raise ConfigError(
            f"{where}: holds units of {', '.join(held)}; nothing may be trained on these: give units of a train split"
        )


def read_units(path: Path) -> list[Prompt]:
    """The prompts of a unit file, checked.

    Raises:
        MissingFileError, StoreError: it is not there, or cannot be read.
        DatasetError: it is no unit file, or a unit in it is not whole.
    """
    out = []
    for number, row in read_rows(path):
        try:
            out.append(Prompt.model_validate(row))
        except ValidationError as error:
            told = "; ".join(problems(error.errors(), Prompt))
            raise DatasetError(f"{path}, line {number}: no prompt of a unit: {told}") from error
    if not out:
        raise DatasetError(f"{path}: holds no unit")
    units_of(out, str(path))
    return out


def units_text(prompts: Sequence[Prompt]) -> str:
    """A unit file's text."""
    return "".join(json.dumps(p.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n" for p in prompts)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The mappings of a JSON list or of JSON lines, with their numbers (lines from 1, items of a list from 0).

    Raises:
        MissingFileError, StoreError: it is not there, or cannot be read.
        DatasetError: it is neither.
    """
    try:
        data = documents.read(path, documents.JSON_BYTES).removeprefix(b"\xef\xbb\xbf")
        if data.lstrip()[:1] == b"[":
            rows = list(enumerate(documents.parse_json(data)))
        else:
            rows = [(n, _line(line, n)) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {path}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except documents.UnreadableError as error:
        raise DatasetError(f"{path}: {error}") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise DatasetError(f"{path}: entry {number} is {type(row).__name__}, expected a mapping")
        yield number, row


def _line(line: bytes, number: int) -> Any:
    try:
        return documents.parse_json(line)
    except documents.UnreadableError as error:
        told = str(error).replace("line 1 column", "column")
        raise documents.UnreadableError(
            f"line {number} {told}; expected a JSON list, or on each line a mapping (unpacked, and not cut)"
        ) from None
