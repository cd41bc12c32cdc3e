"""Rewards for what a model says to questions, 0..1 each: form, accuracy, pairs, and where it says that objects are.

Accuracy is the metric's own reading (`answers.read`, official rules): 1 or 0 for a choice, centerness for a point. The
metric gives a pair its score only where both answers are right; so does `paired`, or "always Yes" would be learnt.
A box that is said counts by its overlap with the true one. The published rule compares centres, measured in the size of
the box that was said: a box over the whole image satisfies it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from questions.answers import Box, Coordinates, normalised, parse_numbers, read
from questions.units import Prompt
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel

_TEXT = r"(?:(?!</?(?:location|think|answer)>).)*"
_LOCATED, _THOUGHT, _ANSWER = (rf"<{tag}>{_TEXT}</{tag}>\s*" for tag in ("location", "think", "answer"))
_FORMS = {
    (located, terse): re.compile(located * _LOCATED + (f"(?:{_THOUGHT})?" if terse else _THOUGHT) + _ANSWER, re.DOTALL)
    for located in (False, True)
    for terse in (False, True)
}
_LOCATION = re.compile(r"<location>(.*?)</location>", re.DOTALL)
_BOX = re.compile(r"\[[-\d.,\s]+\]")
ENOUGH = 0.5
"""A box counts from this overlap on (exclusive)."""


class Weights(StrictModel):
    """Of the parts of a reward. With `location` above 0 the form has a location too."""

    form: float = Field(default=0.5, ge=0)
    """Of `form`."""
    accuracy: float = Field(default=1.0, ge=0)
    """Of what the metric gives."""
    location: float = Field(default=0.0, ge=0)
    """Of the boxes that are said."""


def weighed(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    weights: Weights,
    *,
    pairs: bool,
    coordinates: Coordinates,
    terse: bool = False,
) -> dict[str, list[float]]:
    """The rewards of texts: ``score``, the weighted sum of ``form``, ``accuracy`` and, with a weight, ``location``.

    Args:
        prompts: of each text.
        texts: as many.
        weights: of the parts.
        pairs: accuracy as `paired` has it.
        coordinates: of points and boxes.
        terse: see `form`.

    Raises:
        ConfigError: see `paired`.
    """
    both, located = [*zip(prompts, texts, strict=True)], weights.location > 0
    found = {"form": [form(text, located=located, terse=terse) for text in texts]}
    if pairs:
        found["accuracy"] = paired(prompts, texts, coordinates)
    else:
        found["accuracy"] = [accuracy(prompt, text, coordinates) for prompt, text in both]
    if located:
        found["location"] = [location(prompt, text, coordinates) for prompt, text in both]
    scores = [
        sum(getattr(weights, name) * value for name, value in zip(found, values, strict=True))
        for values in zip(*found.values(), strict=True)
    ]
    return {"score": scores, **found}


def form(text: str, *, located: bool = False, terse: bool = False) -> float:
    """1 where all of a text is one thought and one answer, each in its tags.

    `located`: one location before them; `terse`: the thought may be left out.
    """
    return float(_FORMS[located, terse].fullmatch(text.strip()) is not None)


def accuracy(prompt: Prompt, text: str, coordinates: Coordinates = "pixels") -> float:
    """What the metric gives one prompt's output."""
    return read(prompt, text, "official", coordinates).score


def paired(prompts: Sequence[Prompt], texts: Sequence[str], coordinates: Coordinates = "pixels") -> list[float]:
    """Accuracies in which the outputs of a pair share the lesser one: both right, or nothing.

    The first output to one side goes with the first to the other, the second with the second, and so on.

    Args:
        prompts: of each output; both sides of a pair equally often.
        texts: as many.
        coordinates: of points.

    Raises:
        ConfigError: a side whose partner is not there.
    """
    alone = [accuracy(prompt, text, coordinates) for prompt, text in zip(prompts, texts, strict=True)]
    rows: dict[str, dict[int, list[int]]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(prompt.unit, {}).setdefault(prompt.side, []).append(i)
    out = list(alone)
    for unit, sides in rows.items():
        wanted = prompts[next(iter(sides.values()))[0]].kind.sides
        if len(sides) != wanted or len({len(places) for places in sides.values()}) > 1:
            found = ", ".join(f"side {side} {len(places)} times" for side, places in sorted(sides.items()))
            raise ConfigError(
                f"pair reward: unit {unit} has {found} in this call, and both sides are needed equally often: "
                "keep the rows' order (no shuffling), and let one process have both"
            )
        for together in zip(*sides.values(), strict=True):
            for i in together:
                out[i] = min(alone[j] for j in together)
    return out


def location(prompt: Prompt, text: str, coordinates: Coordinates = "pixels") -> float:
    """The share of the objects whose box is said by name, ``name: [x1, y1, x2, y2]``, and overlaps the true one enough.

    The first location counts, and of each name the first box.
    """
    found = _LOCATION.search(text)
    said: dict[str, Box] = {}
    before = 0
    inside = found[1] if found else ""
    for match in _BOX.finditer(inside):
        name, before = normalised(inside[before : match.start()]), match.end()
        numbers = parse_numbers(match[0], "official")
        if numbers is not None and len(numbers) == 4:
            x1, y1, x2, y2 = (n * s for n, s in zip(numbers, _scale(prompt, coordinates) * 2, strict=True))
            said.setdefault(name, (x1, y1, x2, y2))
    boxes = [(target.box2d, said.get(normalised(target.desc))) for target in prompt.objects]
    return sum(box is not None and overlap(true, box) > ENOUGH for true, box in boxes) / max(len(boxes), 1)


def _scale(prompt: Prompt, coordinates: Coordinates) -> tuple[float, float]:
    if coordinates == "model_input":
        raise ConfigError("location reward: coordinates is pixels, unit or thousand")
    whole = {"pixels": prompt.size, "unit": (1, 1), "thousand": (1000, 1000)}[coordinates]
    return prompt.size[0] / whole[0], prompt.size[1] / whole[1]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where one is none."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [max(x2 - x1, 0.0) * max(y2 - y1, 0.0) for x1, y1, x2, y2 in (a, b)]
    return common / (sum(areas) - common) if common else 0.0
