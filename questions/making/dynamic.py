"""Units about motion ("shards-dynamics") that one image and the frames around it could give.

Truth is what the log's tracks did over the ground. Observed kinds ask what frames up to now show, forecast kinds what
came after. An answer is balanced among units whose texts name things of one sort: "pedestrian" says in part how fast.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from questions import options
from questions.making.candidates import Candidate, Named, Pictured
from questions.making.motion import GapError, Motion
from questions.making.rules import Rules
from questions.making.seeing import Seen, see
from questions.options import Answers
from questions.units import KINDS
from shards_schema.lens import Lens
from shards_schema.poses import Float64

DISAGREE = 1.0
"""m/s by which a log's own velocity and its track may differ."""
_AHEAD = 4.0
_BEFORE = (-1.0, -0.5)
"""Seconds from now at which an observed object has to have been seen, once at least."""


def of_image(image: Pictured) -> Iterator[Candidate]:
    """All kinds about motion; none where the motion is not known."""
    motion = image.motion
    if motion is None:
        return
    generator = random.Random(f"{image.rules.seed} {image.document['token']} {image.view} motion")
    if image.view == ("cam_f0" if "cam_f0" in image.document["cameras"] else min(image.document["cameras"])):
        for category, ego in _EGO:
            try:
                yield from ego(image, motion)
            except GapError as gap:
                image.refused[category, str(gap)] += 1
    before = _shown_before(image, motion)
    for seen in image.seen:
        yield from _of_one(image, motion, generator, seen, before)
    for first, second in combinations(image.seen, 2):
        pair = (first, second) if generator.random() < 0.5 else (second, first)
        for category, paired in _PAIRED.items():
            named = image.may(category, *pair)
            if named and not _may_be_known(image, category, pair, before):
                continue
            if named and options.option(named[0][0]) == options.option(named[0][1]):
                image.refused[category, "no_description"] += 1
            elif named:
                yield from _guarded(image, category, partial(paired, image, motion, pair, named))


def _shown_before(image: Pictured, motion: Motion) -> set[str]:
    """The tracks that the same camera saw a second or half a second ago, as far as their boxes tell."""
    found: set[str] = set()
    for seconds in _BEFORE:
        boxes = (motion.at(seconds).boxes if motion.has(seconds) else None) or {}
        labels = {"boxes": [*boxes.values()], "names": [""] * len(boxes), "velocity": [[0.0, 0.0]] * len(boxes)}
        labels["track_tokens"] = [*boxes]
        then = see({"cameras": image.document["cameras"], "annotations": labels}, image.view)
        shows = image.rules.shows
        found |= {s.track for s in then if min(s.share, 1 - s.hidden) >= 0.5 and shows(s, image.size, 0.5)}
    return found


def _may_be_known(image: Pictured, category: str, objects: Sequence[Seen], before: Set[str]) -> bool:
    """Whether an observed kind can be told of them: one picture shows no motion."""
    known = KINDS[category].part != "observed" or all(seen.track in before for seen in objects)
    image.refused[category, "unseen_before"] += not known
    return known


def _of_one(
    image: Pictured, motion: Motion, generator: random.Random, seen: Seen, before: Set[str]
) -> Iterator[Candidate]:
    ways = {
        category: named
        for category in (*_ALONE, "speed_range")
        if (named := image.may(category, seen)) and _may_be_known(image, category, [seen], before)
    }
    if not ways:
        return
    try:
        velocity = _velocity(motion, seen)
    except GapError as gap:
        image.refused.update((category, str(gap)) for category in ways)
        return
    moving = image.rules.trend(math.hypot(*velocity), 0.2, 1.0)
    for category, named in ways.items():
        one = _One(image, motion, generator, seen, named, moving, velocity)
        if category in _ALONE:
            yield from _guarded(image, category, partial(_ALONE[category], one))
        else:
            yield from _speed_range(one)


def _guarded(image: Pictured, category: str, made: Callable[[], Candidate | None]) -> Iterator[Candidate]:
    """A candidate, or a count of why there is none."""
    try:
        found = made()
    except GapError as gap:
        image.refused[category, str(gap)] += 1
        return
    if found is None:
        image.refused[category, "margin"] += 1
    else:
        yield found


def noun(called: str) -> str:
    """What sort of thing a name says that it is: "red lorry" is a lorry."""
    return called.split(" in ")[0].split(" from ")[0].split()[-1]


# --- the car itself

_SPEEDS = (options.STEADY, options.FASTER, options.SLOWER, options.STOOD)
_TURNS = (options.STRAIGHT, options.LEFT, options.RIGHT)
_RARE = {options.STOOD, options.LEFT, options.RIGHT}


