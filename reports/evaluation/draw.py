"""A scene from above as inline SVG: what the scorer saw, what each driver planned, and where it went wrong.

The ego frame at t0 in metres, x (forward) up, y to the left. Map and agents are those of the reward context, so the
picture shows what the score was computed from, and nothing else. Colours are CSS classes of scenes.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.evaluation.columns import short
from reports.evaluation.failures import Failure
from scoring import Layer, Polygons, RewardContext
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, HEADING, REAR_AXLE_TO_CENTRE, VX, VY

Float64 = NDArray[np.float64]

LAYERS = {
    Layer.ROADBLOCK: "road",
    Layer.INTERSECTION: "crossing",
    Layer.CARPARK: "carpark",
    Layer.DRIVABLE_AREA: "road",
    Layer.LANE: "lane-area",
    Layer.LANE_CONNECTOR: "connector",
}
"""Class of each layer, in the order in which they are painted."""

GHOSTS = (10, 20, 30, 40)
"""Steps (0.1 s) at which agents are drawn faintly."""

SMALLEST, LARGEST = 44.0, 110.0
"""Metres that a picture shows, each way."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A trajectory to draw: `poses` [T, 3] without now, `style` a class, `name` for the legend."""

    name: str
    style: str
    poses: Float64


def scene_svg(
    context: RewardContext, candidate: Line, states: Float64, others: Sequence[Line], failures: Sequence[Failure]
) -> str:
    """The picture.

    Args:
        context: of the scene.
        candidate: what was planned.
        states: [41, 11], what became of it in simulation.
        others: human, PDM-Closed, other policies; painted beneath.
        failures: of the candidate; each with a place is marked.
    """
    view = _View.around(candidate, states, others, failures, context)
    parts = [
        f'<svg class="scene" viewBox="{view.box}" role="img" aria-label="scene {escape(context.token)} from above">',
        *_map(context, view),
        *_lights(context, failures, view),
        f'<polyline class="centreline" points="{_line(context.centerline)}"/>',
        *_agents(context, view),
        *_swath(states),
        *(_trajectory(line, 1.4) for line in others),
        _box(0.0, 0.0, 0.0, "ego", "the ego now"),
        _trajectory(candidate, 2.6, dots=True),
        *_marks(context, states, failures, view),
        view.scale(),
    ]
    return "".join(parts) + "</svg>"


@dataclass(frozen=True, slots=True)
class _View:
    left: float
    top: float
    span: float

    @classmethod
    def around(
        cls,
        candidate: Line,
        states: Float64,
        others: Sequence[Line],
        failures: Sequence[Failure],
        context: RewardContext,
    ) -> _View:
        """A square around everything that is driven, not larger than `LARGEST`: what runs away is cut."""
        points = [np.zeros((1, 2)), candidate.poses[:, :2], states[:, :2], *(line.poses[:, :2] for line in others)]
        for failure in failures:
            if failure.agent is not None and failure.agent_step is not None:
                points.append(np.asarray(context.agents_pose[failure.agent, failure.agent_step, :2])[None])
        every = np.concatenate(points)
        low, high = every.min(0) - 9.0, every.max(0) + 9.0
        span = float(np.clip((high - low).max(), SMALLEST, LARGEST))
        centre = (low + high) / 2
        return cls(-float(centre[1]) - span / 2, -float(centre[0]) - span / 2, span)

    @property
    def box(self) -> str:
        return f"{self.left:.2f} {self.top:.2f} {self.span:.2f} {self.span:.2f}"

    def sees(self, xy: NDArray[Any]) -> bool:
        """Whether the bounds of points [K, 2] reach into the picture."""
        right, up = -xy[:, 1], -xy[:, 0]
        return bool(
            right.max() > self.left
            and right.min() < self.left + self.span
            and up.max() > self.top
            and up.min() < self.top + self.span
        )

    def scale(self) -> str:
        font = self.span / 34
        x, y = self.left + font, self.top + self.span - font
        return (
            f'<line class="scale" x1="{x:.2f}" x2="{x + 10:.2f}" y1="{y:.2f}" y2="{y:.2f}"/>'
            f'<text class="label" x="{x:.2f}" y="{y - font * 0.5:.2f}" font-size="{font:.2f}">10 m</text>'
        )


