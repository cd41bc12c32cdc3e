"""What the two ways to a reward context share: polygons in the ego frame, and the human's past at 10 Hz."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from scoring.context import Polygons
from scoring.vehicle import STATE_SIZE
from shards_schema.errors import SampleError
from shards_schema.poses import Float64, to_local

_PERIOD_US = 100_000
_KNOWN = 8
"""Columns that interpolation keeps; yaw rate and acceleration are 0 in what comes out, and so is the last one."""


def local_polygons(geometries: Sequence[shapely.Geometry], origin: Float64) -> Polygons:
    """Rings of polygons and multipolygons, in the frame of the global pose `origin` [3].

    Raises:
        SampleError: code ``bad_context``, one is of another kind.
    """
    parts, owner = shapely.get_parts(np.asarray(geometries, dtype=object), return_index=True)
    kinds = shapely.get_type_id(parts)
    if (kinds != shapely.GeometryType.POLYGON).any():
        kind = parts[kinds != shapely.GeometryType.POLYGON][0].geom_type
        raise SampleError("bad_context", f"a map object is a {kind}, expected a polygon")
    rings, part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    local = to_local(np.column_stack((xy, np.zeros(len(xy)))), origin)[:, :2]
    split = np.split(local, np.searchsorted(ring, np.arange(1, len(rings))))
    out: list[list[Float64]] = [[] for _ in geometries]
    for vertices, which in zip(split, owner[part], strict=False):
        out[which].append(vertices)
    return Polygons.of(out)


def past_at_10_hz(times_us: NDArray[np.int64], states: Float64) -> Float64:
    """The human's past as the devkit resamples it: from the first state on, less the last sample.

    Args:
        times_us: int64 [K] microseconds, increasing.
        states: float64 [K, 11] at those times.

    Returns:
        float64 [H, 11], at 10 Hz.
    """
    at = np.arange(times_us[0], times_us[-1], _PERIOD_US)[:-1] - times_us[0]
    known = states.copy()
    known[:, 2] = np.unwrap(known[:, 2])
    out = np.zeros((len(at), STATE_SIZE))
    for column in range(_KNOWN):
        out[:, column] = np.interp(at, times_us - times_us[0], known[:, column])
    out[:, 2] = np.mod(out[:, 2] + np.pi, 2 * np.pi) - np.pi
    return out
