"""The reward context as a column: each array of `scoring.context.RewardContext` under a name (`scoring.columns` reads
them back without a loss).

What the versions share (ego, map, centerline) stands once; the rest begins with ``v1_`` or ``v2_``. Most axes are
ragged, so these targets lie in the tar alone. Map, agents and centerline are single precision unless asked otherwise:
in the ego frame that is a hundredth of a millimetre, and no score of the reference scenes changes (docs/reward.md).
States, poses and progress stay double, since the simulator magnifies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scoring.columns import AGENTS, TRAFFIC
from scoring.context import AGENT_STEPS, FILTERED, Polygons, RewardContext, Version
from scoring.vehicle import STATE_SIZE, STEPS
from shards_schema.specs import TargetSpec

Precision = Literal["float32", "float64"]

_spec = TargetSpec.of
_STATE = "x, y, heading, vx, vy, ax, ay, steering, its rate, yaw rate, its rate (rear axle, ego frame at t0)"


def target_specs(
    versions: Sequence[Version], precision: Precision, *, reactive: bool = False
) -> tuple[TargetSpec, ...]:
    """What `to_targets` gives, in order."""
    specs = [
        _spec("timestamp_us", "", (), "int64", "us", "Unix time of t0; sample times are rounded from it"),
        _spec("ego_state", "state", (STATE_SIZE,), "float64", "m, rad, m/s, m/s^2", f"The ego now: {_STATE}"),
        *_polygon_specs("map", precision, "map polygons around the ego, as NAVSIM takes them"),
        _spec("map_layer", "map_polygon", (None,), "int64", "1", "scoring.context.Layer of each polygon"),
        _spec("map_on_route", "map_polygon", (None,), "bool", "1", "Whether it is a lane of the corrected route"),
        _spec("centerline", "point xy", (None, 2), precision, "m", "Middle of the lanes ahead, PDM-Closed's"),
    ]
    for version in versions:
        specs += [*_version_specs(version, precision)]
    if reactive:
        specs += _traffic_specs()
    return tuple(specs)


def to_targets(contexts: Sequence[RewardContext], precision: Precision) -> dict[str, NDArray[Any]]:
    """The arrays of one scene's contexts, one a version; they agree in what is shared."""
    first = contexts[0].astype(precision)
    out: dict[str, NDArray[Any]] = {
        "timestamp_us": np.array(first.timestamp_us, dtype=np.int64),
        "ego_state": first.ego_state,
        **_polygon_targets("map", first.map_polygons),
        "map_layer": first.map_layer,
        "map_on_route": first.map_on_route,
        "centerline": first.centerline,
    }
    for context in contexts:
        known = context.astype(precision)
        mine: dict[str, NDArray[Any]] = {name: getattr(known, name) for name in AGENTS}
        mine["pdm_poses"] = known.pdm_poses
        mine["pdm_progress"] = np.array(known.pdm_progress)
        if known.version == "v2":
            mine["past_states"] = known.past_states
            mine |= _polygon_targets("light", known.light_polygons)
            mine |= {name: getattr(known, name) for name in ("light_active", "human_poses", "human_zero")}
            if known.traffic is not None:
                mine |= {f"traffic_{name}": getattr(known.traffic, name) for name in TRAFFIC}
        out |= {f"{known.version}_{name}": array for name, array in mine.items()}
    return out


def _version_specs(version: Version, precision: Precision) -> list[TargetSpec]:
    t = AGENT_STEPS[version]
    agent, step = f"{version}_agent", f"{version}_step"
    frame = "x, y, heading in the ego frame at t0"
    specs = [
        _spec("agents_pose", f"{agent} {step} pose", (None, t, 3), precision, "m, rad", f"Box centres: {frame}, 10 Hz"),
        _spec("agents_valid", f"{agent} {step}", (None, t), "bool", "1", "Whether the agent is there"),
        _spec("agents_size", f"{agent} size", (None, 2), precision, "m", "Length and width"),
        _spec("agents_is_agent", agent, (None,), "bool", "1", "Vehicle, pedestrian or bicycle, not a static object"),
        _spec("agents_stopped", agent, (None,), "bool", "1", "Static, or slower than 0.05 m/s when first seen"),
        _spec("pdm_poses", "time pose", (STEPS, 3), "float64", "m, rad", f"Reference of PDM-Closed: {frame}, 10 Hz"),
        _spec("pdm_progress", "", (), "float64", "m", "Progress of PDM-Closed times its multiplicative sub-scores"),
    ]
    if version == "v2":
        human = "zero sub-scores of the human's path, in the order of scoring.context.FILTERED"
        specs += [
            _spec("past_states", "past state", (None, STATE_SIZE), "float64", "m, rad, m/s, m/s^2", f"Past: {_STATE}"),
            *_polygon_specs("light", precision, "areas of lane connectors of the logged route that are red at a time"),
            _spec("light_active", "light_polygon time", (None, STEPS), "bool", "1", "Whether it is red, 10 Hz"),
            _spec("human_poses", "future pose", (None, 3), "float64", "m, rad", f"The human's path: {frame}; 0.5 s"),
            _spec("human_zero", "filtered", (len(FILTERED),), "bool", "1", human),
        ]
    return [replace(spec, name=f"{version}_{spec.name}") for spec in specs]


def _traffic_specs() -> list[TargetSpec]:
    car = "v2_vehicle"
    specs = [
        _spec("seen", "v2_agent", (None,), "int64", "1", "scoring.traffic.Seen of each agent"),
        _spec(
            "speed", car, (None,), "float64", "m/s", "Of the vehicles that are there now, in the order of the agents"
        ),
        _spec("in_lane", car, (None,), "bool", "1", "Whether its centre lies in a lane or an intersection"),
        _spec("nearest", f"{car} pose", (None, 3), "float64", "m, rad", "Nearest pose on the middle of its lane"),
        _spec("offset", car, (None,), "float64", "m", "To there"),
        _spec("progress", car, (None,), "float64", "m", "Along the middle to there"),
        _spec("limit", car, (None,), "float64", "m/s", "Of the lane; 0: unknown"),
        _spec("rails_pose", "v2_rail_point pose", (None, 3), "float64", "m, rad", "Middles of the lanes"),
        _spec("rails", "v2_rail_offset", (None,), "int64", "1", "Where each begins, and the end; empty: no lane"),
    ]
    return [replace(spec, name=f"v2_traffic_{spec.name}") for spec in specs]


def _polygon_specs(name: str, precision: Precision, meaning: str) -> list[TargetSpec]:
    return [
        _spec(f"{name}_xy", f"{name}_vertex xy", (None, 2), precision, "m", f"Vertices of the rings of {meaning}"),
        _spec(f"{name}_rings", f"{name}_ring_offset", (None,), "int64", "1", "Where each ring begins, and the end"),
        _spec(f"{name}_polygons", f"{name}_polygon_offset", (None,), "int64", "1", "Likewise each polygon, in rings"),
    ]


def _polygon_targets(name: str, polygons: Polygons) -> dict[str, NDArray[Any]]:
    return {f"{name}_xy": polygons.xy, f"{name}_rings": polygons.rings, f"{name}_polygons": polygons.polygons}
