"""Which objects may be asked about, and which differences are clear enough to ask for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from questions.making.seeing import Seen
from shards_schema.inputs.models import StrictModel

ALONE = ("vehicle", "pedestrian", "bicycle")
PAIRED = (*ALONE, "traffic_cone", "barrier")

Share = Annotated[float, Field(ge=0, le=1)]
Metres = Annotated[float, Field(ge=0, le=1000)]


class Rules(StrictModel):
    """How questions are made."""

    style: Literal["fair", "official"] = "fair"
    """fair (ranges of one width, balanced answers) or official (SURDS' own ranges, which give themselves away)."""
    margins: bool = True
    """Skip what is near to a limit, where the labels' errors would decide."""
    depth: tuple[Metres, Metres] = (2.0, 60.0)
    """Least and greatest depth of an object [m]."""
    height: Share = 0.03
    """Least height of its box2d, as a share of the image's."""
    area: Share = 0.0005
    """Likewise its area."""
    whole: Share = 0.7
    """Least share of its box2d within the image."""
    whole_point: Share = 0.9
    """Likewise where the question is where it is."""
    hidden: Share = 0.3
    """Greatest share that nearer things hide."""
    walking: float = Field(default=0.5, ge=0, le=100)
    """Least speed of a pedestrian whose direction is asked for [m/s]."""
    seconds: float = Field(default=10.0, ge=0, le=1e6)
    """At most one unit of a category about a track in so many seconds."""
    image: int = Field(default=3, ge=1, le=10_000)
    """At most so many units about one image."""
    units: int | None = Field(default=None, ge=1, le=10**9)
    """At most so many units of a category; null is all."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of every choice."""

    @model_validator(mode="after")
    def _somewhere(self) -> Rules:
        if self.depth[0] >= self.depth[1]:
            raise ValueError(f"depth is [{self.depth[0]:g}, {self.depth[1]:g}], expected the lesser one first")
        return self

    def shows(self, seen: Seen, size: tuple[int, int], part: float = 1.0) -> bool:
        """Whether it is large enough in an image of `size`, for a `part` of the least sizes."""
        least_area = part * self.area * size[0] * size[1]
        return seen.height >= part * self.height * size[1] and seen.area >= least_area

    def refusal(self, seen: Seen, category: str, size: tuple[int, int]) -> str | None:
        """Why an object is not asked about in a category, in a word; None where it may be."""
        pair, place = category in ("dis", "lr", "fb", "first"), category in ("xy2d", "lr")
        if seen.name not in (PAIRED if pair else ALONE):
            return "class"
        if not self.depth[0] <= seen.depth <= self.depth[1]:
            return "depth"
        if not self.shows(seen, size):
            return "small"
        if seen.share < (self.whole_point if place else self.whole):
            return "cut"
        if seen.hidden > self.hidden:
            return "hidden"
        x1, y1, x2, y2 = seen.box2d
        if not (x1 < seen.centre[0] < x2 and y1 < seen.centre[1] < y2):
            return "cut"
        return "standing" if category == "yaw" and seen.name == "pedestrian" and not seen.speed > self.walking else None

    def trend(self, value: float, same: float, apart: float, *, inclusive: bool = False) -> int | None:
        """1: clearly more than none, -1: clearly less, 0: clearly none; None where it is too near to a limit to tell.

        Args:
            value: signed.
            same, apart: with margins, none below `same`, some above `apart`; else the middle of the two is the limit.
            inclusive: whether differences of just `same` and just `apart` are told too.
        """
        low, high = (same, apart) if self.margins else ((same + apart) / 2,) * 2
        size = abs(value)
        if size < low or (inclusive and size == low):
            return 0
        if size > high or (inclusive and size == high) or not self.margins:
            return 1 if value > 0 else -1
        return None

    def clear(self, difference: float, tie: float, low: float, high: float, *, inclusive: bool) -> bool | None:
        """Whether a difference is one (True) or none (False); None where it is too near to the limit to tell.

        Args:
            difference: not negative.
            tie: the limit of the rule; a difference of just that is none where `inclusive`.
            low, high: with margins, none up to `low` times the limit, one from `high` times on.
            inclusive: see `tie`.
        """
        if self.margins:
            return False if difference <= low * tie else True if difference >= high * tie else None
        return difference > tie if inclusive else difference >= tie
