"""A sweep of the merged point cloud, by casting rays at the ground, the houses and the annotated boxes.

NAVSIM's file, a text header and little-endian records of 18 bytes:

    x y z  float32 (ego frame, m) | intensity uint8 | ring uint8 | lidar_info int32 (which of the lidars, here always 0)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards_schema.poses import Float64
from synthetic.drive import Drive
from synthetic.geometry import rng_of
from synthetic.rig import ego_position, ego_rotation
from synthetic.scenery import lots

RECORD = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "u1"), ("ring", "u1"), ("lidar_info", "<i4")]
)
SENSOR = np.array([0.95, 0.0, 1.95])
"""The lidar on the roof, in the ego frame."""
RANGE = 80.0
RINGS = 20


def sweep(drive: Drive, t: float, rays: int, seed: int) -> NDArray[np.void]:
    """Points at time `t` [s], at most `rays` of them, as `RECORD`s; range noise of 2 cm (1 sigma) from `seed`."""
    ego = drive.ego(t)
    rotation, position = ego_rotation(ego), ego_position(ego)
    rings = min(RINGS, max(1, rays))
    columns = rays // rings
    ring = np.repeat(np.arange(rings), columns)
    azimuth = np.tile(np.arange(columns) * (2 * np.pi / max(columns, 1)), rings) + ring * 0.37
    elevation = np.deg2rad(-24.0 + 32.0 * ring / max(rings - 1, 1))
    beam = np.stack(
        (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)), axis=-1
    )
    beam = beam @ rotation.T
    eye = position + rotation @ SENSOR
    with np.errstate(divide="ignore"):
        hit = np.where(beam[:, 2] < 0.0, -eye[2] / beam[:, 2], np.inf)
    shine = np.full(len(beam), 18, dtype=np.uint8)
    for box, height, bright in _boxes(drive, t, position):
        d = _enter(box, height, eye, beam)
        nearer = d < hit
        hit[nearer] = d[nearer]
        shine[nearer] = bright
    back = hit < RANGE
    distance = hit[back] + rng_of(seed, "lidar").normal(0.0, 0.02, int(back.sum()))
    local = (eye + beam[back] * distance[:, None] - position) @ rotation
    out = np.zeros(len(local), dtype=RECORD)
    out["x"], out["y"], out["z"] = local.T
    out["intensity"], out["ring"] = shine[back], ring[back]
    return out


def _boxes(drive: Drive, t: float, position: Float64) -> list[tuple[tuple[float, ...], float, int]]:
    """((x, y, heading, length, width), height, intensity) of everything within range."""
    found: list[tuple[tuple[float, ...], float, int]] = []
    for a in drive.actors(t):
        if np.hypot(a.x - position[0], a.y - position[1]) < RANGE + 6.0:
            found.append(((a.x, a.y, a.heading, a.size[0], a.size[1]), a.size[2], 90 if a.name == "vehicle" else 60))
    for lot in lots(drive.town):
        if lot.kind == "house" and np.hypot(lot.x - position[0], lot.y - position[1]) < RANGE + 16.0:
            found.append(((lot.x, lot.y, lot.heading, lot.length, lot.depth), lot.height, 40))
    return found


def _enter(box: tuple[float, ...], height: float, eye: Float64, beam: Float64) -> Float64:
    """[N] where beams enter a box that stands on the ground (slabs: Kay and Kajiya 1986); inf where they miss."""
    x, y, heading, length, width = box
    c, s = np.cos(heading), np.sin(heading)
    dx, dy = eye[0] - x, eye[1] - y
    near, far = np.zeros(len(beam)), np.full(len(beam), np.inf)
    starts = (c * dx + s * dy, -s * dx + c * dy, eye[2] - height / 2)
    ways = (c * beam[:, 0] + s * beam[:, 1], -s * beam[:, 0] + c * beam[:, 1], beam[:, 2])
    for start, way, half in zip(starts, ways, (length / 2, width / 2, height / 2), strict=True):
        safe = np.where(np.abs(way) < 1e-12, 1e-12, way)
        a, b = (-half - start) / safe, (half - start) / safe
        near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
    return np.where((near <= far) & (near > 0.0), near, np.inf)


def pcd_bytes(points: NDArray[np.void]) -> bytes:
    """The file of a sweep."""
    header = (
        "# .PCD v.7 - Point Cloud Data file format\nVERSION .7\nFIELDS x y z intensity ring lidar_info\n"
        "SIZE 4 4 4 1 1 4\nTYPE F F F U U I\nCOUNT 1 1 1 1 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
    )
    return header.encode("ascii") + points.tobytes()
