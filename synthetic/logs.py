"""One log in OpenScene's layout: eight JPEGs and a sweep a frame, and the pickled list of frame records.

Everything of a log is written into a staging folder first; its sensor folder is moved into place, and its pickle
last. A log exists when, and only when, its pickle does. The pickle holds builtins and numpy arrays only.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from pipeline.sources.nuplan_frame import local_boxes
from pipeline.sources.nuplan_log import rotation_matrix
from pipeline.stores.disk import replace_file
from shards_schema.poses import Float64, heading_from_quaternion
from shards_schema.records import CHANNELS
from synthetic.config import SyntheticConfig
from synthetic.drive import Drive, EgoState, Manoeuvre
from synthetic.geometry import rng_of
from synthetic.lidar import pcd_bytes, sweep
from synthetic.pixels import CLASSES, truth
from synthetic.render import Renderer
from synthetic.rig import ego_rotation, quaternion, rig
from synthetic.scenery import Actor
from synthetic.world import LOCATIONS

ANNOTATED = 100.0
"""Boxes within this many metres of the ego are annotated."""
SIGNALS = 150.0
"""Crossings within this many metres have their lights recorded."""
SCENE_FRAMES = 40
"""NuPlan's scenes are at most 20 s."""

OBJECTS = pa.schema(
    [(name, pa.string()) for name in ("log", "token", "channel")]
    + [("instance", pa.int16())]
    + [(name, pa.string()) for name in ("track_token", "name", "kind", "colour")]
    + [("pixels", pa.int32()), ("visible_share", pa.float32())]
)
"""See `write_truth`."""


@dataclass(frozen=True)
class LogSpec:
    """A log of the dataset, before it is made.

    Attributes:
        split, index: its place in the dataset.
        name: like nuPlan's.
        location: where it is driven.
        manoeuvre: what the ego does.
        start: microseconds of its first frame, but for jitter.
    """

    split: str
    index: int
    name: str
    location: str
    manoeuvre: Manoeuvre
    start: int

    @property
    def key(self) -> str:
        """What chance in this log depends on, beside the seed."""
        return f"{self.split}.{self.index}"


def log_specs(config: SyntheticConfig) -> list[LogSpec]:
    """Every log of a dataset, in order."""
    specs: list[LogSpec] = []
    seconds = (config.frames + 1) // 2
    for number, split in enumerate(config.splits):
        for index in range(config.logs):
            when = datetime(2021, 6, 1, tzinfo=UTC) + timedelta(days=30 * number, minutes=5 * index)
            name = f"{when:%Y.%m.%d.%H.%M.%S}_veh-90_{index:05d}_{index + seconds:05d}"
            location = list(LOCATIONS)[index % len(LOCATIONS)]
            manoeuvre = config.manoeuvres[index % len(config.manoeuvres)]
            specs.append(LogSpec(split, index, name, location, manoeuvre, int(when.timestamp()) * 1_000_000))
    return specs


def drive_of(config: SyntheticConfig, spec: LogSpec) -> Drive:
    """The story of a log; any writer of the same world starts from here."""
    duration = config.frames * 0.5 + 0.5
    return Drive(config.seed, spec.key, spec.location, spec.manoeuvre, duration, config.traffic)


def timestamps(config: SyntheticConfig, spec: LogSpec) -> list[int]:
    """Microseconds of the 2 Hz frames: every half second and up to 6 us later, as nuPlan's are not exact either."""
    jitter = rng_of(config.seed, spec.key, "clock").integers(0, 7, config.frames)
    return [spec.start + 500_000 * i + int(j) for i, j in enumerate(jitter)]


def frame_tokens(config: SyntheticConfig, spec: LogSpec) -> list[str]:
    """The token of each 2 Hz frame."""
    return [_token(config.seed, spec.key, "frame", i) for i in range(config.frames)]


