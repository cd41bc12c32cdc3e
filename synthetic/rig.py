"""The camera rig and the ego's orientation: the one place where frames are turned into each other.

Ego: rear axle on the ground, x forward, y left, z up. Camera: optical, x right, y down, z forward; p_ego = R p_cam +
t. The rig is like nuPlan's (mounting places and directions to a few degrees); lenses are ideal pinholes, so the
recorded distortion is five zeros, and the images agree with the records exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.sources.nuplan_log import rotation_matrix
from shards_schema.poses import Float64
from synthetic.drive import EgoState

FX_AT_1920 = 1545.0
"""nuPlan's focal length [px] at its 1920 x 1080; the principal point there is (960, 560)."""

MOUNTS: dict[str, tuple[float, float, float, float, float]] = {
    "CAM_F0": (1.65, 0.00, 1.58, 0.0, 0.6),
    "CAM_L0": (1.55, 0.22, 1.57, 55.0, 0.4),
    "CAM_L1": (1.32, 0.32, 1.56, 108.0, 0.5),
    "CAM_L2": (1.08, 0.24, 1.57, 146.0, 0.3),
    "CAM_R0": (1.55, -0.22, 1.57, -55.0, 0.5),
    "CAM_R1": (1.32, -0.32, 1.56, -108.0, 0.4),
    "CAM_R2": (1.08, -0.24, 1.57, -146.0, 0.4),
    "CAM_B0": (0.92, 0.00, 1.58, 180.0, 0.7),
}
"""Channel -> x, y, z [m], yaw (left positive) and downward pitch [degrees] in the ego frame."""

_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def euler(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Float64:
    """[3, 3] Rz(yaw) Ry(pitch) Rx(roll); positive pitch looks down."""
    (cy, cp, cr), (sy, sp, sr) = (np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll]))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def quaternion(yaw: float, pitch: float, roll: float) -> Float64:
    """[4] w, x, y, z of `euler(yaw, pitch, roll)`."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.array([yaw, pitch, roll]) / 2) for f in (np.cos, np.sin))
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a log records of one camera.

    Attributes:
        quaternion: [4] w, x, y, z, camera -> ego; what a ``.db`` has.
        rotation: [3, 3], of the quaternion, to the bit as the nuPlan source makes it; what a pickle has.
        translation: [3].
        intrinsics: [3, 3].
    """

    quaternion: Float64
    rotation: Float64
    translation: Float64
    intrinsics: Float64


def rig(width: int, height: int) -> dict[str, Calibration]:
    """The eight cameras for images of `width` x `height` pixels."""
    sx, sy = width / 1920.0, height / 1080.0
    k = np.array([[FX_AT_1920 * sx, 0.0, 960.0 * sx], [0.0, FX_AT_1920 * sy, 560.0 * sy], [0.0, 0.0, 1.0]])
    out = {}
    for channel, (x, y, z, yaw, pitch) in MOUNTS.items():
        q = _quaternion_of(euler(np.deg2rad(yaw), np.deg2rad(pitch)) @ _OPTICAL)
        out[channel] = Calibration(q, rotation_matrix(q), np.array([x, y, z]), k.copy())
    return out


def pixel_rays(k: Float64, width: int, height: int) -> Float64:
    """[height, width, 3] the ray of each pixel's centre in the camera's frame, one metre ahead at z = 1."""
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    return np.stack(((u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)), axis=-1)


def _quaternion_of(rotation: Float64) -> Float64:
    """[4] w, x, y, z of a rotation matrix [3, 3]: by the largest of the four squares, so that nothing cancels."""
    m = rotation
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2],
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )
    most = int(np.argmax(squares))
    rows = np.array(
        [
            [squares[0], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], squares[1], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], squares[2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[3]],
        ]
    )
    q = rows[most]
    return np.asarray(q / np.linalg.norm(q))


def ego_rotation(ego: EgoState) -> Float64:
    """[3, 3] ego -> town (and map: both have east and north axes)."""
    return euler(ego.yaw, ego.pitch, ego.roll)


def ego_position(ego: EgoState) -> Float64:
    """[3] of the ego's origin in the town's frame."""
    return np.array([ego.x, ego.y, 0.0])
