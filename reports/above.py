"""A scene from above as inline SVG: the ego frame in metres, x (forward) up the page, y to the left.

Colours are CSS classes of the page that the drawing stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from reports.pages import tag
from shards_schema.poses import EGO_FRONT, EGO_REAR, EGO_WIDTH

Points = NDArray[Any]
"""[N, 2] or more, of which x and y are drawn."""


@dataclass(frozen=True, slots=True)
class View:
    """The square that a picture shows: its left and top edge on the page, and its side."""

    left: float
    top: float
    span: float

    @classmethod
    def around(cls, points: Sequence[Points], smallest: float, largest: float = np.inf) -> View:
        """What holds all points with 10 m about them, at least `smallest` wide; what runs out of `largest` is cut."""
        every = np.concatenate([p[:, :2] for p in points])
        low, high = every.min(0) - 10.0, every.max(0) + 10.0
        span = float(np.clip((high - low).max(), smallest, largest))
        x, y = (low + high) / 2
        return cls(float(-y) - span / 2, float(-x) - span / 2, span)

    @property
    def font(self) -> float:
        """Size of letters."""
        return self.span / 32

    def sees(self, points: Points) -> bool:
        """Whether the bounds of some points reach into the picture."""
        low, high = -points[:, 1::-1].max(0), -points[:, 1::-1].min(0)
        corner = np.array([self.left, self.top])
        return bool((high > corner).all() and (low < corner + self.span).all())

    def svg(self, style: str, label: str, *parts: str | Iterable[str]) -> Markup:
        """The picture, with a scale; `label` is told to screen readers."""
        x, y = self.left + self.font, self.top + self.span - self.font
        scale = tag("line", class_="scale", x1=f"{x:.2f}", x2=f"{x + 10:.2f}", y1=f"{y:.2f}", y2=f"{y:.2f}")
        box = f"{self.left:.2f} {self.top:.2f} {self.span:.2f} {self.span:.2f}"
        ten = text(x, y - self.font / 2, "10 m", self.font)
        return tag("svg", *parts, scale, ten, class_=style, viewBox=box, role="img", aria_label=label)


def pairs(points: Points) -> str:
    """Points of the ego frame as the `points` of an SVG shape."""
    return " ".join(f"{-y:.2f},{-x:.2f}" for x, y in points[:, :2])


def line(points: Points, style: str, **more: object) -> Markup:
    """A polyline."""
    return tag("polyline", class_=style, points=pairs(points), **more)


def dot(x: float, y: float, radius: float, style: str, title: str = "") -> Markup:
    """A circle."""
    told = tag("title", title) if title else ""
    return tag("circle", told, class_=style, cx=f"{-y:.2f}", cy=f"{-x:.2f}", r=f"{radius:.2f}")


def text(right: float, down: float, words: str, size: float, style: str = "label") -> Markup:
    """Words at a place of the page."""
    return tag("text", words, class_=style, x=f"{right:.2f}", y=f"{down:.2f}", font_size=f"{size:.2f}")


def box(
    pose: Sequence[float] | Points, length: float, width: float, style: str, title: str, colour: str | None = None
) -> Markup:
    """A box [m] around a pose (x, y, heading), with an arrow ahead; `colour` is the `currentColor` of its class."""
    x, y, heading = (float(v) for v in pose)
    # SVG turns clockwise where y points down; with (-y, -x) a left turn is anticlockwise on the page.
    place = f"translate({-y:.2f} {-x:.2f}) rotate({-np.degrees(heading):.1f})"
    corner = {"x": f"{-width / 2:.2f}", "y": f"{-length / 2:.2f}"}
    outline = tag("rect", **corner, width=f"{width:.2f}", height=f"{length:.2f}", rx=0.25)
    ahead = f"M{-width * 0.28:.2f} {-length * 0.26:.2f}L0 {-length * 0.42:.2f}L{width * 0.28:.2f} {-length * 0.26:.2f}"
    inside = (tag("title", title), outline, tag("path", d=ahead))
    return tag("g", inside, class_=style, transform=place, style=colour and f"color:{colour}")


def car(pose: Sequence[float] | Points, style: str, title: str) -> Markup:
    """The ego's outline at a pose of its rear axle."""
    x, y, heading = (float(v) for v in pose)
    ahead = (EGO_FRONT - EGO_REAR) / 2
    centre = (x + ahead * np.cos(heading), y + ahead * np.sin(heading), heading)
    return box(centre, EGO_FRONT + EGO_REAR, EGO_WIDTH, style, title)
