"""What a model said, read and scored: one prompt at a time, by the rules of who published numbers.

=========  ==============================================================  =====================================
           ``official`` (SURDS' own evaluator)                             ``xiaomi`` (that of XEmbodied)
=========  ==============================================================  =====================================
answer     in the first ``<answer>..</answer>``; no tag: invalid            the same; no tag: the whole text
valid      an option occurs, word for word, with its article                an option occurs, normalised, anywhere
right      normalised answer = normalised option                            the same
box        centre by floor division; ``[x1, y1, x2, y2]``                   true division; ``(x1, y1), (x2, y2)`` too
=========  ==============================================================  =====================================

Quirks are kept, since numbers are compared by them; docs/questions.md names them. Neither of the two scripts can be
made to hang here: the text is searched in linear time, and numbers are read without evaluating anything.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import Literal, get_args

from questions.units import Prompt
from shards_schema.errors import ConfigError

Rules = Literal["official", "xiaomi"]
RULES: tuple[Rules, ...] = get_args(Rules)
Coordinates = Literal["pixels", "unit", "thousand", "model_input"]
"""What a model's points are given in: pixels of the image; 0..1; 0..1000; pixels of what its processor made."""
Fixed = Literal["pixels", "unit", "thousand"]
"""Those that need no size of each output."""
Box = tuple[float, float, float, float]

_OPEN, _CLOSE = "<answer>", "</answer>"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LIST = re.compile(r"\[([-\d.,\s]+)\]")
_NUMBER = re.compile(r"[ \t\r\n\f]*(-?)[ \t\r\n\f]*(0+|[1-9][0-9]*|[0-9]+\.[0-9]*|\.[0-9]+)[ \t\r\n\f]*")
_CORNERS = re.compile(r"(?<!\d)(\d+)\s*,\s*(\d+)\s*[)\uff09]?\s*,\s*[(\uff08]?\s*(\d+)\s*,\s*(\d+)")


@dataclass(frozen=True)
class Reading:
    """An answer, read.

    Attributes:
        score: 0..1; 0 where it is invalid.
        invalid: why it is no answer: ``empty``, ``no_tag``, ``cut`` (the text ends before the answer does),
            ``no_option``, ``no_point``, ``outside`` (a point that is not in the image); None of a valid one.
        said: of a choice, the option that was chosen; None where it is none of them.
        error: of a place, how far it is from the truth [m].
    """

    score: float
    invalid: str | None = None
    said: str | None = None
    error: float | None = None


def read(
    prompt: Prompt,
    text: str,
    rules: Rules,
    coordinates: Coordinates = "pixels",
    input_size: tuple[int, int] | None = None,
) -> Reading:
    """Read and score one output.

    Args:
        prompt: what was asked.
        text: all that the model wrote.
        rules: whose.
        coordinates: of its points.
        input_size: width, height [px] of the image that the processor made, for ``model_input``.

    Raises:
        ConfigError: ``model_input`` without a size.
    """
    answer = extract(text, rules)
    if not answer:
        return Reading(0.0, _why_none(text))
    if prompt.kind.metric == "point":
        numbers = parse_numbers(answer, rules)
        if numbers is None:
            return Reading(0.0, "no_point")
        place = to_point(numbers, prompt.size, rules, coordinates, input_size)
        return Reading(0.0, "outside") if place is None else Reading(centerness(place, prompt.objects[0].box2d))
    if prompt.kind.metric == "place":
        return _place(prompt, parse_numbers(answer, rules), parse_numbers(prompt.answer, "official"))
    if not names_option(answer, prompt.options, rules):
        return Reading(0.0, "no_option")
    said = normalised(answer)
    chosen = next((option for option in prompt.options if normalised(option) == said), None)
    return Reading(float(said == normalised(prompt.answer)), said=chosen)


def _place(prompt: Prompt, said: list[float] | None, truth: list[float] | None) -> Reading:
    if said is None or truth is None or len(said) != 2:
        return Reading(0.0, "no_point")
    error = math.dist(said, truth)
    return Reading(float(error <= (prompt.tolerance or 0.0)), error=error)


