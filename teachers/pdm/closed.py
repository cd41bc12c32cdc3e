"""PDM-Closed, the rule-based planner whose progress NAVSIM measures others by.

Three paths (the centerline, and 1 m to its right and left) times five target speeds make 15 proposals. Each follows its
path by the intelligent driver model (IDM) behind whatever stands in its corridor. All are simulated and scored against
the forecast, and the first of the best is the answer: its *unsimulated* poses, 41 of them, are what a context keeps.

Kept quirks: proposals begin at the ego's projection onto the path; at 0.1 s there is no leader yet but a wall at the
path's start, so all brake; the leader is looked for every 0.2 s, and its speed and rear length are left over from the
proposal before where nothing overwrites them.

A polyline with headings that one can walk along: where a proposal of PDM-Closed gets after so many metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from shapely.ops import substring
from torch import Tensor

from scoring.aggregate import MULTIPLICATIVE, epdms, pdms, product
from scoring.context import RewardContext, collate
from scoring.reference import interpolate, sample_times
from scoring.scorer import rollout
from scoring.vehicle import HALF_LENGTH, HALF_WIDTH, STEPS
from shards_schema.poses import Float64, to_local
from teachers.pdm.forecast import Forecast, Obstacles, forecast
from teachers.pdm.scene_context import Prepared, ego_outlines

_FIRST_M = 1e-5


class DiscretePath:
    """Global poses [P, 3] in driving order; points may repeat.

    Attributes:
        line: the same as a LineString.
        length: metres.
    """

    def __init__(self, poses: Float64) -> None:
        self._poses = poses.copy()
        self._poses[:, 2] = np.unwrap(poses[:, 2])
        step = np.diff(poses[:, :2], axis=0)
        self._along = np.append(0.0, np.sqrt((step**2).sum(axis=1))).cumsum()
        self.line = shapely.linestrings(poses[:, :2])
        self.length = float(self._along[-1])

    def project(self, points: NDArray[np.object_] | shapely.Geometry) -> Float64:
        """Metres along the line to the place nearest to each point."""
        return np.asarray(shapely.line_locate_point(self.line, points))

    def at(self, metres: Float64) -> Float64:
        """Poses [K, 3] after `metres` [K], held at both ends; headings in (-pi, pi]. NaN metres give 0, as upstream."""
        metres = np.clip(metres, _FIRST_M, self.length)
        high = np.searchsorted(self._along, metres).clip(1, len(self._along) - 1)
        low = high - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (self._poses[high] - self._poses[low]) / (self._along[high] - self._along[low])[:, None]
            out = slope * (metres - self._along[low])[:, None] + self._poses[low]
        out[:, 2] = np.arctan2(np.sin(out[:, 2]), np.cos(out[:, 2]))
        return np.where(np.isnan(out), 0.0, out)

    def part(self, start: float, end: float) -> shapely.Geometry:
        """The line from `start` to `end` metres: the given points within, if there are two; else cut exactly."""
        start, end = np.clip((start, end), 0.0, self.length)
        within = (start <= self._along) & (self._along <= end)
        if within.sum() > 1:
            return shapely.linestrings(self._poses[within, :2])
        return substring(self.line, start, end)


def shifted(poses: Float64, offset: float) -> Float64:
    """`poses` [P, 3] moved `offset` metres to the left of their headings."""
    left = poses[:, 2] + np.pi / 2
    return np.column_stack((poses[:, 0] + np.cos(left) * offset, poses[:, 1] + np.sin(left) * offset, poses[:, 2]))


OFFSETS_M = (0.0, -1.0, 1.0)
SPEED_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
PROPOSALS = len(OFFSETS_M) * len(SPEED_FRACTIONS)

_FALLBACK_MPS = 15.0
_MIN_GAP_M, _HEADWAY_S = 1.0, 1.5
_ACCEL, _DECEL, _EXPONENT = 1.5, 3.0, 10
_STEP_S, _STEP_US = 0.1, 100_000
_LEADER_EVERY = 2
_CORRIDOR_S = 50 * _STEP_S
_MINIMUM_M = 5.0
_TIE = 1e-12
"""Scores closer than this are equal: rounding, which depends on the machine, must not choose."""


def with_closed(prepared: Sequence[Prepared]) -> list[list[RewardContext]]:
    """The contexts of each scene with the path of PDM-Closed, for `scoring.complete`; one batch a version."""
    if not prepared:
        return []
    expected = [forecast(p) for p in prepared]
    paths = [proposals(p, f) for p, f in zip(prepared, expected, strict=True)]
    local = [to_local(path, p.scene.current.ego_pose) for path, p in zip(paths, prepared, strict=True)]
    out: list[list[RewardContext]] = [[] for _ in prepared]
    for n in range(len(prepared[0].contexts)):
        bases = [p.contexts[n] for p in prepared]
        imagined = [
            f.context(base, p.scene.current.ego_pose) for f, base, p in zip(expected, bases, prepared, strict=True)
        ]
        best = _best(imagined, torch.from_numpy(np.stack(local)))
        for contexts, base, candidates, choice in zip(out, bases, local, best, strict=True):
            contexts.append(replace(base, pdm_poses=_sampled(candidates[choice], base.timestamp_us)))
    return out


def proposals(prepared: Prepared, expected: Forecast) -> Float64:
    """float64 [15, 41, 3] global poses: path by path, each from slow to fast."""
    limit = prepared.lane.speed_limit
    target = np.array(SPEED_FRACTIONS) * (_FALLBACK_MPS if limit is None else limit)
    speed = float(np.float32(prepared.scene.current.velocity[0]))
    pose = prepared.scene.current.ego_pose
    obstacles = [expected.obstacles(step) for step in range(0, STEPS, _LEADER_EVERY)]
    paths = [DiscretePath(shifted(prepared.centerline, o) if o else prepared.centerline) for o in OFFSETS_M]
    return np.concatenate([_along(path, pose, speed, target, expected, obstacles) for path in paths])


def _along(
    path: DiscretePath,
    pose: Float64,
    speed: float,
    target: Float64,
    expected: Forecast,
    obstacles: Sequence[Obstacles],
) -> Float64:
    """[5, 41, 3]: one path at each target speed."""
    progress = np.full(len(target), path.project(shapely.Point(pose[:2])))
    velocity = np.full(len(target), speed)
    ahead = path.part(progress[0], progress[0] + abs(target.max()) * _CORRIDOR_S)
    corridor = shapely.buffer(ahead, HALF_WIDTH, cap_style="square")
    out = np.zeros((len(target), STEPS, 3))
    out[:, 0] = path.at(progress)
    leader = np.zeros((len(target), 3))
    for step in range(1, STEPS):
        if step % _LEADER_EVERY == 0:
            leader = _leaders(path, corridor, expected, obstacles[step // _LEADER_EVERY], progress, out[:, step - 1])
        progress, velocity = _idm(progress, velocity, target, leader)
        out[:, step] = path.at(progress)
    return out


def _leaders(
    path: DiscretePath,
    corridor: shapely.Geometry,
    expected: Forecast,
    obstacles: Obstacles,
    progress: Float64,
    poses: Float64,
) -> Float64:
    """[5, 3]: metres along the path to what is ahead of each proposal, its speed, and its rear length."""
    places = obstacles.meeting(corridor)
    near = obstacles.outlines[places]
    along = path.project(shapely.centroid(near)) if len(places) else np.zeros(0)
    distance = shapely.distance(ego_outlines(poses)[:, None], near[None])
    first_light = len(expected.pose)
    out = np.zeros((len(progress), 3))
    row = np.zeros(3)  # carried over from proposal to proposal, as upstream
    for n, metres in enumerate(progress):
        ahead = np.flatnonzero(along > metres)
        if len(ahead):
            first = ahead[np.argmin(distance[n, ahead])]
            row[0] = metres + distance[n, first]
            if places[first] < first_light:
                row[1] = expected.speed[places[first]] * np.cos(expected.heading[places[first]] - poses[n, 2])
        else:
            row[0], row[2] = path.length, HALF_LENGTH
        out[n] = row
    return out


def _idm(progress: Float64, velocity: Float64, target: Float64, leader: Float64) -> tuple[Float64, Float64]:
    """One step of the intelligent driver model (Treiber et al. 2000) by Euler's rule."""
    wanted = _MIN_GAP_M + velocity * _HEADWAY_S + velocity * (velocity - leader[:, 1]) / (2 * np.sqrt(_ACCEL * _DECEL))
    gap = np.maximum(leader[:, 0] - progress - leader[:, 2], _MIN_GAP_M)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        accel = _ACCEL * (1 - (velocity / target) ** _EXPONENT - (wanted / gap) ** 2)
    return progress + _STEP_S * velocity, velocity + _STEP_S * np.clip(accel, -_DECEL, _ACCEL)


