"""What is driven, as SVG: the camera frame with the path on the road, and the scene from above."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from reports.inspection.projection import Ground, Pinhole, beside, dense_path
from shards_schema.poses import Float64

FRONT, REAR, WIDTH = 4.049, 1.127, 2.297
"""The ego's outline from its rear axle [m]: 5.176 long, 2.297 wide."""

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


def camera_svg(image_uri: str, camera: Mapping[str, Any], poses: Float64, ground: Ground, label: str) -> str:
    """One camera frame with the ego's future lane, its centre line, and a dot each 0.5 s.

    Args:
        image_uri: the frame, as a ``data:`` URI of any size with the camera's aspect.
        camera: its entry in ``<token>.json``.
        poses: [N, 3] local, the first is now.
        ground: the plane that they lie on.
        label: told to screen readers.
    """
    eye = Pinhole.of(camera)
    w, h = eye.width, eye.height
    unit = w / 640
    out = [
        f'<svg class="frame" viewBox="0 0 {w} {h}" role="img" aria-label="{escape(label)}">'
        f'<image href="{image_uri}" width="{w}" height="{h}"/>'
    ]
    if len(poses) > 1:
        path = dense_path(poses)
        edges = [_before(ground.lift(beside(path, side * WIDTH / 2)), eye) for side in (1.0, -1.0)]
        if all(len(edge) > 1 for edge in edges):
            lane = np.concatenate([edges[0], edges[1][::-1]])
            out.append(f'<polygon class="lane" points="{_points(lane)}"/>')
        for piece in eye.polyline(ground.lift(path[:, :2])):
            out.append(f'<polyline class="path" points="{_points(piece)}" stroke-width="{2 * unit:.2f}"/>')
        pixels, depth = eye.project(ground.lift(poses[1:, :2]))
        for i, ((u, v), z) in enumerate(zip(pixels, depth, strict=True), start=1):
            if z > 1 and 0 <= u <= w and 0 <= v <= h:
                radius = unit * float(np.clip(34 / z, 1.8, 6))
                where = f'cx="{u:.1f}" cy="{v:.1f}" r="{radius:.1f}"'
                out.append(f'<circle class="dot" {where}><title>+{i / 2:g} s</title></circle>')
    return "".join(out) + "</svg>"


def _before(points: Float64, eye: Pinhole) -> Float64:
    """The pixels of the longest piece of a line that lies before the camera."""
    return max(eye.polyline(points), key=len, default=np.zeros((0, 2)))


def above_svg(document: Mapping[str, Any]) -> str:
    """The scene from above, x (forward) up and y to the left, in metres: boxes, history, future, ego, grid, scale."""
    poses = path_of(document)
    history = np.asarray(document["history"]["trajectory"], np.float64).reshape(-1, 3)
    every = np.concatenate([history, poses])[:, :2]
    low, high = every.min(0) - 10, every.max(0) + 12
    span = float(max(50.0, *(high - low)))
    centre = (low + high) / 2
    left, top = -centre[1] - span / 2, -centre[0] - span / 2
    font = span / 30
    out = [
        f'<svg class="above" viewBox="{left:.2f} {top:.2f} {span:.2f} {span:.2f}" role="img" '
        f'aria-label="the scene from above">{_grid(left, top, span)}'
    ]
    out += _boxes(document.get("annotations"), left, top, span)
    out.append(f'<polyline class="past" points="{_plan(history[:, :2])}"/>')
    out += [f'<circle class="past-dot" cx="{-y:.2f}" cy="{-x:.2f}" r="{span / 160:.2f}"/>' for x, y, _ in history[:-1]]
    out.append(
        f'<rect class="ego" x="{-WIDTH / 2}" y="{-FRONT}" width="{WIDTH}" height="{FRONT + REAR:.3f}" rx="0.4">'
        f"<title>ego, rear axle at the origin</title></rect>"
    )
    if len(poses) > 1:
        out.append(f'<polyline class="path" points="{_plan(dense_path(poses)[:, :2])}" stroke-width="1.6"/>')
    for i, (x, y, _) in enumerate(poses[1:], start=1):
        out.append(
            f'<circle class="dot" cx="{-y:.2f}" cy="{-x:.2f}" r="{span / 120:.2f}"><title>+{i / 2:g} s: '
            f"x {x:.1f} m, y {y:.1f} m</title></circle>"
        )
        if i % 2 == 0:
            out.append(
                f'<text x="{-y + font * 0.6:.2f}" y="{-x + font * 0.35:.2f}" font-size="{font * 0.8:.2f}">'
                f"{i / 2:g} s</text>"
            )
    out.append(_scale(left, top, span, font))
    return "".join(out) + "</svg>"


def _grid(left: float, top: float, span: float) -> str:
    lines = []
    for k in range(int(np.ceil(left / 10)), int((left + span) // 10) + 1):
        kind = "axis" if k == 0 else "grid"
        lines.append(f'<line class="{kind}" x1="{k * 10}" x2="{k * 10}" y1="{top:.2f}" y2="{top + span:.2f}"/>')
    for k in range(int(np.ceil(top / 10)), int((top + span) // 10) + 1):
        kind = "axis" if k == 0 else "grid"
        lines.append(f'<line class="{kind}" y1="{k * 10}" y2="{k * 10}" x1="{left:.2f}" x2="{left + span:.2f}"/>')
    return "".join(lines)


def _boxes(annotations: Mapping[str, Any] | None, left: float, top: float, span: float) -> list[str]:
    if not annotations:
        return []
    out = []
    for box, name in zip(annotations["boxes"], annotations["names"], strict=True):
        x, y, _, length, width, _, heading = (float(v) for v in box)
        reach = max(length, width)
        if not (left - reach < -y < left + span + reach and top - reach < -x < top + span + reach):
            continue
        # SVG turns clockwise for a y axis that points down; with (-y, -x) a left turn is anticlockwise on the page
        out.append(
            f'<g transform="translate({-y:.2f} {-x:.2f}) rotate({-np.degrees(heading):.1f})" '
            f'style="color:{CLASSES.get(name, OTHER)}"><title>{escape(str(name))}</title>'
            f'<rect class="box" x="{-width / 2:.2f}" y="{-length / 2:.2f}" width="{width:.2f}" height="{length:.2f}"/>'
            f'<line class="nose" x1="0" y1="0" x2="0" y2="{-length / 2:.2f}"/></g>'
        )
    return out


def _scale(left: float, top: float, span: float, font: float) -> str:
    x, y = left + font, top + span - font
    return (
        f'<line class="scale" x1="{x:.2f}" x2="{x + 10:.2f}" y1="{y:.2f}" y2="{y:.2f}"/>'
        f'<text x="{x:.2f}" y="{y - font * 0.4:.2f}" font-size="{font:.2f}">10 m</text>'
    )


def legend(annotations: Mapping[str, Any] | None) -> str:
    """The classes of a frame with their colours and counts, HTML."""
    if annotations is None:
        return '<span class="quiet">no annotations in this log</span>'
    names = [str(n) for n in annotations["names"]]
    kinds = sorted(set(names), key=lambda n: (-names.count(n), n))
    return "".join(
        f'<span class="key"><i style="background:{CLASSES.get(k, OTHER)}"></i>{escape(k)} {names.count(k)}</span>'
        for k in kinds
    )


def _points(pixels: Float64) -> str:
    return " ".join(f"{u:.1f},{v:.1f}" for u, v in pixels)


def _plan(xy: Float64) -> str:
    return " ".join(f"{-y:.2f},{-x:.2f}" for x, y in xy)