def extract(text: str, rules: Rules = "official") -> str | None:
    """The answer of a text, stripped; None where there is no tag and the rules want one."""
    begin = text.find(_OPEN)
    end = text.find(_CLOSE, begin + len(_OPEN)) if begin >= 0 else -1
    if end >= 0:
        return text[begin + len(_OPEN) : end].strip()
    return text.strip() if rules == "xiaomi" else None


def tags(text: str) -> int:
    """How many answers a text gives; of more than one the first counts."""
    return text.count(_CLOSE)


def _why_none(text: str) -> str:
    if not text.strip() or _CLOSE in text:
        return "empty"
    return "cut" if _OPEN in text or text.rfind("<think>") > text.rfind("</think>") else "no_tag"


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation (a hyphen's words join), without a, an, the, blanks collapsed."""
    return " ".join(_ARTICLES.sub("", text.lower().translate(_PUNCTUATION)).split())


def names_option(answer: str, options: tuple[str, ...], rules: Rules) -> bool:
    """Whether an answer is valid: one of the options occurs in it."""
    if rules == "xiaomi":
        return any(normalised(option) in normalised(answer) for option in options)
    low = answer.lower()
    return any(re.search(rf"\b{re.escape(option.lower())}\b", low) for option in options)


def parse_numbers(answer: str, rules: Rules) -> list[float] | None:
    """The 2 or 4 numbers of the first ``[..]`` that holds digits, signs, points, commas and blanks alone.

    None where there is none, where it is no list of plain numbers (a decimal comma makes more of them), or of 3.
    """
    found = _LIST.search(answer)
    if found is None:
        corners = _CORNERS.search(answer) if rules == "xiaomi" else None
        return [float(number) for number in corners.groups()] if corners else None
    parts = found[1].split(",")
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()  # a comma at the end is allowed in a list
    numbers = [_NUMBER.fullmatch(part) for part in parts]
    if len(numbers) not in (2, 4) or None in numbers:
        return None
    return [float(number[1] + number[2]) for number in numbers if number]


def to_point(
    numbers: list[float],
    size: tuple[int, int],
    rules: Rules,
    coordinates: Coordinates,
    input_size: tuple[int, int] | None = None,
) -> tuple[float, float] | None:
    """The point [px] of 2 numbers, or the centre of the box of 4; None outside of 0 <= x < width, 0 <= y < height.

    In pixels a coordinate below 1 is a share of the width or height, after the centre was taken.

    Raises:
        ConfigError: ``model_input`` without `input_size`.
    """
    if coordinates == "model_input" and input_size is None:
        raise ConfigError("coordinates=model_input: give input_size=[width, height], or input_size in every output")
    whole = {"pixels": size, "unit": (1, 1), "thousand": (1000, 1000), "model_input": input_size or size}[coordinates]
    if coordinates != "pixels":
        numbers = [n * size[i % 2] / whole[i % 2] for i, n in enumerate(numbers)]
    if len(numbers) == 4:
        numbers = [numbers[0] + numbers[2], numbers[1] + numbers[3]]
        numbers = [n // 2 if rules == "official" else n / 2 for n in numbers]
    if coordinates == "pixels":
        numbers = [n * s if n < 1 else n for n, s in zip(numbers, size, strict=True)]
    x, y = numbers
    return (x, y) if 0 <= x < size[0] and 0 <= y < size[1] else None


def centerness(point: tuple[float, float], box: Box) -> float:
    """How near to the middle of a box a point is: 1 there, 0 on an edge and outside."""
    (x, y), (x1, y1, x2, y2) = point, box
    if not (x1 <= x <= x2 and y1 <= y <= y2):
        return 0.0
    sides = ((x - x1, x2 - x), (y - y1, y2 - y))
    return math.sqrt(math.prod(min(pair) / max(pair) if max(pair) else 1.0 for pair in sides))
