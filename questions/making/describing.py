"""What an object is called, so that nobody can mistake it for another one in its image.

- ``look``: its kind and colour, where no other one that can be seen may be meant by that. It gives nothing away.
- ``place``: "second vehicle from the left". It tells in part where the thing is, so that is not asked by it.
- ``region``: "vehicle in the box [x1, y1, x2, y2]". A box tells where the thing is and, by its height, how far away: it
  is for which way a thing faces alone.

Uniqueness is held against every labelled box of the class that shows at half the least size or more, asked about or
not. A colour that is not known may be any.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from questions.making.seeing import Seen

How = Literal["look", "place", "region"]

WORDS = {
    "vehicle": "vehicle",
    "pedestrian": "pedestrian",
    "bicycle": "cyclist",
    "traffic_cone": "traffic cone",
    "barrier": "barrier",
}
"""Class in the log -> word. Others are not asked about."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_APART = 0.01
"""Share of the width that two have to be apart to stand in an order."""
_LEAST_PIXELS = 60
_CLEAR = 0.65
"""Of the pixels of a crop that have to be of its colour."""


class Look(NamedTuple):
    """What a thing looks like: a kind ("lorry"), and a colour ("red"), each None where it is not known."""

    kind: str | None = None
    colour: str | None = None


def names(
    seen: Seen, others: Sequence[Seen], looks: Mapping[str, Look], size: tuple[int, int], doubtful: Collection[Seen]
) -> dict[How, str]:
    """What a box can be called, without an article.

    Args:
        seen: the box.
        others: all other boxes that can be mistaken for it, of any class.
        looks: track -> look; of others the class is all that is known.
        size: width, height of the image.
        doubtful: of which one may or may not see that they are there: nobody counts beyond them.
    """
    word, own = WORDS[seen.name], looks.get(seen.track, Look())
    rivals = [other for other in others if other.name == seen.name]
    out: dict[How, str] = {}
    known = [looks.get(rival.track, Look()) for rival in rivals]
    alone = not any(_may_be(other, own.kind, None) for other in known)
    if alone or (own.colour and not any(_may_be(other, own.kind, own.colour) for other in known)):
        out["look"] = phrase(word, own)
    row = sorted([seen, *rivals], key=lambda s: s.centre[0])
    place = row.index(seen)
    apart = all(abs(rival.centre[0] - seen.centre[0]) > _APART * size[0] for rival in rivals)
    for side, before in (("left", row[:place]), ("right", row[place + 1 :])):
        if rivals and apart and len(before) < len(_ORDINALS) and not any(other in doubtful for other in before):
            out.setdefault("place", f"{_ORDINALS[len(before)]} {word} from the {side}")
    out["region"] = f"{word} in the box [{', '.join(f'{round(v)}' for v in seen.box2d)}]"
    return out


def _may_be(other: Look, kind: str | None, colour: str | None) -> bool:
    """Whether another thing of the class may be meant by a kind and a colour; None is any."""
    return (kind is None or other.kind in (None, kind)) and (colour is None or other.colour in (None, colour))


def phrase(word: str, own: Look) -> str:
    """ "red lorry", "pedestrian in green"."""
    noun = own.kind or word
    if own.colour is None:
        return noun
    return f"{noun} in {own.colour}" if word in ("pedestrian", "cyclist") else f"{own.colour} {noun}"


def colour_of(image: NDArray[np.uint8], seen: Seen) -> str | None:
    """The colour of the middle half of a box2d [H, W, 3], where most of it has one that is far from its neighbours.

    For real images: a guess from pixels, which is why it is None rather than doubtful.
    """
    x1, y1, x2, y2 = seen.box2d
    w, h = (x2 - x1) / 4, (y2 - y1) / 4
    crop = image[round(y1 + h) : round(y2 - h), round(x1 + w) : round(x2 - w)].reshape(-1, 3)
    if len(crop) < _LEAST_PIXELS:
        return None
    found = [_named(*colorsys.rgb_to_hsv(*(pixel / 255.0))) for pixel in crop[:: max(1, len(crop) // 400)]]
    best = max({*found}, key=lambda name: (found.count(name), name or ""))
    return best if best is not None and found.count(best) >= _CLEAR * len(found) else None


def _named(hue: float, saturation: float, value: float) -> str | None:
    """A bright colour's name; None between two, and of white, grey and black, which the light makes of each other."""
    if saturation < 0.4 or value < 0.3:
        return None
    degrees = 360 * hue
    bands = {"red": (345, 375), "yellow": (44, 64), "green": (90, 160), "blue": (200, 245)}
    return next((n for n, (low, high) in bands.items() if low <= degrees <= high or low <= degrees + 360 <= high), None)
