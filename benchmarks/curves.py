"""Curves as one SVG, for a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(axes: Any, title: str, x: str, y: str, series: Series, *, log_x: bool = False, log_y: bool = False) -> None:
    """A panel of curves."""
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def svg(figure: Figure) -> str:
    """The document: letters are text, and the same figure gives the same bytes."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