def speed_word(before: float, after: float, seconds: float, rules: Rules) -> str | None:
    """Speeds [m/s] at the ends of a time -> what the car did with its speed; None between two."""
    if before < 0.3 and after < 0.3:
        return options.STOOD
    trend = rules.trend((after - before) / seconds, 0.2, 0.5)
    return None if trend is None else _SPEEDS[trend % 3]


def turn_word(degrees: float, rules: Rules, scale: float = 1.0) -> str | None:
    """A change of heading, to the left positive -> which way the car turned; None between two."""
    trend = rules.trend(degrees, 2 * scale, 5 * scale)
    return None if trend is None else _TURNS[trend]


def _ego(image: Pictured, category: str, words: Sequence[str], told: str | None) -> Iterator[Candidate]:
    """With all answers, and with one less, where few drives have it: each is balanced by itself."""
    if told is None:
        image.refused[category, "margin"] += 1
        return
    later = KINDS[category].part == "forecast"
    for less in (None, *sorted(_RARE & {*words} - {told})):
        texts = {word: options.NEXT[word] if later else word for word in words if word != less}
        answers = Answers(tuple(texts.values()), (texts[told],))
        yield image.candidate(category, " ".join(texts), told, (), ((), "look"), answers, classes=len(texts))


def _ego_speed(image: Pictured, motion: Motion) -> Iterator[Candidate]:
    seconds = motion.elapsed(-1.5, 0.0)
    word = speed_word(motion.at(-1.5).speed, motion.at(0.0).speed, seconds, image.rules)
    return _ego(image, "ego_speed", _SPEEDS, word)


def _ego_turn(image: Pictured, motion: Motion) -> Iterator[Candidate]:
    return _ego(image, "ego_turn", _TURNS, turn_word(-math.degrees(motion.pose(-1.5)[2]), image.rules))


def _next_speed(image: Pictured, motion: Motion) -> Iterator[Candidate]:
    seconds = motion.elapsed(0.0, _AHEAD)
    word = speed_word(motion.at(0.0).speed, motion.at(_AHEAD).speed, seconds, image.rules)
    return _ego(image, "ego_next", _SPEEDS, word)


def _next_turn(image: Pictured, motion: Motion) -> Iterator[Candidate]:
    return _ego(image, "ego_next", _TURNS, turn_word(math.degrees(motion.pose(_AHEAD)[2]), image.rules, 2.0))


_EGO = (
    ("ego_speed", _ego_speed),
    ("ego_turn", _ego_turn),
    ("ego_next", _next_speed),
    ("ego_next", _next_turn),
)


# --- one object


@dataclass(frozen=True)
class _One:
    """An object, and how it moves.

    Attributes:
        moving: 1: it moves, 0: it stands; None: too near to the limit to tell.
        velocity: [2] m/s over the ground, in the car's frame.
    """

    image: Pictured
    motion: Motion
    generator: random.Random
    seen: Seen
    named: Named
    moving: int | None
    velocity: Float64

    @property
    def noun(self) -> str:
        return noun(self.named[0][0])

    @property
    def speed(self) -> float:
        return math.hypot(*self.velocity.tolist())

    def trend(self, begin: float, end: float, same: float, apart: float) -> int | None:
        """1: its distance from the car grew from one time to the other."""
        grown = self.motion.distance(self.seen.track, end) - self.motion.distance(self.seen.track, begin)
        return self.image.rules.trend(grown, same, apart)

    @property
    def came_closer(self) -> bool:
        """Over the last second."""
        try:
            return self.trend(-1.0, 0.0, 0.3, 1.0) == -1
        except GapError:
            return False

    def unit(self, category: str, within: str, answer: str, answers: Answers, **given: Any) -> Candidate:
        return self.image.candidate(
            category, f"{within} {self.noun}".strip(), answer, [self.seen], self.named, answers, **given
        )


def _moves(one: _One) -> Candidate | None:
    if one.moving is None:
        return None
    word, answers = ("moving", "standing")[1 - one.moving], options.yes_no(one.moving == 1)
    return one.unit("moves", "", word, answers, classes=2, wanted=one.moving == 0 and one.came_closer)


def _heading_motion(one: _One) -> Candidate | None:
    x, z = (np.array([*one.velocity, 0.0]) @ Lens(one.image.document["cameras"][one.image.view]).rotation)[[0, 2]]
    aside = (math.degrees(math.atan2(x, z)) + 22.5) % 45 - 22.5
    if one.moving != 1 or (one.image.rules.margins and abs(aside) > 15):
        return None
    word = options.compass(x, z)
    within = "diagonal" if word in options.DIAGONAL else "cardinal"
    return one.unit("heading_motion", within, word, options.facings(word, one.generator), classes=4)


