"""Which candidates are asked: balanced over their answers, not about the same thing again and again.

Answers that stand in one comparison (left, right, the same) come equally often, so that no constant answer is better
than another. Candidates are taken in rounds, one of each answer; where one answer has no more, its comparison ends.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from questions import wording
from questions.making.candidates import Candidate
from questions.making.rules import Rules
from questions.units import KINDS, PastFrame, Prompt, Target

LEAST = {"moves": 0.5, "closing": 0.65}
"""Of the units with one answer, the least share that are still and come closer, since the car moves: who takes the
motion of a picture for that of a thing fails there. Half of `moves` stand, a third of `closing` come closer, so it is
more than a fifth of all."""
PREFERRED = ("look", "place", "region")


def choose(candidates: Sequence[Candidate], rules: Rules) -> tuple[list[Candidate], Counter[tuple[str, str]]]:
    """Those that are asked, in the order of scenes; and of the others, category and reason -> how many."""
    generator = random.Random(rules.seed)
    queues: dict[tuple[str, str], dict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for candidate in candidates:
        queues[candidate.category, candidate.within][candidate.answer].append(candidate)
    for answers in queues.values():
        for waiting in answers.values():
            generator.shuffle(waiting)
            waiting.sort(key=lambda c: PREFERRED.index(c.how), reverse=True)  # taken from the end
            _keep_wanted(waiting)
    taken = _Taken(rules)
    open_ = sorted(key for key, answers in queues.items() if len(answers) >= _classes(answers))
    compared = frozenset(open_)
    while open_:
        for key in [*open_]:
            if taken.full(key[0], len(queues[key])) or taken.round(queues[key]) is None:
                open_.remove(key)
    asked = {id(candidate) for candidate in taken.chosen}
    left = Counter(
        (c.category, "not_needed" if (c.category, c.within) in compared else "one_sided")
        for c in candidates
        if id(c) not in asked
    )
    return [c for c in candidates if id(c) in asked], left


def _classes(answers: dict[str, list[Candidate]]) -> int:
    """How many answers a comparison needs: one that lacks some would tell them."""
    return max(waiting[0].classes for waiting in answers.values())


def _keep_wanted(waiting: list[Candidate]) -> None:
    """Bring wanted candidates forward where they come too seldom; they are taken from the end."""
    share = LEAST.get(waiting[0].category, 0.0)
    places = {id(candidate): place for place, candidate in enumerate(waiting)}
    wanted, others = ([c for c in waiting if c.wanted is which] for which in (True, False))
    order: list[Candidate] = []
    taken = 0
    while wanted and others:
        too_few = taken < share * (len(order) + 1)
        from_wanted = too_few or places[id(wanted[-1])] > places[id(others[-1])]
        taken += from_wanted
        order.append((wanted if from_wanted else others).pop())
    waiting[:] = [*wanted, *others, *reversed(order)]


class _Taken:
    """What is chosen so far, and what that rules out."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.chosen: list[Candidate] = []
        self._images: Counter[tuple[str, str]] = Counter()
        self._times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._categories: Counter[str] = Counter()

    def full(self, category: str, more: int) -> bool:
        """Whether a category has no room for so many more."""
        return self.rules.units is not None and self._categories[category] + more > self.rules.units

    def round(self, answers: dict[str, list[Candidate]]) -> list[Candidate] | None:
        """One candidate of each answer, or None where an answer has no more."""
        found: list[Candidate] = []
        for waiting in answers.values():
            candidate = next(self._next(waiting), None)
            if candidate is None:
                for other in found:
                    self._count(other, -1)
                return None
            found.append(candidate)
            self._count(candidate, 1)
        self.chosen += found
        return found

    def _next(self, waiting: list[Candidate]) -> Iterator[Candidate]:
        while waiting:
            candidate = waiting.pop()
            if self._images[candidate.scene["token"], candidate.view] >= self.rules.image:
                continue
            now = candidate.scene["timestamp"] * 1e-6
            if all(t != now and abs(t - now) >= self.rules.seconds for t in self._times[_about(candidate)]):
                yield candidate

    def _count(self, candidate: Candidate, by: int) -> None:
        self._images[candidate.scene["token"], candidate.view] += by
        self._categories[candidate.category] += by
        if by > 0:
            self._times[_about(candidate)].append(candidate.scene["timestamp"] * 1e-6)
        else:
            self._times[_about(candidate)].pop()


def _about(candidate: Candidate) -> tuple[str, str, str]:
    """What is asked about: its track; of a pair the two together."""
    return candidate.scene["log"], candidate.category, " ".join(sorted(seen.track for seen in candidate.seen))


def prompts(
    candidate: Candidate, rules: Rules, benchmark: str, split: Literal["train", "evaluation"]
) -> Iterable[Prompt]:
    """The lines of a chosen unit."""
    token, log = candidate.scene["token"], candidate.scene["log"]
    camera = candidate.scene["cameras"][candidate.view]
    backs = {image["token"]: -image["step"] for image in candidate.scene.get("past", {}).values()}
    past = tuple(
        PastFrame(
            token=frame["token"],
            seconds=(frame["timestamp"] - candidate.scene["timestamp"]) * 1e-6,
            back=backs.get(frame["token"]),
        )
        for frame in candidate.scene.get("frames", ())
        if frame["step"] < 0
    )
    unit = "-".join([candidate.category, token, candidate.view, *(seen.track for seen in candidate.seen)])
    for side in (1, 2)[: KINDS[candidate.category].sides]:
        yield Prompt(
            unit=unit,
            side=1 if side == 1 else 2,
            category=candidate.category,
            benchmark=benchmark,
            style=rules.style,
            split=split,
            token=token,
            log=log,
            views=(candidate.view,),
            size=(int(camera["size"][0]), int(camera["size"][1])),
            objects=tuple(
                Target(desc=name, box2d=seen.box2d, p_cam=seen.p_cam, track=seen.track)
                for name, seen in zip(candidate.called, candidate.seen, strict=True)
            ),
            question=wording.question(candidate.category, side, *candidate.called),
            options=candidate.answers.options,
            answer=candidate.answers.right[side - 1],
            value=candidate.value,
            past=past if KINDS[candidate.category].part else (),
            tolerance=candidate.tolerance,
        )