def _map(context: RewardContext, view: _View) -> Iterator[str]:
    rings = _rings(context.map_polygons)
    for layer, style in LAYERS.items():
        for i in np.flatnonzero(context.map_layer == layer):
            if view.sees(np.concatenate(rings[i])):
                route = " route" if context.map_on_route[i] else ""
                yield f'<path class="{style}{route}" d="{_path(rings[i])}"/>'


def _lights(context: RewardContext, failures: Sequence[Failure], view: _View) -> Iterator[str]:
    run = {f.light for f in failures if f.light is not None}
    for i, rings in enumerate(_rings(context.light_polygons)):
        if not view.sees(np.concatenate(rings)):
            continue
        red = np.flatnonzero(context.light_active[i])
        if len(red):
            when = f"red from {red[0] / 10:.1f} to {red[-1] / 10:.1f} s"
            style = "light run" if i in run else "light"
            yield f'<path class="{style}" d="{_path(rings)}"><title>{when}</title></path>'


def _agents(context: RewardContext, view: _View) -> Iterator[str]:
    for i in range(len(context.agents_pose)):
        valid = context.agents_valid[i]
        length, width = (float(v) for v in context.agents_size[i])
        moving = bool(context.agents_is_agent[i]) and not bool(context.agents_stopped[i])
        style = "mover" if moving else ("agent" if context.agents_is_agent[i] else "thing")
        shown = [k for k in (0, *(GHOSTS if moving else ())) if k < len(valid) and valid[k]]
        if not shown or not view.sees(np.asarray(context.agents_pose[i, shown, :2], np.float64)):
            continue
        if moving:
            known = np.flatnonzero(valid[: GHOSTS[-1] + 1])
            yield f'<polyline class="trail" points="{_line(context.agents_pose[i, known, :2])}"/>'
        for k in reversed(shown):
            x, y, heading = (float(v) for v in context.agents_pose[i, k])
            ghost = " ghost" if k else ""
            yield _rectangle(x, y, heading, length, width, style + ghost, f"{k / 10:.0f} s" if k else "now")


def _swath(states: Float64) -> Iterator[str]:
    """What the car's outline sweeps in simulation."""
    heading = states[:, HEADING]
    ahead = np.stack((np.cos(heading), np.sin(heading)), -1)
    side = HALF_WIDTH * np.stack((-ahead[:, 1], ahead[:, 0]), -1)
    rear = states[:, :2] + (REAR_AXLE_TO_CENTRE - HALF_LENGTH) * ahead
    front = states[:, :2] + (REAR_AXLE_TO_CENTRE + HALF_LENGTH) * ahead
    outline = np.concatenate(
        ([rear[0] + side[0]], (front + side), [front[-1] - side[-1]], (front - side)[::-1], [rear[0] - side[0]])
    )
    yield f'<polygon class="swath" points="{_line(outline)}"/>'
    x, y, last = (float(v) for v in states[-1, :3])
    yield _box(x, y, last, "ego-end", "the ego after 4 s, simulated")


def _trajectory(line: Line, width: float, *, dots: bool = False) -> str:
    poses = np.concatenate((np.zeros((1, 3)), line.poses))
    out = f'<polyline class="line {line.style}" stroke-width="{width}" points="{_line(poses[:, :2])}"/>'
    radius = 0.42 if dots else 0.24
    for i, (x, y, _) in enumerate(line.poses, start=1):
        title = f"<title>{escape(line.name)}, {i / 2:g} s: x {x:.1f} m, y {y:.1f} m</title>"
        out += f'<circle class="point {line.style}" cx="{-y:.2f}" cy="{-x:.2f}" r="{radius}">{title}</circle>'
    return out


