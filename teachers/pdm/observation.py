"""Agents at 10 Hz and red lights, as the devkit's metric caching makes them of 2 Hz frames.

Linear between a track's own observations, headings unwrapped. Three quirks decide scores and are kept: gaps are
bridged; a track that was seen once stands there at all steps; class, size and "stopped" are those of its first step.
v1 looks at frames 0 to 10 (51 steps) and knows no lights, v2 at frames 0 to 8 (41 steps). Overlaps with the ego at t0
are dropped when v2 contexts are batched (`scoring.context.collate`), not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from scoring.context import AGENT_STEPS, Version
from scoring.vehicle import STEPS
from shards_schema.errors import SampleError
from shards_schema.poses import Float64, to_local
from shards_schema.records import Frame, Scene
from teachers.pdm.route import Route

FRAMES = {"v1": 11, "v2": 9}
"""2 Hz frames from now on that a version's agents come from."""

CLASSES = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object", "ego")
"""In the order of nuPlan's types, which is the order of objects in a frame."""

MOVING = frozenset((0, 1, 2, 7))
"""Places in `CLASSES` of what has a velocity ("agents"); the others are static objects."""

STOPPED_MPS = 5e-2
_FRAME_S, _STEP_S = 0.5, 0.1
_STEPS_A_FRAME = 5


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The annotated objects of one frame, global, ordered by class.

    Attributes:
        tracks: N tokens.
        kind: int64 [N], places in `CLASSES`.
        pose: float64 [N, 3], box centre and heading.
        size: float64 [N, 2], length and width.
        velocity: float64 [N, 2], map axes, 0 for static objects; NaN where the log does not know it.
    """

    tracks: tuple[str, ...]
    kind: NDArray[np.int64]
    pose: Float64
    size: Float64
    velocity: Float64


def objects(frame: Frame) -> Objects:
    """The annotations of a frame in the map frame.

    Raises:
        SampleError: code ``no_annotations``, or ``unknown_class``.
    """
    known = frame.annotations
    if known is None:
        raise SampleError("no_annotations", f"frame {frame.token} has no annotations: agents are unknown")
    for name in known.names:
        if name not in CLASSES:
            raise SampleError("unknown_class", f"frame {frame.token}: class {name!r} is none of {', '.join(CLASSES)}")
    kind = np.array([CLASSES.index(name) for name in known.names], dtype=np.int64)
    order = np.argsort(kind, kind="stable")
    x0, y0, heading = frame.ego_pose
    sin, cos = np.sin(heading), np.cos(heading)
    box, velocity = known.boxes[order], known.velocity[order, :2]
    angle = box[:, 6] + heading
    angle = np.arctan2(np.sin(angle), np.cos(angle))
    moving = np.isin(kind[order], list(MOVING))[:, None]
    return Objects(
        tracks=tuple(known.track_tokens[i] for i in order),
        kind=kind[order],
        pose=np.column_stack(
            (box[:, 0] * cos - box[:, 1] * sin + x0, box[:, 0] * sin + box[:, 1] * cos + y0, _wrapped(angle))
        ),
        size=box[:, 3:5],
        velocity=np.where(
            moving,
            np.column_stack((velocity[:, 0] * cos - velocity[:, 1] * sin, velocity[:, 0] * sin + velocity[:, 1] * cos)),
            0.0,
        ),
    )


def agents(scene: Scene, version: Version) -> dict[str, Any]:
    """The ``agents_*`` arrays of `scoring.context.RewardContext`, in the ego frame, in order of first appearance.

    Raises:
        SampleError: code ``missing_frame``, the scene has too little future; those of `objects`.
    """
    frames = [objects(scene.at(step)) for step in range(FRAMES[version])]
    at = _times(version)
    ordered = [track for _, track in _tracks(frames, at)]
    pose = np.zeros((len(ordered), len(at), 3))
    valid = np.zeros((len(ordered), len(at)), dtype=np.bool_)
    for n, track in enumerate(ordered):
        valid[n] = track.valid
        pose[n, track.valid] = to_local(track.pose[track.valid], scene.current.ego_pose)
    moving = np.array([track.kind in MOVING for track in ordered], dtype=np.bool_)
    slow = np.array([np.hypot(*track.velocity) <= STOPPED_MPS for track in ordered], dtype=np.bool_)
    return {
        "agents_pose": pose,
        "agents_valid": valid,
        "agents_size": np.array([track.size for track in ordered], dtype=np.float64).reshape(-1, 2),
        "agents_is_agent": moving,
        "agents_stopped": ~moving | slow,
    }


def ordered_tracks(frames: Sequence[Objects], version: Version) -> list[tuple[str, int]]:
    """Token and place in `CLASSES` of each agent, in the order of `agents`."""
    return [(token, track.kind) for token, track in _tracks(frames, _times(version))]


def _times(version: Version) -> Float64:
    return np.arange(AGENT_STEPS[version], dtype=np.float64) * _STEP_S


def _tracks(frames: Sequence[Objects], at: Float64) -> list[tuple[str, _Track]]:
    """Every track, by its token, in the order of first appearance."""
    seen: dict[str, list[tuple[int, int]]] = {}
    for f, frame in enumerate(frames):
        for n, token in enumerate(frame.tracks):
            seen.setdefault(token, []).append((f, n))
    tracks = {t: _Track.of([(f * _FRAME_S, frames[f], n) for f, n in places], at) for t, places in seen.items()}
    return sorted(tracks.items(), key=lambda item: (item[1].first, item[1].kind))


def red_lights(scene: Scene, route: Route) -> tuple[list[shapely.Geometry], NDArray[np.bool_]]:
    """Areas of lane connectors that are red at some step of v2, and bool [R, 41] when.

    The route is the *logged* one, not the corrected: so the devkit has it. A light holds its state for 0.5 s.
    """
    areas: dict[int, shapely.Geometry] = {}
    red: list[tuple[int, int]] = []
    for step in range(STEPS):
        for connector in red_connectors(scene.at(step // _STEPS_A_FRAME), route):
            areas.setdefault(connector, route.lanes[connector].polygon)
            red.append((list(areas).index(connector), step))
    active = np.zeros((len(areas), STEPS), dtype=np.bool_)
    for area, step in red:
        active[area, step] = True
    return list(areas.values()), active


def red_connectors(frame: Frame, route: Route) -> list[int]:
    """The lane connectors of `route` whose light is red."""
    return [connector for connector, red in frame.traffic_lights if red and connector in route.lanes]


@dataclass(frozen=True, slots=True, eq=False)
class _Track:
    """One track at the steps asked for: its velocity is that of its first step, its size that of its first sight."""

    first: int
    kind: int
    pose: Float64
    valid: NDArray[np.bool_]
    size: Float64
    velocity: Float64

    @classmethod
    def of(cls, sights: list[tuple[float, Objects, int]], at: Float64) -> _Track:
        _, frame, n = sights[0]
        kind, size = int(frame.kind[n]), frame.size[n]
        times = np.array([t for t, _, _ in sights])
        states = np.array([[*f.pose[i], *f.velocity[i]] for _, f, i in sights])
        if times[0] == times[-1]:
            everywhere = np.ones(len(at), dtype=np.bool_)
            return cls(0, kind, np.repeat(states[:1, :3], len(at), axis=0), everywhere, size, states[0, 3:])
        states[:, 2] = np.unwrap(states[:, 2])
        valid = (times[0] <= at) & (at <= times[-1])
        high = np.searchsorted(times, at).clip(1, len(times) - 1)
        low = high - 1
        slope = (states[high] - states[low]) / (times[high] - times[low])[:, None]
        found = slope * (at - times[low])[:, None] + states[low]
        found[:, 2] = _wrapped(found[:, 2])
        first = int(np.argmax(valid))
        return cls(first, kind, found[:, :3], valid, size, found[first, 3:])


def _wrapped(angle: Float64) -> Float64:
    return np.asarray(np.arctan2(np.sin(angle), np.cos(angle)))
