"""Every unit that one image could give, with the class of its answer; `choosing` takes of them what is balanced."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from questions import options
from questions.making import describing
from questions.making.describing import How, Look
from questions.making.motion import Motion
from questions.making.rules import Rules
from questions.making.seeing import Seen, see
from questions.options import Answers
from shards_schema.lens import Lens

FAIR_WIDTH, FAIR_GAP = 6, 1
"""Metres of a range, and between two."""
GONE = 0.97
"""Share that is hidden of what nobody sees."""
SLIVER = 0.04
"""Share of the width below which a thing may be overlooked."""
TIE_X = 0.0625
"""Share of the width: 100 of 1,600 pixels."""

_KEPT = ("token", "log", "timestamp", "frames", "past", "cameras")
"""Of a scene's document; candidates of all scenes are held at once, and the labels are most of it."""
_HOW: dict[str, tuple[How, ...]] = {
    "yaw": ("look", "place", "region"),
    "xy2d": ("look",),
    "depth": ("look", "place"),
    "dis": ("look", "place"),
    "lr": ("look",),
    "fb": ("look", "place"),
    "heading_motion": ("look", "place", "region"),
    **dict.fromkeys(
        ("moves", "closing", "faster", "speed_range", "where_later", "gap_later", "first"), ("look", "place")
    ),
}
"""What an object may be called in a category; the first is preferred."""


@dataclass(frozen=True)
class Candidate:
    """A unit that could be asked.

    Attributes:
        category: a key of `questions.units.KINDS`.
        within, answer: units of one `within` are balanced over their `answer`.
        scene: the scene's document, as far as a unit has to know it.
        view: the image.
        seen: what is asked about, in the order of the question.
        called: what each is called.
        how: the plainest way that one of them is called.
        answers: options and right answers.
        value: the number behind a range.
        tolerance: of a place [m].
        classes: answers that have to be there, for a comparison to be one.
        wanted: whether a least share of those with this answer has to be like it (`choosing.LEAST`).
    """

    category: str
    within: str
    answer: str
    scene: Mapping[str, Any] = field(repr=False)
    view: str
    seen: tuple[Seen, ...]
    called: tuple[str, ...]
    how: How
    answers: Answers
    value: float | None = None
    tolerance: float | None = None
    classes: int = 1
    wanted: bool = False


Named = tuple[tuple[str, ...], How]
"""What the objects of a unit are called, and the plainest way of it."""

Refused = Counter[tuple[str, str]]
"""Category and reason -> objects, pairs or images that gave no candidate."""


def of_image(image: Pictured) -> Iterator[Candidate]:
    """SURDS' six kinds."""
    for one in image.seen:
        yield from image.alone(one)
    for first, second in combinations(image.seen, 2):
        pair = (first, second) if image.generator.random() < 0.5 else (second, first)
        yield from image.paired(*pair)


def look_at(
    document: Mapping[str, Any],
    view: str,
    rules: Rules,
    refused: Refused,
    *,
    looks: Mapping[str, Look] | None = None,
    hidden: Mapping[str, float] | None = None,
    motion: Motion | None = None,
) -> Pictured | None:
    """One image of a scene, and what its objects are called; None where the scene has no labels.

    Args:
        document: the scene's ``<token>.json``.
        view: a key of its ``cameras``.
        rules: of what may be asked.
        refused: counts what may not.
        looks: track -> kind and colour, where they are known.
        hidden: track -> share that is hidden in this view, where it is known.
        motion: of the scene, where it is known.
    """
    if document["annotations"] is None:
        refused["", "no_annotations"] += 1
        return None
    size = Lens(document["cameras"][view]).size
    seen = see(document, view, hidden)
    showing = [s for s in seen if s.hidden < GONE and rules.shows(s, size, 0.5)]
    doubtful = [s for s in showing if s.hidden > 0.5 or not rules.shows(s, size) or s.width < SLIVER * size[0]]
    generator = random.Random(f"{rules.seed} {document['token']} {view}")
    called = {
        s: describing.names(s, [o for o in showing if o is not s], looks or {}, size, doubtful)
        for s in seen
        if s.name in describing.WORDS
    }
    kept = {key: document[key] for key in _KEPT if key in document}
    return Pictured(kept, view, size, rules, refused, seen, called, generator, motion)


