"""What is driven, as SVG: the camera frame with the path on the road, and the scene from above."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from reports.above import View, box, car, dot, line, text
from reports.inspection.projection import Ground, beside, dense_path, polyline
from reports.pages import tag
from shards_schema.lens import Lens
from shards_schema.poses import EGO_WIDTH, Float64

CLASSES = {
    "vehicle": "#4c8dff",
    "pedestrian": "#ff5d73",
    "bicycle": "#c678ff",
    "traffic_cone": "#ff9f40",
    "barrier": "#b98a5a",
    "czone_sign": "#e0b400",
    "generic_object": "#8c98a8",
}
"""Colour of each annotated class; any other name is grey."""
OTHER = "#8c98a8"


def path_of(document: Mapping[str, Any]) -> Float64:
    """The future of ``<token>.json`` with now before it, [F + 1, 3]."""
    future = np.asarray(document["future"]["trajectory"], np.float64).reshape(-1, 3)
    return np.concatenate([np.zeros((1, 3)), future])


def camera_svg(image_uri: str, camera: Mapping[str, Any], poses: Float64, ground: Ground, label: str) -> Markup:
    """One camera frame with the ego's future lane, its centre line, and a dot each 0.5 s.

    Args:
        image_uri: the frame, as a ``data:`` URI of any size with the camera's aspect.
        camera: its entry in ``<token>.json``.
        poses: [N, 3] local, the first is now.
        ground: the plane that they lie on.
        label: told to screen readers.
    """
    eye = Lens(camera)
    width, height = eye.size
    parts = [tag("image", href=image_uri, width=width, height=height), *_on_the_road(eye, poses, ground)]
    return tag("svg", parts, class_="frame", viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def _on_the_road(eye: Lens, poses: Float64, ground: Ground) -> Iterator[Markup]:
    if len(poses) < 2:
        return
    (width, height), path = eye.size, dense_path(poses)
    unit = width / 640
    lines = (polyline(eye, ground.lift(beside(path, side * EGO_WIDTH / 2))) for side in (1.0, -1.0))
    edges = [max(pieces, key=len, default=np.zeros((0, 2))) for pieces in lines]  # the longest that the camera sees
    if all(len(edge) > 1 for edge in edges):
        yield tag("polygon", class_="lane", points=_pixels(np.concatenate([edges[0], edges[1][::-1]])))
    for piece in polyline(eye, ground.lift(path[:, :2])):
        yield tag("polyline", class_="path", points=_pixels(piece), stroke_width=f"{2 * unit:.2f}")
    for i, point in enumerate(eye.to_camera(ground.lift(poses[1:, :2])), start=1):
        if point[2] <= 1:
            continue
        (u, v), known = eye.project(point)
        if known and 0 <= u <= width and 0 <= v <= height:
            radius = unit * float(np.clip(34 / point[2], 1.8, 6))
            where = {"cx": f"{u:.1f}", "cy": f"{v:.1f}", "r": f"{radius:.1f}"}
            yield tag("circle", tag("title", f"+{i / 2:g} s"), class_="dot", **where)


def above_svg(document: Mapping[str, Any]) -> Markup:
    """The scene from above, x (forward) up and y to the left, in metres: boxes, history, future, ego, grid, scale."""
    poses = path_of(document)
    history = np.asarray(document["history"]["trajectory"], np.float64).reshape(-1, 3)
    view = View.around([history, poses], 50.0)
    return view.svg(
        "above",
        "the scene from above",
        _grid(view),
        _boxes(document.get("annotations"), view),
        line(history, "past"),
        (dot(x, y, view.span / 160, "past-dot") for x, y, _ in history[:-1]),
        car((0.0, 0.0, 0.0), "ego", "ego, rear axle at the origin"),
        _future(poses, view),
    )


def _future(poses: Float64, view: View) -> Iterator[Markup]:
    if len(poses) > 1:
        yield line(dense_path(poses), "path", stroke_width=1.6)
    for i, (x, y, _) in enumerate(poses[1:], start=1):
        yield dot(x, y, view.span / 120, "dot", f"+{i / 2:g} s: x {x:.1f} m, y {y:.1f} m")
        if i % 2 == 0:
            yield text(-y + view.font * 0.6, -x + view.font * 0.35, f"{i / 2:g} s", view.font * 0.8)


def _grid(view: View) -> Iterator[Markup]:
    for along, across, first, other in (("x", "y", view.left, view.top), ("y", "x", view.top, view.left)):
        for k in range(int(np.ceil(first / 10)), int((first + view.span) // 10) + 1):
            ends = {f"{along}1": 10.0 * k, f"{along}2": 10.0 * k}
            ends |= {f"{across}1": round(other, 2), f"{across}2": round(other + view.span, 2)}
            yield tag("line", class_="grid" if k else "axis", **ends)


def _boxes(annotations: Mapping[str, Any] | None, view: View) -> Iterator[Markup]:
    for (x, y, _, length, width, _, heading), name in _annotated(annotations):
        reach = max(length, width)
        if view.sees(np.array([[x - reach, y - reach], [x + reach, y + reach]])):
            yield box((x, y, heading), length, width, "box", name, CLASSES.get(name, OTHER))


def _annotated(annotations: Mapping[str, Any] | None) -> Iterator[tuple[list[float], str]]:
    if annotations:
        yield from zip(annotations["boxes"], map(str, annotations["names"]), strict=True)


def legend(annotations: Mapping[str, Any] | None) -> Markup:
    """The classes of a frame with their colours and counts."""
    if annotations is None:
        return tag("span", "no annotations in this log", class_="quiet")
    names = [name for _, name in _annotated(annotations)]
    kinds = sorted(set(names), key=lambda n: (-names.count(n), n))
    return Markup("").join(
        tag("span", tag("i", style=f"background:{CLASSES.get(k, OTHER)}"), f"{k} {names.count(k)}", class_="key")
        for k in kinds
    )


def _pixels(points: Float64) -> str:
    return " ".join(f"{u:.1f},{v:.1f}" for u, v in points)
