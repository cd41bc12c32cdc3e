"""Where and when a trajectory lost its score: the scorer's own rules, asked about one agent, one step, one corner.

A sub-score says only that something happened. Here the same functions are called with the batch cut down to one
suspect at a time (one contact, one red step), so that what is shown is what was scored; nothing is decided anew but
the distances told in sentences. Runs only for the few scenes that a page shows.

Legend: steps i of 0.1 s, 0..40. Everything is in the ego frame at t0, metres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoring import ContextBatch, RewardContext, collate
from scoring.areas import Areas, areas
from scoring.geometry import bounds, contains, distances, pairs
from scoring.metrics.collision import no_at_fault_collisions
from scoring.metrics.contacts import LOOKAHEAD, Contacts, contacts
from scoring.metrics.driving_direction import driving_direction_compliance
from scoring.metrics.progress import raw_progress
from scoring.metrics.time_to_collision import time_to_collision_within_bound
from scoring.metrics.traffic_light import traffic_light_compliance
from scoring.scorer import DEFAULT_MAX_BYTES
from scoring.vehicle import AX, STEPS, YAW_RATE, Path
from shards_schema.poses import Float64


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """One sub-score below 1.

    Attributes:
        metric: its NAVSIM name.
        value: of it.
        text: what happened, a sentence.
        step: when, or None.
        agent: the agent of the context that it happened with, or None.
        agent_step: the step at which that agent is drawn (ahead of `step` for time to collision).
        ahead: seconds that the ego's outline is moved on at constant velocity (time to collision).
        points: [P, 2], places to mark, or, if `stretch`, a part of the path.
        light: the red-light area of the context, or None.
    """

    metric: str
    value: float
    text: str
    step: int | None = None
    agent: int | None = None
    agent_step: int | None = None
    ahead: float = 0.0
    points: Float64 | None = None
    stretch: bool = False
    light: int | None = None


def failures(context: RewardContext, states: Tensor, subscores: Mapping[str, float]) -> list[Failure]:
    """Every sub-score below 1 of one trajectory, in the order of `subscores`; those without a value are left out.

    Args:
        context: of the scene.
        states: float64 [41, 11], simulated, as scored.
        subscores: NAVSIM's name -> value, as scored.
    """
    look = _Look(collate([context]), states[None].double())
    known = {
        "no_at_fault_collisions": look.collision,
        "drivable_area_compliance": look.off_road,
        "driving_direction_compliance": look.oncoming,
        "traffic_light_compliance": look.red_light,
        "ego_progress": look.progress,
        "time_to_collision_within_bound": look.near_miss,
        "lane_keeping": look.lane,
        "history_comfort": look.comfort,
        "comfort": look.comfort,
        "two_frame_extended_comfort": look.between_frames,
    }
    return [known[name](name, value) for name, value in subscores.items() if value < 1.0 - 1e-9]


class _Look:
    """One row, and what the metrics derive from it."""

    def __init__(self, batch: ContextBatch, states: Tensor) -> None:
        self.batch = batch
        self.path = Path.of(states, torch.zeros(1, dtype=torch.int64))
        self.where: Areas = areas(batch, self.path, DEFAULT_MAX_BYTES)
        self.met: Contacts = contacts(batch, self.path, DEFAULT_MAX_BYTES)

    def collision(self, metric: str, value: float) -> Failure:
        worst: tuple[float, int, int] | None = None  # cost, step, agent
        for k in range(len(self.met.row)):
            one = Contacts(self.met.row[k : k + 1], self.met.agent[k : k + 1], self.met.hit[k : k + 1])
            cost = float(no_at_fault_collisions(self.batch, self.path, self.where, one))
            if cost < 1:
                found = (cost, _first(one.hit[0, :, 0]), int(one.agent))
                worst = found if worst is None else min(worst, found)
        if worst is None:
            return Failure(metric, value, "collision at fault")
        _, step, agent = worst
        kind = "a road user" if bool(self.batch.agents_is_agent[0, agent]) else "a static object"
        speed = float(self.path.speed[0, step])
        text = f"hits {kind} after {step / 10:.1f} s at {speed:.1f} m/s, at fault"
        return Failure(metric, value, text, step, agent, step)

    def near_miss(self, metric: str, value: float) -> Failure:
        earliest: tuple[int, int, int] | None = None  # step, look-ahead, agent
        moving = self.path.speed[0] >= 5e-3
        for k in range(len(self.met.row)):
            one = Contacts(self.met.row[k : k + 1], self.met.agent[k : k + 1], self.met.hit[k : k + 1])
            if float(time_to_collision_within_bound(self.batch, self.path, self.where, one)) < 1:
                hit = (one.hit[0] & moving[:, None]).flatten()
                place = _first(hit)
                found = (place // len(LOOKAHEAD), LOOKAHEAD[place % len(LOOKAHEAD)], int(one.agent))
                earliest = found if earliest is None else min(earliest, found)
        if earliest is None:
            return Failure(metric, value, "would collide within a second")
        step, ahead, agent = earliest
        text = (
            f"at {step / 10:.1f} s, going straight on would end in a collision {ahead / 10:.1f} s later"
            if ahead
            else f"in contact at {step / 10:.1f} s"
        )
        return Failure(metric, value, text, step, agent, step + ahead, ahead / 10)

    def off_road(self, metric: str, value: float) -> Failure:
        points = self.path.corners.flatten(1, 2)
        row, item = pairs(self.batch.map_edges, self.path.scene, bounds(points))
        inside = contains(self.batch.map_edges, self.path.scene, points, row, item, DEFAULT_MAX_BYTES)
        on_road = inside[self.batch.is_drivable[0, item]].any(dim=0).view(STEPS, 4)
        step = _first((~on_road).any(dim=1))
        corners = ("front left", "rear left", "rear right", "front right")
        off = [i for i in range(4) if not bool(on_road[step, i])]
        last = int((~on_road).any(dim=1).sum())
        name = " and ".join(corners[i] for i in off)
        leave = f"the {name} corner leaves" if len(off) == 1 else f"the {name} corners leave"
        text = f"{leave} the drivable area at {step / 10:.1f} s ({last / 10:.1f} s off it in all)"
        return Failure(metric, value, text, step, points=self.path.corners[0, step, off].numpy())

    def oncoming(self, metric: str, value: float) -> Failure:
        against = self.where.oncoming[0].clone()
        if self.batch.version == "v2":
            against &= ~self.where.centre_in_intersection[0]
        score = float(driving_direction_compliance(self.path, self.where, self.batch.version))
        metres = float((self.path.centre[0, 1:] - self.path.centre[0, :-1]).norm(dim=-1)[against[1:]].sum())
        most = "6 m or more" if score == 0 else "2 m or more"
        text = f"drives {metres:.1f} m off the lanes of its route, {most} of them within a second"
        steps = against.nonzero()[:, 0]
        run = slice(int(steps[0]), int(steps[-1]) + 1)
        return Failure(metric, value, text, run.start, points=self.path.centre[0, run].numpy(), stretch=True)

    def red_light(self, metric: str, value: float) -> Failure:
        for step in range(STEPS):
            for light in range(self.batch.light_active.shape[1]):
                active = torch.zeros_like(self.batch.light_active)
                active[0, light, step] = self.batch.light_active[0, light, step]
                if not bool(active.any()):
                    continue
                one = replace(self.batch, light_active=active)
                if float(traffic_light_compliance(one, self.path, DEFAULT_MAX_BYTES)) == 0:
                    text = f"is in the area of a red light at {step / 10:.1f} s"
                    return Failure(metric, value, text, step, light=light)
        return Failure(metric, value, "runs a red light")

    def progress(self, metric: str, value: float) -> Failure:
        own = float(raw_progress(self.batch, self.path, DEFAULT_MAX_BYTES))
        pdm = float(self.batch.pdm_progress[0])
        text = f"goes {own:.1f} m along its route, PDM-Closed {pdm:.1f} m"
        if self.batch.version == "v1" and value == 0.0 and own > 0.1:
            text = f"goes {own:.1f} m along its route, which count for nothing after a collision or off the road"
        return Failure(metric, value, text)

    def lane(self, metric: str, value: float) -> Failure:
        centre = self.path.centre[0]
        apart, _ = distances(self.batch.centerline_edges.expand(STEPS, -1, -1), centre)
        off = apart.nan_to_num(math.inf).amin(dim=1)
        counted = off.masked_fill(self.where.centre_in_intersection[0], 0.0)
        step = int(counted.argmax())
        text = f"more than 0.5 m off the centre line for 2 s; {float(counted[step]):.1f} m at {step / 10:.1f} s"
        return Failure(metric, value, text, step, points=centre[step : step + 1].numpy())

    def comfort(self, metric: str, value: float) -> Failure:
        ahead, yaw = self.path.states[0, :, AX], self.path.states[0, :, YAW_RATE].abs()
        jerk = (ahead.diff() / 0.1).abs()
        text = (
            "beyond a limit of acceleration, jerk or yaw rate: "
            f"{float(ahead.min()):+.1f} to {float(ahead.max()):+.1f} m/s², up to {float(jerk.max()):.0f} m/s³ (raw), "
            f"{math.degrees(float(yaw.max())):.0f}°/s"
        )
        return Failure(metric, value, text)

    def between_frames(self, metric: str, value: float) -> Failure:
        return Failure(metric, value, "not what the same driver planned half a second earlier")


def _first(flags: Tensor) -> int:
    return int(flags.to(torch.int8).argmax())
