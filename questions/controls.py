"""Answerers that look at no picture: what a score has to be held against.

Each takes a prompt and gives a whole output, so that they are scored as a model is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from math import pi

from questions.units import Prompt

Answerer = Callable[[Prompt], str]

_RANGE = re.compile(r"Between (\d+)(?: meters?)? and (\d+) meters?(?: per second)?")
_AROUND = 60.0
"""Metres to each side of the car within which a uniform answerer says that things will be."""

POINT_IN_BOX = (pi / 2 - 1) ** 2
"""Mean centerness of a uniform point in a box, 0.3258: the square of twice the integral of sqrt(t / (1 - t)) to 1/2."""


def said(answer: str) -> str:
    """An answer as an output."""
    return f"<answer>{answer}</answer>"


def oracle(prompt: Prompt) -> str:
    """The truth; of a point the middle of the box (the object's own point need not be it)."""
    if prompt.kind.metric == "point":
        x1, y1, x2, y2 = prompt.objects[0].box2d
        return said(f"[{(x1 + x2) / 2}, {(y1 + y2) / 2}]")
    return said(prompt.answer)


def uniform(generator: random.Random) -> Answerer:
    """Any option, any pixel, or any place around the car, alike."""

    def answer(prompt: Prompt) -> str:
        if prompt.kind.metric == "point":
            return said(str([generator.randrange(n) for n in prompt.size]))
        if prompt.kind.metric == "place":
            return said(str([round(generator.uniform(-_AROUND, _AROUND), 1) for _ in "xy"]))
        return said(generator.choice(prompt.options))

    return answer


def chosen(choice: Callable[[tuple[str, ...]], str]) -> Answerer:
    """By a rule that reads the options alone; for a point the middle of the image, for a place one ahead."""

    def answer(prompt: Prompt) -> str:
        if prompt.kind.metric == "point":
            return said(str([n // 2 for n in prompt.size]))
        if prompt.kind.metric == "place":
            return said("[15, 0]")
        return said(choice(prompt.options))

    return answer


def steady(prompt: Prompt) -> str:
    """Always of one mind: the first option, and to the other prompt of a pair the one that agrees with it."""
    return chosen(lambda options: options[prompt.side - 1])(prompt)


def range_of(option: str) -> tuple[int, int] | None:
    """The ends of "Between A meters and B meters", or of speeds; None of another option."""
    found = _RANGE.fullmatch(option)
    return (int(found[1]), int(found[2])) if found else None


def widest(options: tuple[str, ...]) -> str:
    """The widest range; of ranges of one width, and of what is no range, the first option."""
    return max(options, key=lambda option: -(ends[0] - ends[1]) if (ends := range_of(option)) else 0)


def by_place(place: int) -> Callable[[tuple[str, ...]], str]:
    """The lowest range (0), the middle one, the highest (-1)."""
    return lambda options: sorted(options, key=lambda option: range_of(option) or (0, 0))[place]


def chance(prompts: tuple[Prompt, ...]) -> float:
    """What `uniform` scores on a unit in the mean."""
    out = 1.0
    for prompt in prompts:
        if prompt.kind.metric == "point":
            x1, y1, x2, y2 = prompt.objects[0].box2d
            out *= POINT_IN_BOX * (x2 - x1) * (y2 - y1) / (prompt.size[0] * prompt.size[1])
        elif prompt.kind.metric == "place":
            out *= pi * (prompt.tolerance or 0.0) ** 2 / (2 * _AROUND) ** 2
        else:
            out /= len(prompt.options)
    return out
