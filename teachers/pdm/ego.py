"""The ego now, before and after: states and poses relative to the rear axle at t0."""

from __future__ import annotations

import numpy as np

from scoring.devkit.frames import past_at_10_hz
from scoring.vehicle import STATE_SIZE
from shards_schema.poses import Float64, to_local
from shards_schema.records import Frame, Scene

PAST_FRAMES = 3
HUMAN_FRAMES = 8


def ego_state(frame: Frame, origin: Float64) -> Float64:
    """float64 [11] (`scoring.vehicle` order) of a frame: no steering, no yaw rate, for the log has none.

    The devkit keeps velocity and acceleration in single precision, and the simulator starts from what it keeps.
    """
    state = np.zeros(STATE_SIZE)
    state[:3] = to_local(frame.ego_pose, origin)
    state[3:5] = frame.velocity.astype(np.float32)
    state[5:7] = frame.acceleration.astype(np.float32)
    return state


def past_states(scene: Scene) -> Float64:
    """float64 [H, 11], the last 1.5 s at 10 Hz.

    Raises:
        SampleError: code ``missing_frame``, the scene has fewer than three frames of history.
    """
    frames = [scene.at(step) for step in range(-PAST_FRAMES, 1)]
    times = np.array([frame.timestamp for frame in frames], dtype=np.int64)
    return past_at_10_hz(times, np.stack([ego_state(frame, scene.current.ego_pose) for frame in frames]))


def human_poses(scene: Scene) -> Float64:
    """float64 [8, 3], what the human drove in the next 4 s; [0, 3] of a synthetic scene, where no human drove.

    Raises:
        SampleError: code ``missing_frame``.
    """
    if scene.original is not None:
        return np.zeros((0, 3))
    poses = [scene.at(step).ego_pose for step in range(1, HUMAN_FRAMES + 1)]
    return to_local(np.stack(poses), scene.current.ego_pose)
