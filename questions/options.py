"""Right answers and their options, by SURDS' rules: ties, compass words, ranges of depth.

Distances are in metres; a camera's axes are x right, z forward.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

DIAGONAL = ("Northeast", "Southeast", "Northwest", "Southwest")
CARDINAL = ("East", "South", "West", "North")
"""In the order that they are shuffled from."""
COMPASS = ("North", "Northeast", "East", "Southeast", "South", "Southwest", "West", "Northwest")
OPPOSITE = {name: COMPASS[(i + 4) % 8] for i, name in enumerate(COMPASS)}

SAME = "Almost the same"
SAME_ROW = "Almost the same in terms of front-back position"
YES, NO = "Yes", "No"

Range = tuple[int, int]


FASTER, SLOWER, STEADY, STOOD = "It sped up", "It slowed down", "It kept its speed", "It stood"
LEFT, RIGHT, STRAIGHT = "To the left", "To the right", "It did not turn"
NEXT = {
    FASTER: "It will speed up", SLOWER: "It will slow down", STEADY: "It will keep its speed", STOOD: "It will stand",
    LEFT: "It will turn to the left", RIGHT: "It will turn to the right", STRAIGHT: "It will not turn",
}  # fmt: skip
"""The same of what comes."""
SAME_GAP = "Almost the same distance"


class Answers(NamedTuple):
    """Options, and the right one of each side."""

    options: tuple[str, ...]
    right: tuple[str, ...]


def option(desc: str) -> str:
    """An object as an option: its first letter is a capital, and no other is."""
    return f"the {desc}".capitalize()


def distances(first: str, second: str, a: float, b: float, tie: float = 1.0) -> Answers:
    """Which is closer, which is farther; the same up to `tie` metres, which counts as the same."""
    return _ordered(first, second, None if abs(a - b) <= tie else a < b)


def columns(first: str, second: str, a: float, b: float, tie: float = 100.0) -> Answers:
    """Which is further left, which is further right, by their x [px]; the same below `tie` pixels."""
    return _ordered(first, second, None if abs(a - b) < tie else a < b)


def _ordered(first: str, second: str, first_is_less: bool | None) -> Answers:
    options = (option(first), option(second), SAME)
    if first_is_less is None:
        return Answers(options, (SAME, SAME))
    return Answers(options, options[:2] if first_is_less else options[1::-1])


def rows(a: float, b: float, tie: float = 0.5) -> Answers:
    """Is the first in front of the second, is it behind, by depth: in front is FARTHER; the same below `tie` metres."""
    options = (YES, NO, SAME_ROW)
    if abs(a - b) < tie:
        return Answers(options, (SAME_ROW, SAME_ROW))
    return Answers(options, (YES, NO) if a > b else (NO, YES))


def faster(first: str, second: str, first_is: bool | None) -> Answers:
    """Which is faster, which is slower; None: almost the same."""
    return _ordered(first, second, first_is)


def either(first: str, second: str, *, is_first: bool) -> Answers:
    """Which of two it is, which it is not."""
    options = (option(first), option(second))
    return Answers(options, options if is_first else options[::-1])


def yes_no(answer: bool | None = None, same: str | None = None) -> Answers:
    """Whether it is so, whether it is the contrary; `same`: neither may be, and is where `answer` is None."""
    options = (YES, NO) if same is None else (YES, NO, same)
    if same is not None and answer is None:
        return Answers(options, (same, same))
    return Answers(options, (YES, NO) if answer else (NO, YES))


def facings(word: str, generator: random.Random) -> Answers:
    """Where an object faces if the camera faces north, and if it faces south; both shuffles are drawn, one is used.

    Raises:
        KeyError: `word` is none of `COMPASS`.
    """
    opposite = OPPOSITE[word]
    shuffled = [generator.sample(words, 4) for words in (DIAGONAL, CARDINAL)]
    return Answers(tuple(next(words for words in shuffled if word in words)), (word, opposite))


def compass(x: float, z: float) -> str:
    """The word for a direction in the camera frame, for a camera that faces north: sectors of 45 degrees."""
    return COMPASS[int(((math.degrees(math.atan2(x, z)) + 22.5) % 360) // 45)]


def depth_ranges(depth: float, generator: random.Random) -> tuple[Range, Range, Range]:
    """The right range of SURDS, then two others.

    The right one is 5 to 7 m wide and the others 2 to 4, so the widest is right: text alone answers the question.
    """
    width = generator.uniform(6, 7)
    low, high = max(1, round(depth - width / 2)), round(depth + width / 2)

    def above(end: int) -> Range:
        start = end + generator.randint(1, 2)
        return start, start + generator.randint(3, 4)

    def below(start: int, floor: int | None) -> Range:
        end = start - generator.randint(1, 2)
        begin = end - generator.randint(3, 4)
        return (begin if floor is None else max(floor, begin)), end

    if depth < 7:
        second = above(high)
        return (low, high), second, above(second[1])
    if depth > 15:
        second = below(low, None)
        return (low, high), second, below(second[0], 1)
    second = below(low, 1)
    return (low, high), second, above(high)


def speed_text(ends: Range) -> str:
    """ "Between 4 and 6 meters per second"."""
    return "Between {} and {} meters per second".format(*ends)


def range_text(ends: Range) -> str:
    """ "Between 1 meter and 5 meters"."""
    return "Between {} {} and {} {}".format(*(part for n in ends for part in (n, "meter" if n <= 1 else "meters")))
