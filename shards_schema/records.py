"""Scene records: what a source hands to the pipeline, the same for every dataset.

A `Scene` is a window of consecutive 2 Hz `Frame`s around "now". Steps count frames from now: step 0 is the current
frame, negative ones are history, positive ones the future. Everything is in the frames and units of the source
(metres, radians, microseconds); geometry is float64. Images are named, not held: `Camera.image` says where one lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards_schema.errors import SampleError
from shards_schema.poses import Float64, to_local

CHANNELS = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")
"""The eight cameras of nuPlan's rig: front, three to the left (front to back), three to the right, rear."""

COMMANDS = ("left", "straight", "right", "unknown")
"""The meaning of each place of `Frame.command`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Camera:
    """One exposure of one camera, and its calibration.

    Attributes:
        channel: one of `CHANNELS`.
        image: where the JPEG lies: a path or URL that the pipeline can open.
        intrinsics: float64 [3, 3], pixels, of the undistorted pinhole.
        distortion: float64 [5], OpenCV order k1, k2, p1, p2, k3.
        sensor2ego_rotation: float64 [3, 3]; p_ego = R p_cam + t, camera frame optical (x right, y down, z forward).
        sensor2ego_translation: float64 [3], metres.
        calibrated: (width, height) of the images that `intrinsics` are for, which those on disk need not be; None where
            the source does not know (`pipeline.writing.calibration`).
    """

    channel: str
    image: str
    intrinsics: Float64
    distortion: Float64
    sensor2ego_rotation: Float64
    sensor2ego_translation: Float64
    calibrated: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotations:
    """Boxes of one frame in its ego frame.

    Attributes:
        boxes: float64 [N, 7]: x, y, z (centre), length, width, height [m], heading [rad] relative to the ego.
        names: N class names (vehicle, pedestrian, bicycle, traffic_cone, barrier, czone_sign, generic_object).
        velocity: float64 [N, 3], m/s, ego axes; NaN where the log does not know it.
        track_tokens: N tokens that persist over frames.
    """

    boxes: Float64
    names: tuple[str, ...]
    velocity: Float64
    track_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One 2 Hz frame of a log.

    Attributes:
        token: 16 hex characters, nuPlan's ``lidar_pc`` token.
        timestamp: microseconds since the Unix epoch.
        ego_pose: float64 [3], global x, y, heading of the rear axle (heading by `poses.heading_from_quaternion`).
        ego_translation: float64 [3], global metres.
        ego_rotation: float64 [4], quaternion w, x, y, z.
        velocity: float64 [2], m/s, ego axes.
        acceleration: float64 [2], m/s^2, ego axes.
        command: one-hot over `COMMANDS`.
        roadblock_ids: the route, in order, without repeats.
        traffic_lights: (lane connector id, is red) for each connector that had a status.
        cameras: by channel; only channels that the log has.
        annotations: None where the log has none (hidden test data).
        lidar: where the point cloud lies, or None.
    """

    token: str
    timestamp: int
    ego_pose: Float64
    ego_translation: Float64
    ego_rotation: Float64
    velocity: Float64
    acceleration: Float64
    command: tuple[int, int, int, int]
    roadblock_ids: tuple[str, ...]
    traffic_lights: tuple[tuple[int, bool], ...]
    cameras: Mapping[str, Camera]
    annotations: Annotations | None = None
    lidar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """A window of frames around now. The scene's token is that of its current frame.

    Attributes:
        log: the log's name.
        scene_token: nuPlan's scene (a snippet of at most 20 s) that the current frame belongs to.
        map_name: one of nuPlan's four locations.
        frames: the H + F frames of the window, oldest first.
        num_history: H, which counts the current frame: frames[H - 1] is now.
        before: frames of the same log right before the window, oldest first, where the log has them without a gap.
        absent: images of `before` that the source knows not to be there (those of `frames` are not asked after).
        original: of a synthetic scene (NAVSIM's second stage), the token of the log's frame at the same time; None for
            a scene of the log itself.
        driven: whether the ego's poses after now are known; where not, those frames repeat the last known pose.
    """

    log: str
    scene_token: str
    map_name: str
    frames: tuple[Frame, ...]
    num_history: int
    before: tuple[Frame, ...] = field(default=())
    absent: frozenset[str] = field(default=frozenset())
    original: str | None = None
    driven: bool = True

    @property
    def current(self) -> Frame:
        """The frame at step 0."""
        return self.frames[self.num_history - 1]

    @property
    def token(self) -> str:
        """The scene's id."""
        return self.current.token

    @property
    def timestamp(self) -> int:
        """Microseconds of the current frame."""
        return self.current.timestamp

    @property
    def num_future(self) -> int:
        """F, the frames after now."""
        return len(self.frames) - self.num_history

    @property
    def period(self) -> float:
        """Seconds from frame to frame (the median): 0.5 in NAVSIM, 0.1 at nuPlan's own rate; NaN of a single frame."""
        times = np.array([frame.timestamp for frame in self.frames], dtype=np.float64)
        return float(np.median(np.diff(times))) * 1e-6 if len(times) > 1 else math.nan

    def has_step(self, step: int) -> bool:
        """Whether the window, or what came right before it, holds the frame at `step`."""
        return -(self.num_history - 1) - len(self.before) <= step <= self.num_future

    def at(self, step: int) -> Frame:
        """The frame `step` frames from now.

        Raises:
            SampleError: code ``missing_frame``, there is none.
        """
        if not self.has_step(step):
            raise SampleError("missing_frame", f"scene {self.token} has no frame at step {step:+d}")
        return (self.before + self.frames)[len(self.before) + self.num_history - 1 + step]

    def may_have(self, step: int, channel: str) -> bool:
        """Whether there is such a frame, with such a camera, whose image is not known to be absent."""
        camera = self.at(step).cameras.get(channel) if self.has_step(step) else None
        return camera is not None and camera.image not in self.absent

    def camera(self, step: int, channel: str) -> Camera:
        """The exposure of `channel` at `step`.

        Raises:
            SampleError: code ``missing_frame`` or ``missing_camera``.
        """
        frame = self.at(step)
        if channel not in frame.cameras:
            raise SampleError("missing_camera", f"frame {frame.token} of log {self.log} has no camera {channel}")
        return frame.cameras[channel]

    def history_trajectory(self) -> Float64:
        """[H, 3] local poses at steps -(H-1)..0 (the last is zero)."""
        return to_local(np.stack([f.ego_pose for f in self.frames[: self.num_history]]), self.current.ego_pose)

    def future_trajectory(self) -> Float64:
        """[F, 3] local poses at steps 1..F; NaN where nobody drove."""
        if self.num_future == 0:
            return np.zeros((0, 3))
        if not self.driven:
            return np.full((self.num_future, 3), np.nan)
        return to_local(np.stack([f.ego_pose for f in self.frames[self.num_history :]]), self.current.ego_pose)


Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""
