"""A camera as a sample records it: from the ego frame to pixels of the stored image, through the lens's distortion.

Frames: ego x forward, y left, z up; camera x right, y down, z forward, p_ego = R p_cam + t. Pixels are those of the
image as the dataset stores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards_schema.poses import Float64


class Lens:
    """A camera of a scene's document (``cameras.<view>`` of ``<token>.json``, docs/format.md)."""

    def __init__(self, camera: Mapping[str, Any]) -> None:
        self.size: tuple[int, int] = (int(camera["size"][0]), int(camera["size"][1]))
        self.rotation = np.array(camera["sensor2ego_rotation"], dtype=np.float64)
        self.translation = np.array(camera["sensor2ego_translation"], dtype=np.float64)
        self.intrinsics = np.array(camera["intrinsics"], dtype=np.float64)
        self.k1, self.k2, self.p1, self.p2, self.k3 = (float(v) for v in camera["distortion"])
        self.radius2 = _growing(self.k1, self.k2, self.k3)

    def to_camera(self, points: Float64) -> Float64:
        """[..., 3] ego -> camera."""
        return np.asarray((points - self.translation) @ self.rotation)

    def project(self, points: Float64) -> tuple[Float64, NDArray[np.bool_]]:
        """Pixels [..., 2] of points [..., 3] in the camera's frame with z > 0, and which of them the lens is known for.

        Beyond the radius where the distortion's polynomial stops growing, points would fold back into the image.
        """
        x, y = points[..., 0] / points[..., 2], points[..., 1] / points[..., 2]
        r2 = x * x + y * y
        radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        u = x * radial + 2 * self.p1 * x * y + self.p2 * (r2 + 2 * x * x)
        v = y * radial + self.p1 * (r2 + 2 * y * y) + 2 * self.p2 * x * y
        pixels = np.stack((u, v, np.ones_like(u)), axis=-1) @ self.intrinsics.T
        return pixels[..., :2], np.asarray(r2 < self.radius2)


def _growing(k1: float, k2: float, k3: float) -> float:
    """The squared radius up to which r (1 + k1 r^2 + k2 r^4 + k3 r^6) grows."""
    roots = np.roots([7 * k3, 5 * k2, 3 * k1, 1.0]) if k1 or k2 or k3 else np.zeros(0)
    real = [root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 0]
    return min(real, default=math.inf)