def _closing(one: _One) -> Candidate | None:
    trend = one.trend(-1.0, 0.0, 0.3, 1.0)
    if trend is None:
        return None
    answers = options.yes_no(None if trend == 0 else trend < 0, options.SAME_GAP)
    word = ("same", "farther", "closer")[trend]
    return one.unit("closing", "", word, answers, classes=3, wanted=trend == -1 and one.moving == 0)


def _gap_later(one: _One) -> Candidate | None:
    trend = one.trend(0.0, 2.0, 0.6, 2.0)
    if trend is None:
        return None
    answers = options.yes_no(None if trend == 0 else trend > 0, options.SAME_GAP)
    return one.unit("gap_later", "", ("same", "larger", "smaller")[trend], answers, classes=3)


def _where_later(one: _One) -> Candidate | None:
    if one.moving != 1:
        return None
    now, then = (one.motion.place(one.seen.track, t)[:2] for t in (0.0, 2.0))
    travelled = math.dist(now, then)
    x1, _, x2, _ = one.seen.box2d
    third = min(int(3 * (x1 + x2) / 2 / one.image.size[0]), 2)
    answers = Answers((), (f"[{then[0]:.1f}, {then[1]:.1f}]",))
    return one.unit("where_later", "", ("left", "middle", "right")[third], answers, tolerance=max(1.0, 0.2 * travelled))


def _speed_range(one: _One) -> Iterator[Candidate]:
    for place in range(3) if one.moving == 1 else ():
        for width in (2, 4):
            ranges = speed_ranges(one.speed, place, width, one.generator, margins=one.image.rules.margins)
            if ranges is not None:
                texts = [options.speed_text(ends) for ends in ranges]
                drawn = Answers(tuple(one.generator.sample(texts, 3)), (texts[place],))
                within = f"{width} from {min(ranges[0][0] // width * width, 8)}"
                yield one.unit(
                    "speed_range", within, ("lowest", "middle", "highest")[place], drawn, classes=3, value=one.speed
                )


def speed_ranges(
    speed: float, place: int, width: int, generator: random.Random, *, margins: bool
) -> tuple[options.Range, ...] | None:
    """Three ranges of one width, lowest first, of which that at `place` holds the speed; None where there are none.

    2 m/s wide where the middle of them is below 6 m/s, else 4: it is the ranges that decide, not the speed, or the
    width would tell it. The truth lies anywhere in about the middle 60 % of its range.
    """
    low = round(speed - generator.uniform(0.2, 0.8) * width)
    first = low - place * (width + 1)
    aside = 0.1 * width if margins else 0.0
    if first < 0 or not low + aside <= speed <= low + width - aside or (first + 1.5 * width + 1 < 6) != (width == 2):
        return None
    return tuple((first + i * (width + 1), first + i * (width + 1) + width) for i in range(3))


_ALONE: dict[str, Callable[[_One], Candidate | None]] = {
    "moves": _moves,
    "heading_motion": _heading_motion,
    "closing": _closing,
    "where_later": _where_later,
    "gap_later": _gap_later,
}


# --- two objects


def _faster(image: Pictured, motion: Motion, pair: tuple[Seen, Seen], named: Named) -> Candidate | None:
    a, b = (_velocity(motion, seen) for seen in pair)
    trend = image.rules.trend(math.hypot(*a) - math.hypot(*b), 0.5, 1.5, inclusive=True)
    if trend is None:
        return None
    first, second = named[0]
    answers = options.faster(first, second, None if trend == 0 else trend > 0)
    within, answer = _between(named, None if trend == 0 else trend > 0)
    return image.candidate("faster", within, answer, pair, named, answers, classes=3)


def _first(image: Pictured, motion: Motion, pair: tuple[Seen, Seen], named: Named) -> Candidate | None:
    a, b = (motion.nearest(seen.track) for seen in pair)
    if a == b or (image.rules.margins and abs(a - b) < 1.0):
        return None
    within, answer = _between(named, a < b)
    first, second = named[0]
    answers = options.either(first, second, is_first=a < b)
    return image.candidate("first", within, answer, pair, named, answers, classes=2)


def _between(named: Named, first: bool | None) -> tuple[str, str]:
    """What pairs are balanced within, and the answer: which sort of thing it is, where the two are of two sorts."""
    nouns = [noun(called) for called in named[0]]
    words = ("first", "second") if nouns[0] == nouns[1] else nouns
    return " ".join(sorted(nouns)), "same" if first is None else words[0] if first else words[1]


_PAIRED = {"faster": _faster, "first": _first}


def _velocity(motion: Motion, seen: Seen) -> Float64:
    """[2] m/s over the ground.

    Raises:
        GapError: it is not known; ``velocity``: the log's own one says otherwise.
    """
    velocity = motion.velocity(seen.track)
    if not motion.exact and abs(math.hypot(*velocity) - seen.speed) > DISAGREE:
        raise GapError("velocity")
    return velocity
