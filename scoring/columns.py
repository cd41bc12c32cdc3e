"""One scene's reward context from the arrays of a dataset's column, by name: what the teacher `pdm` wrote, read back.

    timestamp_us, ego_state, map_xy, map_rings, map_polygons, map_layer, map_on_route, centerline     both versions
    v1_agents_pose, ... v1_pdm_poses, v1_pdm_progress                                                 one version
    v2_past_states, v2_light_xy, ... v2_human_poses, v2_human_zero                                    v2 only
    v2_traffic_seen, v2_traffic_speed, ... v2_traffic_rails                                           v2, if asked for

`teachers.pdm.targets` writes these names. The arrays are taken as they are: no copy, no loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.context import FILTERED, Polygons, RewardContext, Version
from scoring.traffic import Traffic
from scoring.vehicle import STATE_SIZE, STEPS
from shards_schema.errors import SpecError

SHARED = (
    "timestamp_us",
    "ego_state",
    "map_xy",
    "map_rings",
    "map_polygons",
    "map_layer",
    "map_on_route",
    "centerline",
)
AGENTS = ("agents_pose", "agents_valid", "agents_size", "agents_is_agent", "agents_stopped")
REFERENCE = ("pdm_poses", "pdm_progress")
TRAFFIC = ("seen", "speed", "in_lane", "nearest", "offset", "progress", "limit", "rails_pose", "rails")
REACTIVE_ARRAY = "v2_traffic_seen"
"""A column that has it can be scored in reactive traffic."""
ONLY_V2 = ("past_states", "light_xy", "light_rings", "light_polygons", "light_active", "human_poses", "human_zero")


def context_names(version: Version, *, reactive: bool = False) -> tuple[str, ...]:
    """The arrays that `context_from_targets` needs for a version, with those of reactive traffic if asked for."""
    mine = (*AGENTS, *REFERENCE, *(ONLY_V2 if version == "v2" else ()))
    traffic = tuple(f"v2_traffic_{name}" for name in TRAFFIC) if reactive else ()
    return (*SHARED, *(f"{version}_{name}" for name in mine), *traffic)


def context_from_targets(targets: Mapping[str, NDArray[Any]], version: Version, token: str = "") -> RewardContext:
    """A scene's context, complete and ready for `scoring.collate`.

    Args:
        targets: a sample's arrays of this column, by name.
        version: which score it is for.
        token: the sample's, for messages.

    Raises:
        SpecError: arrays are missing, as when the column was made without this version.
        SampleError: code ``bad_context``, an array has another shape than the column's specs say.
    """
    wanted = context_names(version)
    if missing := sorted(set(wanted) - set(targets)):
        raise SpecError(
            f"sample {token or '(no token)'}: no {version} context without {', '.join(missing)}; "
            f"were they read, and does the column's config list {version}?"
        )
    mine = {name.removeprefix(f"{version}_"): targets[name] for name in wanted}
    traffic = {name: targets.get(f"v2_traffic_{name}") for name in TRAFFIC} if version == "v2" else {}
    second = version == "v2"
    none = Polygons(mine["map_xy"][:0], np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    return RewardContext(
        token=token,
        version=version,
        timestamp_us=int(mine["timestamp_us"]),
        ego_state=mine["ego_state"],
        past_states=mine["past_states"] if second else np.zeros((0, STATE_SIZE)),
        agents_pose=mine["agents_pose"],
        agents_valid=mine["agents_valid"],
        agents_size=mine["agents_size"],
        agents_is_agent=mine["agents_is_agent"],
        agents_stopped=mine["agents_stopped"],
        map_polygons=Polygons(mine["map_xy"], mine["map_rings"], mine["map_polygons"]),
        map_layer=mine["map_layer"],
        map_on_route=mine["map_on_route"],
        light_polygons=Polygons(mine["light_xy"], mine["light_rings"], mine["light_polygons"]) if second else none,
        light_active=mine["light_active"] if second else np.zeros((0, STEPS), dtype=np.bool_),
        centerline=mine["centerline"],
        pdm_poses=mine["pdm_poses"],
        human_poses=mine["human_poses"] if second else np.zeros((0, 3)),
        pdm_progress=float(mine["pdm_progress"]),
        human_zero=mine["human_zero"] if second else np.zeros(len(FILTERED), dtype=np.bool_),
        traffic=Traffic(**traffic) if traffic.get("seen") is not None else None,  # type: ignore[arg-type]
    )