@dataclass(frozen=True)
class Pictured:
    """One image, ready to be asked about.

    Attributes:
        document: of the scene, as far as a unit has to know it.
        view, rules, refused, motion: see `look_at`.
        size: width, height of the image.
        seen: the labelled boxes in it.
        called: what they can be called.
        generator: of the choices in it.
    """

    document: Mapping[str, Any]
    view: str
    size: tuple[int, int]
    rules: Rules
    refused: Refused
    seen: Sequence[Seen]
    called: Mapping[Seen, Mapping[How, str]]
    generator: random.Random
    motion: Motion | None

    def may(self, category: str, *objects: Seen) -> Named | None:
        """What the objects are called, and the plainest way of it; None where one may not be asked about."""
        refusals = [self.rules.refusal(seen, category, self.size) for seen in objects]
        why = next((refusal for refusal in refusals if refusal is not None), None)
        ways: list[How] = []
        for seen in objects if why is None else ():
            known = self.called[seen]
            way = next((how for how in _HOW[category] if how in known), None)
            if way is None:
                why = "no_description"
                break
            ways.append(way)
        if why is not None:
            self.refused[category, why] += 1
            return None
        names = tuple(self.called[seen][way] for seen, way in zip(objects, ways, strict=True))
        return names, max(ways, key=_HOW["yaw"].index)

    def candidate(
        self,
        category: str,
        within: str,
        answer: str,
        seen: Sequence[Seen],
        named: Named,
        answers: Answers,
        value: float | None = None,
        **given: Any,
    ) -> Candidate:
        """A unit about objects of this image; see `Candidate`."""
        called, how = named
        return Candidate(
            category, within, answer, self.document, self.view, tuple(seen), called, how, answers, value, **given
        )

    def alone(self, seen: Seen) -> Iterator[Candidate]:
        """About one object: which way it faces, where it is, how far."""
        if named := self.may("yaw", seen):
            aside = (seen.facing + 22.5) % 45 - 22.5
            if self._turned_around(seen):
                self.refused["yaw", "flip"] += 1
            elif self.rules.margins and abs(aside) > 15:
                self.refused["yaw", "margin"] += 1
            else:
                radians = math.radians(seen.facing)
                word = options.compass(math.sin(radians), math.cos(radians))
                within = "diagonal" if word in options.DIAGONAL else "cardinal"
                yield self.candidate("yaw", within, word, [seen], named, options.facings(word, self.generator))
        if named := self.may("xy2d", seen):
            x1, y1, x2, y2 = seen.box2d
            third = int(3 * (x1 + x2) / 2 / self.size[0])
            answers = Answers((), (f"[{(x1 + x2) / 2:.0f}, {(y1 + y2) / 2:.0f}]",))
            yield self.candidate("xy2d", "", ("left", "middle", "right")[min(third, 2)], [seen], named, answers)
        if named := self.may("depth", seen):
            yield from self._depths(seen, named)

    def _turned_around(self, seen: Seen) -> bool:
        """Whether a labeller took the rear of a thing that stands for its front, in some frame."""
        known = self.motion is not None and not self.motion.exact and seen.name == "vehicle"
        return known and seen.speed < 0.5 and self.motion is not None and self.motion.flips(seen.track)

    def _depths(self, seen: Seen, named: Named) -> Iterator[Candidate]:
        if self.rules.style == "official":
            texts = [options.range_text(ends) for ends in options.depth_ranges(seen.depth, self.generator)]
            drawn = Answers(tuple(self.generator.sample(texts, 3)), (texts[0],))
            yield self.candidate("depth", "", "", [seen], named, drawn, seen.depth)
            return
        for place in range(3):
            ranges = fair_ranges(seen.depth, place, self.generator)
            if ranges is not None:
                texts = [options.range_text(ends) for ends in ranges]
                drawn = Answers(tuple(self.generator.sample(texts, 3)), (texts[place],))
                # a rule that reads the options may go by how low they begin
                within = f"from {min(ranges[0][0] // 5 * 5, 20)} m"
                yield self.candidate(
                    "depth", within, ("lowest", "middle", "highest")[place], [seen], named, drawn, seen.depth
                )

    def paired(self, first: Seen, second: Seen) -> Iterator[Candidate]:
        """About two: which is closer, which is further left, whether one is in front."""
        rules, width = self.rules, self.size[0]
        x = (first.centre[0], second.centre[0])
        limits: dict[str, tuple[tuple[float, float], float, float, float, bool]] = {
            "dis": ((first.distance, second.distance), 1.0, 0.7, 1.5, True),
            "lr": (x, TIE_X * width, 0.8, 1.3, False),
            "fb": ((second.depth, first.depth), 0.5, 0.6, 2.0, False),
        }
        for category, ((a, b), tie, low, high, inclusive) in limits.items():
            named = self.may(category, first, second)
            if named is None:
                continue
            ordered = rules.clear(abs(a - b), tie, low, high, inclusive=inclusive)
            if ordered is None:
                self.refused[category, "margin"] += 1
                continue
            names = named[0]
            if options.option(names[0]) == options.option(names[1]):
                self.refused[category, "no_description"] += 1
                continue
            if category == "dis":
                answers = options.distances(names[0], names[1], a, b, tie)
            elif category == "lr":
                answers = options.columns(names[0], names[1], a, b, tie)
            else:
                answers = options.rows(b, a, tie)
            answer = "same" if not ordered else "first" if a < b else "second"
            yield self.candidate(category, "", answer, [first, second], named, answers)


def fair_ranges(
    depth: float, place: int, generator: random.Random, width: int = FAIR_WIDTH, gap: int = FAIR_GAP
) -> tuple[options.Range, ...] | None:
    """Three ranges of one width, lowest first, of which that at `place` holds the depth; None where there are none.

    The truth lies anywhere in about the middle 60 % of its range. The lowest range begins at 1 m or later.
    """
    least = 1 + place * (width + gap)
    low = round(depth - generator.uniform(0.2, 0.8) * width)
    if place == 0:
        low = max(1, low)
    if low < least or not low <= depth <= low + width:
        return None
    first = low - place * (width + gap)
    return tuple((first + i * (width + gap), first + i * (width + gap) + width) for i in range(3))