def _marks(context: RewardContext, states: Float64, failures: Sequence[Failure], view: _View) -> Iterator[str]:
    font = view.span / 34
    labels: list[tuple[float, float, str]] = []
    for failure in failures:
        at: tuple[float, float] | None = None
        if failure.agent is not None and failure.agent_step is not None and failure.step is not None:
            x, y, heading = (float(v) for v in context.agents_pose[failure.agent, failure.agent_step])
            length, width = (float(v) for v in context.agents_size[failure.agent])
            yield _rectangle(x, y, heading, length, width, "hit", failure.text)
            ego = states[failure.step]
            moved = ego[:2] + failure.ahead * float(np.hypot(ego[VX], ego[VY])) * np.array(
                [np.cos(ego[HEADING]), np.sin(ego[HEADING])]
            )
            yield _box(float(moved[0]), float(moved[1]), float(ego[HEADING]), "hit-ego", failure.text)
            at = (float(moved[0]), float(moved[1]))
        elif failure.points is not None and len(failure.points):
            if failure.stretch:
                yield f'<polyline class="stretch" points="{_line(failure.points)}"/>'
            elif failure.metric == "drivable_area_compliance" and failure.step is not None:
                x, y, heading = (float(v) for v in states[failure.step, :3])
                yield _box(x, y, heading, "hit-ego", failure.text)
            for x, y in () if failure.stretch else failure.points:
                yield f'<circle class="spot" cx="{-y:.2f}" cy="{-x:.2f}" r="{font * 0.55:.2f}"/>'
            right = failure.points[0 if failure.stretch else int(failure.points[:, 1].argmin())]
            at = (float(right[0]), float(right[1]))
        elif failure.light is not None and failure.step is not None:
            x, y, heading = (float(v) for v in states[failure.step, :3])
            yield _box(x, y, heading, "hit-ego", failure.text)
            at = (x, y)
        if at is not None and failure.step is not None:
            labels.append((*at, f"{short(failure.metric)} {failure.step / 10:.1f} s"))
    taken: list[tuple[float, float]] = []
    for x, y, text in labels:
        place = (-y + font * 2.2, -x)
        while any(abs(place[0] - a) < font * 6 and abs(place[1] - b) < font * 1.3 for a, b in taken):
            place = (place[0], place[1] + font * 1.4)
        taken.append(place)
        yield (
            f'<text class="label bad" x="{place[0]:.2f}" y="{place[1]:.2f}" font-size="{font * 1.15:.2f}">'
            f"{escape(text)}</text>"
        )


def _box(x: float, y: float, heading: float, style: str, title: str) -> str:
    """The ego's outline at a pose of its rear axle."""
    cx, cy = x + REAR_AXLE_TO_CENTRE * np.cos(heading), y + REAR_AXLE_TO_CENTRE * np.sin(heading)
    return _rectangle(cx, cy, heading, 2 * HALF_LENGTH, 2 * HALF_WIDTH, style, title)


def _rectangle(x: float, y: float, heading: float, length: float, width: float, style: str, title: str) -> str:
    # SVG turns clockwise where y points down; with (-y, -x) a left turn is anticlockwise on the page.
    return (
        f'<g class="{style}" transform="translate({-y:.2f} {-x:.2f}) rotate({-np.degrees(heading):.1f})">'
        f"<title>{escape(title)}</title>"
        f'<rect x="{-width / 2:.2f}" y="{-length / 2:.2f}" width="{width:.2f}" height="{length:.2f}" rx="0.25"/>'
        f'<path d="M{-width * 0.28:.2f} {-length * 0.26:.2f}L0 {-length * 0.42:.2f}L{width * 0.28:.2f} '
        f'{-length * 0.26:.2f}"/></g>'
    )


def _rings(polygons: Polygons) -> list[list[NDArray[Any]]]:
    rings = [polygons.xy[a:b] for a, b in pairwise(polygons.rings)]
    return [rings[a:b] for a, b in pairwise(polygons.polygons)]


def _path(rings: Sequence[NDArray[Any]]) -> str:
    return "".join("M" + "L".join(f"{-y:.1f} {-x:.1f}" for x, y in ring) + "Z" for ring in rings)


def _line(xy: NDArray[Any]) -> str:
    return " ".join(f"{-y:.2f},{-x:.2f}" for x, y in xy)
