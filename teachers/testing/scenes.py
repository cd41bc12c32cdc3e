"""Synthetic scenes and images to try a teacher on: no real data, and the same each time.

A scene is a drive along a gentle curve, drawn from a seed; its images are smooth waves whose phase moves with time, so
that nothing hangs on a pixel of noise and two steps of one camera differ.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from shards_schema.records import CHANNELS, Annotations, Camera, Frame, Image, Scene
from teachers.base import ImageRequest, Teacher, TeacherInput

FRAME_US = 500_000
"""Microseconds between frames."""

_YAW = {"F0": 0.0, "L0": 0.96, "L1": 1.57, "L2": 2.4, "R0": -0.96, "R1": -1.57, "R2": -2.4, "B0": np.pi}
_OPTICAL = np.array(
    [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
)  # camera axes (x right, z forward) in the ego's


def synthetic_scene(
    seed: int = 0, *, history: int = 4, future: int = 10, before: int = 0, size: tuple[int, int] = (480, 270)
) -> Scene:
    """A drive along a gentle curve at 8 m/s or so, with two boxes around; eight cameras a frame.

    Args:
        seed: names the log and everything in it.
        history: H, frames up to now.
        future: F, frames after now.
        before: frames right before the window.
        size: width and height of the images [px], which the intrinsics fit.
    """
    draw = np.random.default_rng(seed)
    speed, turn = draw.uniform(6.0, 10.0), draw.uniform(-0.05, 0.05)  # m/s, rad/s
    poses, pose = [], np.array([664_000.0 + 100 * seed, 3_997_000.0, draw.uniform(-3.0, 3.0)])
    for _ in range(before + history + future):
        poses.append(pose)
        pose = pose + np.array([np.cos(pose[2]) * speed / 2, np.sin(pose[2]) * speed / 2, turn / 2])
    frames = tuple(_frame(seed, i, pose, speed, turn, size) for i, pose in enumerate(poses))
    return Scene(
        log=f"synthetic-{seed:04d}",
        scene_token=f"{seed:016x}",
        map_name="us-nv-las-vegas-strip",
        frames=frames[before:],
        num_history=history,
        before=frames[:before],
    )


def bare_scene(size: tuple[int, int] = (480, 270)) -> Scene:
    """One frame without history, future or cameras: the least that a teacher may be handed."""
    frame = _frame(0, 0, np.zeros(3), 8.0, 0.0, size)
    bare = Frame(**{name: getattr(frame, name) for name in Frame.__slots__} | {"cameras": {}})
    return Scene(log="bare", scene_token="0" * 16, map_name="none", frames=(bare,), num_history=1)


def _frame(seed: int, i: int, pose: NDArray[np.float64], speed: float, turn: float, size: tuple[int, int]) -> Frame:
    token = f"{zlib.crc32(f'{seed}/{i}'.encode()):08x}{i:08x}"
    return Frame(
        token=token,
        timestamp=1_620_000_000_000_000 + i * FRAME_US,
        ego_pose=pose,
        ego_translation=np.array([pose[0], pose[1], 600.0]),
        ego_rotation=np.array([np.cos(pose[2] / 2), 0.0, 0.0, np.sin(pose[2] / 2)]),
        velocity=np.array([speed, 0.0]),
        acceleration=np.array([0.0, speed * turn]),
        command=(0, 1, 0, 0),
        roadblock_ids=("100", "101"),
        traffic_lights=((5, False),),
        cameras={channel: _camera(token, channel, size) for channel in CHANNELS},
        annotations=Annotations(
            boxes=np.array([[15.0, 0.0, 0.8, 4.6, 1.9, 1.6, 0.0], [8.0, 4.0, 0.9, 0.7, 0.7, 1.8, 0.3]]),
            names=("vehicle", "pedestrian"),
            velocity=np.array([[speed, 0.0, 0.0], [0.0, 0.0, 0.0]]),
            track_tokens=(f"{seed:015x}a", f"{seed:015x}b"),
        ),
    )


def _camera(token: str, channel: str, size: tuple[int, int]) -> Camera:
    width, height = size
    yaw = _YAW[channel.removeprefix("CAM_")]
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    focal = 0.8 * width  # nuPlan's 1545 px at 1920
    return Camera(
        channel=channel,
        image=f"synthetic/{token}/{channel}.jpg",
        intrinsics=np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]),
        distortion=np.array([-0.36, 0.17, 0.0, 0.0, -0.05]),
        sensor2ego_rotation=turn @ _OPTICAL,
        sensor2ego_translation=np.array([1.7 * np.cos(yaw), 0.5 * np.sin(yaw), 1.5]),
    )


def synthetic_image(scene: Scene, request: ImageRequest, size: tuple[int, int] = (480, 270)) -> Image:
    """uint8 [H, W, 3]: a few waves named by log and channel, whose phases move with the step; smooth as a photo is."""
    width, height = size
    draw = np.random.default_rng(zlib.crc32(f"{scene.log}/{request.channel}".encode()))
    u, v = np.arange(width)[None, :] / width, np.arange(height)[:, None] / height
    total = np.zeros((height, width, 3))
    for _ in range(4):
        fu, fv = draw.uniform(-6.0, 6.0, 2)
        phase, drift = draw.uniform(0.0, 2 * np.pi, 3), draw.uniform(-0.4, 0.4)
        total += np.sin((2 * np.pi * (fu * u + fv * v))[..., None] + phase + drift * request.step)
    return np.round(127.5 + 31.0 * total).astype(np.uint8)


def synthetic_input(teacher: Teacher, seed: int, size: tuple[int, int] = (480, 270)) -> TeacherInput:
    """What `teacher` takes of `synthetic_scene(seed)`, with one frame before the window, and its images.

    Raises:
        SampleError: the teacher refuses the scene.
    """
    scene = synthetic_scene(seed, before=1, size=size)
    images = [teacher.preprocess(synthetic_image(scene, request, size)) for request in teacher.requests(scene)]
    return TeacherInput(scene, np.stack(images) if images else np.zeros((0,), np.uint8))
