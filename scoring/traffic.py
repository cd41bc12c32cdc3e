"""What reactive traffic needs to know of a scene beside its replayed agents: who is there now, and on which lane.

Everything is in the ego frame at t0, as in `scoring.context`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shards_schema.errors import SampleError
from shards_schema.poses import Float64


class Seen(IntEnum):
    """What an agent of a context is to reactive traffic."""

    OTHER_NOW = 0
    """No vehicle: replayed."""
    OTHER_LATER = 1
    """Likewise, and not seen at t0."""
    VEHICLE_NOW = 2
    """Driven, parked or gone."""
    VEHICLE_LATER = 3
    """Never there."""


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """N agents, of which K are vehicles that are seen at t0, in the order of the agents.

    Attributes:
        seen: int64 [N], a `Seen` each.
        speed: float64 [K], m/s.
        in_lane: bool [K], whether the centre lies in a lane or an intersection.
        nearest: float64 [K, 3], the pose on the middle of its lane that is nearest to it; zero without a lane.
        offset: float64 [K], metres to there.
        progress: float64 [K], metres along the middle to there.
        limit: float64 [K], m/s of the lane; 0 where the map knows none.
        rails_pose: float64 [P, 3], the middles of the lanes, one after another; heading to the next point, as it is.
        rails: int64 [K + 1], where each begins in `rails_pose`; an empty one is no lane.
    """

    seen: NDArray[np.int64]
    speed: Float64
    in_lane: NDArray[np.bool_]
    nearest: Float64
    offset: Float64
    progress: Float64
    limit: Float64
    rails_pose: Float64
    rails: NDArray[np.int64]

    def __post_init__(self) -> None:
        k = int((self.seen == Seen.VEHICLE_NOW).sum())
        expected = {"speed": (k,), "in_lane": (k,), "nearest": (k, 3), "offset": (k,), "progress": (k,), "limit": (k,)}
        expected |= {"rails": (k + 1,), "rails_pose": (int(self.rails[-1]), 3)}
        for name, shape in expected.items():
            if (found := getattr(self, name).shape) != shape:
                raise SampleError("bad_context", f"traffic: {name} must be {list(shape)}, is {list(found)}")

    def rail(self, k: int) -> Float64 | None:
        """The middle of the lane of vehicle `k`, [P, 3]; None without one."""
        first, end = self.rails[k : k + 2]
        return self.rails_pose[first:end] if end > first else None
