"""A scene from above: what the scorer saw, what each driver planned, and where it went wrong.

Map and agents are those of the reward context, so the picture shows what the score was computed from, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from reports.above import View, box, car, dot, line, pairs, text
from reports.evaluation.columns import short
from reports.evaluation.failures import Failure
from reports.pages import tag
from scoring import Layer, Polygons, RewardContext
from scoring.vehicle import HEADING, VX, VY, Path
from shards_schema.poses import Float64

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
) -> Markup:
    """The picture.

    Args:
        context: of the scene.
        candidate: what was planned.
        states: [41, 11], what became of it in simulation.
        others: human, PDM-Closed, other policies; painted beneath.
        failures: of the candidate; each with a place is marked.
    """
    hit = [context.agents_pose[f.agent, f.agent_step][None] for f in failures if f.agent is not None]
    driven = [np.zeros((1, 2)), states, candidate.poses, *(other.poses for other in others)]
    view = View.around([*driven, *hit], SMALLEST, LARGEST)
    return view.svg(
        "scene",
        f"scene {context.token} from above",
        _map(context, view),
        _lights(context, failures, view),
        line(context.centerline, "centreline"),
        _agents(context, view),
        _swath(states),
        (part for other in others for part in _trajectory(other, 1.4, 0.24)),
        car((0.0, 0.0, 0.0), "ego", "the ego now"),
        _trajectory(candidate, 2.6, 0.42),
        _marks(context, states, failures, view),
    )


def _map(context: RewardContext, view: View) -> Iterator[Markup]:
    rings = _rings(context.map_polygons)
    for layer, style in LAYERS.items():
        for i in np.flatnonzero(context.map_layer == layer):
            if view.sees(np.concatenate(rings[i])):
                yield tag("path", class_=style + " route" * bool(context.map_on_route[i]), d=_outline(rings[i]))


def _lights(context: RewardContext, failures: Sequence[Failure], view: View) -> Iterator[Markup]:
    run = {f.light for f in failures if f.light is not None}
    for i, rings in enumerate(_rings(context.light_polygons)):
        red = np.flatnonzero(context.light_active[i])
        if len(red) and view.sees(np.concatenate(rings)):
            when = tag("title", f"red from {red[0] / 10:.1f} to {red[-1] / 10:.1f} s")
            yield tag("path", when, class_="light" + " run" * (i in run), d=_outline(rings))


def _agents(context: RewardContext, view: View) -> Iterator[Markup]:
    for i in range(len(context.agents_pose)):
        poses, valid = context.agents_pose[i], context.agents_valid[i]
        length, width = (float(v) for v in context.agents_size[i])
        moving = bool(context.agents_is_agent[i]) and not bool(context.agents_stopped[i])
        style = "mover" if moving else "agent" if context.agents_is_agent[i] else "thing"
        shown = [k for k in (0, *(GHOSTS if moving else ())) if k < len(valid) and valid[k]]
        if not shown or not view.sees(poses[shown]):
            continue
        if moving:
            yield line(poses[np.flatnonzero(valid[: GHOSTS[-1] + 1])], "trail")
        for k in reversed(shown):
            yield box(poses[k], length, width, style + " ghost" * (k > 0), f"{k / 10:.0f} s" if k else "now")


def _swath(states: Float64) -> Iterator[Markup]:
    """What the car's outline sweeps in simulation."""
    corners = Path.of(torch.from_numpy(states)[None], torch.zeros(1, dtype=torch.int64)).corners[0].numpy()
    outline = np.concatenate((corners[:1, 1], corners[:, 0], corners[::-1, 3], corners[:1, 2]))
    yield tag("polygon", class_="swath", points=pairs(outline))
    yield car(states[-1, :3], "ego-end", "the ego after 4 s, simulated")


def _trajectory(drawn: Line, width: float, radius: float) -> Iterator[Markup]:
    yield line(np.concatenate((np.zeros((1, 3)), drawn.poses)), f"line {drawn.style}", stroke_width=width)
    for i, (x, y, _) in enumerate(drawn.poses, start=1):
        yield dot(x, y, radius, f"point {drawn.style}", f"{drawn.name}, {i / 2:g} s: x {x:.1f} m, y {y:.1f} m")


def _marks(context: RewardContext, states: Float64, failures: Sequence[Failure], view: View) -> Iterator[Markup]:
    """Each failure that has a place; the words of two that are near each other are set apart."""
    taken: list[tuple[float, float]] = []
    for failure in failures:
        if failure.step is None:
            continue
        pose, at = states[failure.step, :3].copy(), None
        if failure.agent is not None:
            ego = states[failure.step]
            reach = failure.ahead * float(np.hypot(ego[VX], ego[VY]))
            pose[:2] += reach * np.array([np.cos(ego[HEADING]), np.sin(ego[HEADING])])
            length, width = (float(v) for v in context.agents_size[failure.agent])
            yield box(context.agents_pose[failure.agent, failure.agent_step], length, width, "hit", failure.text)
            at = pose
        elif failure.points is not None and failure.stretch:
            yield line(failure.points, "stretch")
            at = failure.points[0]
        elif failure.points is not None:
            yield from (dot(x, y, view.font * 0.52, "spot") for x, y in failure.points)
            at = failure.points[int(failure.points[:, 1].argmin())]
        elif failure.light is not None:
            at = pose
        if at is None:
            continue
        if failure.points is None or failure.metric == "drivable_area_compliance":
            yield car(pose, "hit-ego", failure.text)
        right, down = -float(at[1]) + view.font * 2, -float(at[0])
        while any(abs(right - a) < view.font * 6 and abs(down - b) < view.font * 1.2 for a, b in taken):
            down += view.font * 1.3
        taken.append((right, down))
        words = f"{short(failure.metric)} {failure.step / 10:.1f} s"
        yield text(right, down, words, view.font * 1.08, "label bad")


def _rings(polygons: Polygons) -> list[list[NDArray[Any]]]:
    rings = [polygons.xy[a:b] for a, b in pairwise(polygons.rings)]
    return [rings[a:b] for a, b in pairwise(polygons.polygons)]


def _outline(rings: Sequence[NDArray[Any]]) -> str:
    return "".join("M" + "L".join(f"{-y:.1f} {-x:.1f}" for x, y in ring) + "Z" for ring in rings)
