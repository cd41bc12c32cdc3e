"""Line charts and stacked bars as one SVG, without a plotting library: panels side by side, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f5fa8", "#d1691f", "#2a8a4a", "#a3317c", "#7a6a1f", "#4a4a4a", "#c03030", "#3aa0b0", "#9a7bd0", "#b8b8b8")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 348, 62, 14, 34, 92
"""Of a panel, and what its axes leave around the plot, in pixels."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A panel of curves; `log` says which axes are logarithmic, of "x", "y", "xy", ""."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[Point]]
    log: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A panel of stacked bars: row -> part -> value."""

    title: str
    x: str
    rows: Mapping[str, Mapping[str, float]]


def svg(panels: Sequence[Lines | Bars], columns: int = 2) -> str:
    """The document."""
    rows = -(-len(panels) // columns)
    body = "".join(
        f'<g transform="translate({i % columns * WIDTH},{i // columns * HEIGHT})">{_panel(panel)}</g>'
        for i, panel in enumerate(panels)
    )
    size = f'width="{columns * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {columns * WIDTH} {rows * HEIGHT}"'
    style = 'font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#222"'
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{white}{body}\n</svg>\n'


def _panel(panel: Lines | Bars) -> str:
    return _lines(panel) if isinstance(panel, Lines) else _bars(panel)


def _lines(panel: Lines) -> str:
    points = [p for series in panel.series.values() for p in series]
    x = _Axis([p[0] for p in points], "x" in panel.log, LEFT, WIDTH - RIGHT)
    ends = [v for v in (panel.low, panel.high) if v is not None]
    y = _Axis([*(p[1] for p in points), *ends], "y" in panel.log, HEIGHT - BOTTOM, TOP)
    out = [_frame(panel.title, panel.x, panel.y)]
    for value, label in x.ticks():
        out.append(_line(x.at(value), TOP, x.at(value), HEIGHT - BOTTOM, "#e6e6e6"))
        out.append(_text(x.at(value), HEIGHT - BOTTOM + 14, label, "middle"))
    for value, label in y.ticks():
        out.append(_line(LEFT, y.at(value), WIDTH - RIGHT, y.at(value), "#e6e6e6"))
        out.append(_text(LEFT - 5, y.at(value) + 4, label, "end"))
    for i, series in enumerate(panel.series.values()):
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in series)
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="1.8"/>')
        out += [f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="2.6" fill="{COLOURS[i]}"/>' for a, b in series]
    return "\n".join([*out, _legend(list(panel.series))])


def _bars(panel: Bars) -> str:
    parts = list(dict.fromkeys(part for row in panel.rows.values() for part in row))
    x = _Axis([0.0, *(sum(row.values()) for row in panel.rows.values())], False, LEFT + 40, WIDTH - RIGHT)
    out = [_frame(panel.title, panel.x, "", LEFT + 40)]
    for value, label in x.ticks():
        out.append(_line(x.at(value), TOP, x.at(value), HEIGHT - BOTTOM, "#e6e6e6"))
        out.append(_text(x.at(value), HEIGHT - BOTTOM + 14, label, "middle"))
    step = (HEIGHT - BOTTOM - TOP) / len(panel.rows)
    for i, (name, row) in enumerate(panel.rows.items()):
        top, at = TOP + i * step + step * 0.18, 0.0
        out.append(_text(LEFT + 35, top + step * 0.32 + 4, name, "end"))
        for part, value in row.items():
            width = x.at(at + value) - x.at(at)
            colour = COLOURS[parts.index(part)]
            out.append(f'<rect x="{x.at(at):.1f}" y="{top:.1f}" width="{width:.1f}" height="{step * 0.64:.1f}" '
                       f'fill="{colour}"/>')  # fmt: skip
            at += value
    return "\n".join([*out, _legend(parts)])


class _Axis:
    """Values to pixels."""

    def __init__(self, values: Sequence[float], log: bool, first: float, last: float) -> None:
        low, high = min(values), max(values)
        self._log, self._first, self._last = log, first, last
        if log:
            self._low, self._high = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
            self._high = max(self._high, self._low + 1)
        else:
            self._step = _nice((high - low or 1) / 5)
            self._low, self._high = math.floor(low / self._step + 1e-9), math.ceil(high / self._step - 1e-9)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        scaled = math.log10(value) if self._log else value / self._step
        return self._first + (scaled - self._low) / (self._high - self._low) * (self._last - self._first)

    def ticks(self) -> list[tuple[float, str]]:
        """Values, and what is written there."""
        steps = range(self._low, self._high + 1)
        values = [10.0**i if self._log else i * self._step for i in steps]
        return [(value, _number(value)) for value in values]


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step - 1e-12)


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{round(value, 6):g}"


def _frame(title: str, x: str, y: str, left: float = LEFT) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return "\n".join(
        [
            f'<text x="{left}" y="{TOP - 12}" font-size="13" font-weight="bold">{escape(title)}</text>',
            _text((left + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 29, x, "middle"),
            f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
            f'<rect x="{left}" y="{TOP}" width="{WIDTH - RIGHT - left}" height="{HEIGHT - BOTTOM - TOP}" fill="none" '
            'stroke="#888"/>',
        ]
    )


def _legend(names: Sequence[str]) -> str:
    out, x, y = [], 12.0, HEIGHT - BOTTOM + 46.0
    for i, name in enumerate(names):
        width = 20 + 5.6 * len(name)
        if x + width > WIDTH - 4:
            x, y = 12.0, y + 14
        out.append(f'<rect x="{x:.1f}" y="{y - 8}" width="9" height="9" fill="{COLOURS[i]}"/>')
        out.append(_text(x + 13, y, name, "start"))
        x += width
    return "\n".join(out)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