def write_log(config: SyntheticConfig, spec: LogSpec, root: Path, staging: Path) -> None:
    """Make one log under `root`, unless its pickle is there already; `staging` is on the same file system."""
    target = root / "navsim_logs" / spec.split / f"{spec.name}.pkl"
    if target.exists():
        return
    work = staging / spec.split / spec.name
    shutil.rmtree(work, ignore_errors=True)
    (work / "MergedPointCloud").mkdir(parents=True)
    drive = drive_of(config, spec)
    renderer = Renderer(drive, config.width, config.height)
    frames = frame_records(config, spec, drive)
    for frame in frames:
        t = (frame["timestamp"] - spec.start) / 1e6
        write_images(config, renderer, t, frame, work.parent)
        seed = int(frame["token"][:7], 16)
        (work.parent / frame["lidar_path"]).write_bytes(pcd_bytes(sweep(drive, t, config.lidar_points, seed)))
    if config.truth:
        write_truth(config, spec, renderer, frames, root, staging)
    blobs = root / "sensor_blobs" / spec.split / spec.name
    shutil.rmtree(blobs, ignore_errors=True)
    blobs.parent.mkdir(parents=True, exist_ok=True)
    os.rename(work, blobs)
    # The log folder may hold nothing but finished pickles (SceneLoader opens every entry), so this one waits elsewhere.
    waiting = staging / spec.split / f"{spec.name}.pkl"
    replace_file(target, lambda draft: draft.write_bytes(pickled(frames)), draft=waiting)


def write_images(config: SyntheticConfig, renderer: Renderer, t: float, frame: dict[str, Any], blobs: Path) -> None:
    """The JPEGs of a frame at time `t` [s], where its record says, below `blobs`; cameras that see nothing are grey."""
    seen = renderer.frame(t, config.cameras) if config.cameras else {}
    blank = np.full((config.height, config.width, 3), 128, dtype=np.uint8)
    for channel in CHANNELS:
        image = seen.get(channel, blank)
        data = simplejpeg.encode_jpeg(image, quality=config.jpeg_quality, colorspace="RGB", colorsubsampling="420")
        path = blobs / frame["cams"][channel]["data_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_truth(
    config: SyntheticConfig, spec: LogSpec, renderer: Renderer, frames: list[dict[str, Any]], root: Path, staging: Path
) -> None:
    """What is behind each pixel of a log: a group of ``truth.zarr``, and a file of ``objects.parquet``.

    The group has the arrays of `Truth`, [frame, camera, ...], with the tokens of frames and the channels as attributes.
    A row of the table is an object in an image; `instance` is its number there, `track_token` that of the records.
    """
    import zarr

    rows: list[dict[str, Any]] = []
    store = staging / spec.split / f"{spec.name}.truth"
    shutil.rmtree(store, ignore_errors=True)
    attributes = {
        "tokens": [frame["token"] for frame in frames],
        "channels": list(config.cameras),
        "kinds": list(CLASSES),
    }
    group = zarr.create_group(store, attributes=attributes)
    arrays: dict[str, Any] = {}
    for i, frame in enumerate(frames):
        for j, channel in enumerate(config.cameras):
            found = truth(renderer, (frame["timestamp"] - spec.start) / 1e6, channel)
            for name in ("depth", "kind", "instance", "pose", "intrinsics"):
                value = getattr(found, name)
                if name not in arrays:
                    shape = (len(frames), len(config.cameras), *value.shape)
                    arrays[name] = group.create_array(name, shape=shape, chunks=(1, 1, *value.shape), dtype=value.dtype)
                arrays[name][i, j] = value
            rows += [
                {
                    "log": spec.name,
                    "token": frame["token"],
                    "channel": channel,
                    "instance": number,
                    "track_token": track_token(config, spec, seen.actor),
                    "name": seen.actor.name,
                    "kind": seen.kind or seen.actor.name,
                    "colour": seen.colour,
                    "pixels": seen.pixels,
                    "visible_share": seen.share,
                }
                for number, seen in enumerate(found.objects)
            ]
    table = root / "objects.parquet" / f"{spec.name}.parquet"  # a folder of files is a table to pandas and pyarrow
    table.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, OBJECTS), table)
    shutil.rmtree(root / "truth.zarr" / spec.name, ignore_errors=True)
    zarr.open_group(root / "truth.zarr", mode="a")
    os.rename(store, root / "truth.zarr" / spec.name)


