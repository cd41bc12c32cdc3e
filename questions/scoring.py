"""Scores of units, and what has to be said beside them. No figure here is a mean over nothing: it is None then.

planned = scored + unanswered, in prompts. A unit counts 1 (or its centerness) where all of its prompts are right. The
official score divides by all units, whether answered or not; Xiaomi's by those that have outputs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from questions import controls
from questions.answers import Coordinates, Reading, Rules, read, tags
from questions.outputs import Key, Output, unanswered
from questions.units import KINDS, Prompt, units_of
from shards_schema.errors import ConfigError

BANDS = {"depth": ((0.0, 10.0, 20.0, 30.0, math.inf), "m"), "speed_range": ((0.0, 3.0, 6.0, 10.0, math.inf), "m/s")}
"""Category -> the bands of its true value, and its unit."""


@dataclass(frozen=True)
class UnitScore:
    """One unit, scored.

    Attributes:
        prompts: its prompts, by side.
        readings: of each prompt; None where it has no output.
        chance: what a uniform answerer scores on it in the mean.
    """

    prompts: tuple[Prompt, ...]
    readings: tuple[Reading | None, ...]
    chance: float

    @property
    def category(self) -> str:
        """Of both prompts."""
        return self.prompts[0].category

    @property
    def answered(self) -> bool:
        """Whether each prompt has an output."""
        return None not in self.readings

    @property
    def valid(self) -> bool:
        """Whether each output is an answer."""
        return all(r is not None and r.invalid is None for r in self.readings)

    @property
    def score(self) -> float:
        """0..1: the least of its prompts'."""
        return min((r.score for r in self.readings if r is not None), default=0.0) if self.answered else 0.0


@dataclass(frozen=True)
class CategoryScore:
    """The units of one category, or of one camera in it.

    Attributes:
        units: that the score divides by.
        valid: how many of them are valid.
        score: the mean over `units`; None of none.
        score_of_valid: the mean over the valid ones; None of none.
        chance: what a uniform answerer scores; None of none.
        values, groups: of each unit its score, and its log or image, within which units are not independent.
    """

    units: int
    valid: int
    score: float | None
    score_of_valid: float | None
    chance: float | None
    values: tuple[float, ...]
    groups: tuple[str, ...]

    @property
    def corrected(self) -> float | None:
        """(score - chance) / (1 - chance): 0 is chance, 1 is all right."""
        return corrected(self.score, self.chance)


def corrected(score: float | None, chance: float | None) -> float | None:
    """(score - chance) / (1 - chance); None where one is not known."""
    return None if score is None or chance is None else (score - chance) / (1 - chance)


def score_units(
    prompts: Sequence[Prompt],
    outputs: Mapping[Key, Output],
    rules: Rules,
    coordinates: Coordinates = "pixels",
    input_size: tuple[int, int] | None = None,
) -> list[UnitScore]:
    """Read and score every output.

    Raises:
        ConfigError: ``model_input`` and no size, or a size and not ``model_input``.
        DatasetError: a unit is not whole.
    """
    if input_size is not None and coordinates != "model_input":
        raise ConfigError(
            f"coordinates={coordinates} needs no input_size: leave it out, or give coordinates=model_input"
        )

    def reading(prompt: Prompt) -> Reading | None:
        output = outputs.get((prompt.unit, prompt.side))
        if output is None or output.text is None:
            return None
        return read(prompt, output.text, rules, coordinates, output.input_size or input_size)

    return [
        UnitScore(sides, tuple(map(reading, sides)), controls.chance(sides)) for sides in units_of(prompts).values()
    ]


def answered_by(answerer: controls.Answerer, prompts: Sequence[Prompt]) -> list[UnitScore]:
    """The same of an answerer that looks at no picture, by the official rules."""
    return score_units(prompts, {(p.unit, p.side): Output(answerer(p)) for p in prompts}, "official")


def summed(units: Sequence[UnitScore], rules: Rules) -> CategoryScore:
    """Of units of one category."""
    counted = [unit for unit in units if rules == "official" or unit.answered]
    values = tuple(unit.score for unit in counted)
    right = [unit.score for unit in counted if unit.valid]
    return CategoryScore(
        units=len(counted),
        valid=len(right),
        score=mean(values) if values else None,
        score_of_valid=mean(right) if right else None,
        chance=mean(unit.chance for unit in counted) if counted else None,
        values=values,
        groups=tuple(unit.prompts[0].group for unit in counted),
    )


def by_category(units: Sequence[UnitScore], rules: Rules) -> dict[str, CategoryScore]:
    """The categories that there are, in the order of `KINDS`."""
    return _by(units, rules, lambda unit: unit.category, list(KINDS))


def by_camera(units: Sequence[UnitScore], rules: Rules) -> dict[str, dict[str, CategoryScore]]:
    """Camera (or cameras) -> category -> score."""
    cameras = sorted({" ".join(unit.prompts[0].views) for unit in units})
    return {c: by_category([u for u in units if " ".join(u.prompts[0].views) == c], rules) for c in cameras}