def _best(imagined: Sequence[RewardContext], local: Tensor) -> list[int]:
    """The place of the best proposal of each scene; `local` [S, 15, 41, 3] in the ego frames."""
    batch = collate(imagined)
    scene = torch.arange(len(batch)).repeat_interleave(PROPOSALS)
    rows, _ = rollout(batch, local.flatten(0, 1), scene)
    by_scene = {name: value.view(len(batch), PROPOSALS) for name, value in rows.items()}
    multiplier = product(by_scene, MULTIPLICATIVE[batch.version])
    raw = by_scene.pop("raw_progress")
    masked = raw * multiplier
    most = masked.max(dim=1, keepdim=True).values
    # Unlike a candidate, a proposal is compared with all of them.
    if batch.version == "v1":
        by_scene["ego_progress"] = torch.where(most > _MINIMUM_M, masked / most, (multiplier != 0).double())
        score = pdms(by_scene)
    else:
        by_scene["ego_progress"] = torch.where(most > _MINIMUM_M, (raw / most).clamp(0.0, 1.0), 1.0)
        by_scene["history_comfort"] = torch.ones_like(raw)
        score = epdms(by_scene)
    best = score >= score.max(dim=1, keepdim=True).values - _TIE
    return [int(n) for n in best.double().argmax(dim=1)]


def _sampled(poses: Float64, timestamp_us: int) -> Float64:
    """Local `poses` [41, 3] at 0.1 s as the devkit samples any trajectory (whole microseconds)."""
    times = torch.arange(STEPS)[None] * _STEP_US
    at = sample_times(torch.tensor([timestamp_us]))
    return np.asarray(interpolate(times, torch.from_numpy(poses)[None], at)[0].numpy(), dtype=np.float64)