def pickled(value: Any) -> bytes:
    """Protocol 3, arrays under numpy 1's module name: the devkit pins numpy 1.23, and numpy 2 reads both."""
    return pickle.dumps(value, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _token(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]


def frame_records(config: SyntheticConfig, spec: LogSpec, drive: Drive) -> list[dict[str, Any]]:
    """The list that is pickled: one dict a frame, with every key of spec 1.5."""
    stamps = timestamps(config, spec)
    tokens = frame_tokens(config, spec)
    frames: list[dict[str, Any]] = []
    for i, (stamp, token) in enumerate(zip(stamps, tokens, strict=True)):
        t = (stamp - spec.start) / 1e6
        scene = i // SCENE_FRAMES
        command = np.zeros(4, dtype=np.int64)
        command[drive.command(t)] = 1
        frames.append(
            {
                "token": token,
                "frame_idx": i % SCENE_FRAMES,
                "timestamp": stamp,
                "log_name": spec.name,
                "log_token": _token(config.seed, spec.key, "log"),
                "scene_name": f"log-{spec.index:04d}-scene-{scene:04d}",
                "scene_token": _token(config.seed, spec.key, "scene", scene),
                "map_location": spec.location,
                "roadblock_ids": list(drive.roadblock_ids),
                "vehicle_name": "veh-90-synthetic",
                "sample_prev": tokens[i - 1] if i else None,
                "sample_next": tokens[i + 1] if i + 1 < len(tokens) else None,
                "driving_command": command,
                "traffic_lights": _lights(drive, t),
                "lidar_path": f"{spec.name}/MergedPointCloud/{token}.pcd",
                **_pose(drive.ego(t), drive.town.origin),
                "cams": _cams(config, spec, i),
                "anns": _annotations(config, spec, drive, t, i),
            }
        )
    return frames


def _pose(ego: EgoState, origin: Float64) -> dict[str, Any]:
    rotation, q = ego_rotation(ego), quaternion(ego.yaw, ego.pitch, ego.roll)
    where = np.array([ego.x + origin[0], ego.y + origin[1], 0.0])
    ego2global = np.eye(4)
    ego2global[:3, :3], ego2global[:3, 3] = rotation, where
    bus = np.array([*where, *q, ego.a, ego.a_left, 0.0, ego.v, 0.0, 0.0, 0.0, 0.0, ego.yaw_rate, 0.0, 0.0])
    return {
        "can_bus": bus,
        "lidar2ego_translation": np.zeros(3),
        "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
        "ego2global_translation": where,
        "ego2global_rotation": q,
        "ego_dynamic_state": [ego.v, 0.0, ego.a, ego.a_left],
        "ego2global": ego2global,
        "lidar2ego": np.eye(4),
        "lidar2global": ego2global.copy(),
    }


def _cams(config: SyntheticConfig, spec: LogSpec, frame: int) -> dict[str, dict[str, Any]]:
    return {
        channel: {
            "data_path": f"{spec.name}/{channel}/{_token(config.seed, spec.key, channel, frame)}.jpg",
            "sensor2lidar_rotation": cam.rotation,
            "sensor2lidar_translation": cam.translation,
            "cam_intrinsic": cam.intrinsics,
            "distortion": np.zeros(5),
        }
        for channel, cam in rig(config.width, config.height).items()
    }


def _lights(drive: Drive, t: float) -> list[tuple[int, bool]]:
    ego = drive.ego(t)
    near = {n for n, x in enumerate(drive.town.nodes) if np.hypot(x.xy[0] - ego.x, x.xy[1] - ego.y) < SIGNALS}
    return [
        (c.id, drive.lights.state(c.node, c.leg, t) == "red") for c in drive.town.connectors.values() if c.node in near
    ]


def _annotations(config: SyntheticConfig, spec: LogSpec, drive: Drive, t: float, frame: int) -> dict[str, Any]:
    ego, origin = drive.ego(t), drive.town.origin
    actors = [a for a in drive.actors(t) if np.hypot(a.x - ego.x, a.y - ego.y) < ANNOTATED]
    q = quaternion(ego.yaw, ego.pitch, ego.roll)
    boxes, velocity = local_boxes(
        np.array([global_box(a, origin) for a in actors], dtype=np.float64).reshape(-1, 10),
        np.array([ego.x + origin[0], ego.y + origin[1], 0.0]),
        rotation_matrix(q),
        heading_from_quaternion(q),
        np.eye(3),
    )
    names = np.array([a.name for a in actors], dtype="<U14")
    return {
        "gt_boxes": boxes,
        "gt_names": names,
        "gt_velocity_3d": velocity,
        "instance_tokens": [_token(config.seed, spec.key, "box", frame, a.track) for a in actors],
        "track_tokens": [track_token(config, spec, a) for a in actors],
    }


def global_box(actor: Actor, origin: Float64) -> tuple[float, ...]:
    """x, y, z, length, width, height, yaw, vx, vy, vz of an actor in global coordinates, as a ``.db`` has them."""
    length, width, height = (float(x) for x in actor.size)
    place = (float(actor.x + origin[0]), float(actor.y + origin[1]), height / 2)
    return (*place, length, width, height, float(actor.heading), float(actor.vx), float(actor.vy), 0.0)


def track_token(config: SyntheticConfig, spec: LogSpec, actor: Actor) -> str:
    """The token of an actor's track in a log."""
    return _token(config.seed, spec.key, "track", actor.track)