def by_distance(units: Sequence[UnitScore], rules: Rules, category: str = "depth") -> dict[str, CategoryScore]:
    """Depth units by true distance (or those of speed, by speed), in bands; the bands that there are."""
    edges, unit = BANDS[category]
    bands = {a: f"{a:.0f}-{b:.0f} {unit}" if b < math.inf else f"over {a:.0f} {unit}" for a, b in pairwise(edges)}

    def band(unit: UnitScore) -> str:
        return bands[max(low for low in bands if low <= max(unit.prompts[0].value or 0.0, 0.0))]

    known = [u for u in units if u.category == category and u.prompts[0].value is not None]
    return _by(known, rules, band, [*bands.values()])


def _by(
    units: Sequence[UnitScore], rules: Rules, key: Callable[[UnitScore], str], order: Sequence[str]
) -> dict[str, CategoryScore]:
    parts: dict[str, list[UnitScore]] = {}
    for unit in units:
        parts.setdefault(key(unit), []).append(unit)
    return {name: summed(parts[name], rules) for name in order if name in parts}


def overall(categories: Mapping[str, CategoryScore]) -> tuple[float | None, float | None]:
    """The plain mean of the categories' scores, and of their chance; None where one has none."""
    scores = [c.score for c in categories.values() if c.score is not None]
    chances = [c.chance for c in categories.values() if c.chance is not None]
    if not categories or len(scores) < len(categories):
        return None, None
    return mean(scores), mean(chances)


def influence(categories: Mapping[str, CategoryScore]) -> tuple[list[float], list[str]]:
    """A value and a group for each unit, whose mean is that of `overall`, for an interval of it.

    A unit of a small category weighs more; what a value differs from the mean by is what it differs by in its category.
    """
    middle = overall(categories)[0] or 0.0
    total = sum(c.units for c in categories.values())
    values: list[float] = []
    groups: list[str] = []
    for category in categories.values():
        weight = total / (len(categories) * max(category.units, 1))
        values += [middle + weight * (v - (category.score or 0.0)) for v in category.values]
        groups += category.groups
    return values, groups


def by_part(categories: Mapping[str, CategoryScore]) -> dict[str, dict[str, CategoryScore]]:
    """Observed and forecast -> their categories; nothing where there are none of both."""
    parts = {part: {n: c for n, c in categories.items() if KINDS[n].part == part} for part in ("observed", "forecast")}
    return parts if all(parts.values()) else {}


def errors(units: Sequence[UnitScore]) -> tuple[float, float] | None:
    """Mean and median distance [m] of the places that were said from the true ones; None of none."""
    found = [r.error for unit in units for r in unit.readings if r is not None and r.error is not None]
    return (mean(found), median(found)) if found else None


def by_side(units: Sequence[UnitScore]) -> dict[str, tuple[float, ...]]:
    """Of paired categories the share of right answers to each prompt alone, over the prompts that have an output."""
    out = {}
    for name, kind in KINDS.items():
        pairs = [unit.readings for unit in units if unit.category == name] if kind.sides > 1 else []
        sides = [[r.score for r in side if r is not None] for side in zip(*pairs, strict=True)]
        if sides and all(sides):
            out[name] = tuple(map(mean, sides))
    return out


def ties(units: Sequence[UnitScore]) -> dict[str, float]:
    """Of categories that know "almost the same", how often it is: what saying so everywhere scores."""
    out = {}
    for name, kind in KINDS.items():
        answers = [u.prompts[0].answer == u.prompts[0].options[-1] for u in units if u.category == name and kind.same]
        if answers:
            out[name] = mean(answers)
    return out


def leaning(units: Sequence[UnitScore]) -> tuple[float, float] | None:
    """Of depth units with a valid answer, the shares whose range lies too near, and too far; None of none."""
    signs = []
    for unit in units:
        said = unit.readings[0].said if unit.category == "depth" and unit.readings[0] is not None else None
        chosen, truth = controls.range_of(said or ""), controls.range_of(unit.prompts[0].answer)
        if chosen and truth:
            signs.append((chosen > truth) - (chosen < truth))
    return (signs.count(-1) / len(signs), signs.count(1) / len(signs)) if signs else None


@dataclass(frozen=True)
class Accounts:
    """planned = scored + unanswered, in prompts.

    Attributes:
        planned, scored: prompts.
        unanswered: reason -> prompts.
        invalid: of those scored, why they are no answer -> prompts.
        several: outputs with more than one answer; the first counts.
    """

    planned: int
    scored: int
    unanswered: Mapping[str, int]
    invalid: Mapping[str, int]
    several: int


def accounts(units: Sequence[UnitScore], outputs: Mapping[Key, Output]) -> Accounts:
    """Of all prompts."""
    readings = [r for unit in units for r in unit.readings]
    prompts = [p for unit in units for p in unit.prompts]
    return Accounts(
        planned=len(readings),
        scored=sum(r is not None for r in readings),
        unanswered=Counter(reason for _, reason in unanswered(prompts, outputs)),
        invalid=Counter(r.invalid for r in readings if r is not None and r.invalid is not None),
        several=sum(tags(output.text or "") > 1 for output in outputs.values()),
    )
