"""Frames of a nuPlan log in the form of OpenScene's pickles, made when asked for.

`navsim_frame.FrameReader` then checks and shares them as it does those of a pickle. Poses, boxes and lights are fetched
for the sweeps asked for alone, one query each. Matrices come of the same sums in the same order as OpenScene's, so that
the values are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, overload

import numpy as np

from pipeline.sources.nuplan_db import LogDb, hexed
from pipeline.sources.nuplan_log import Exposure, NuplanLog, is_rotation, rotation_matrix
from shards_schema.errors import SampleError
from shards_schema.poses import Float64, heading_from_quaternion

Extrinsics = Literal["rig", "exposure"]
"""Where a camera is said to be: see `pipeline.sources.nuplan.NuplanConfig`."""
Commander = Callable[[Float64, Sequence[str]], int]
"""The driving command of a global pose [3] and a route, as a place in `COMMANDS`."""
Rows = dict[bytes, list[tuple[Any, ...]]]
"""Rows of a table by the token of their sweep."""


class LogFrames(Sequence[Mapping[str, Any]]):
    """Frames of a log in OpenScene's form, by the index of their sweep; made when asked for."""

    def __init__(
        self, log: NuplanLog, indices: Iterable[int], commander: Commander, extrinsics: Extrinsics, lidar: bool
    ) -> None:
        """Fetch what the frames of the sweeps at `indices` need; the log may be closed afterwards.

        Args:
            log: the open log.
            indices: of the sweeps that will be asked for, in any order.
            commander: gives the driving command.
            extrinsics: where a camera is said to be.
            lidar: whether frames name their point cloud.

        Raises:
            SampleError: code ``log_unreadable``.
        """
        wanted = sorted(set(indices))
        self._log, self._commander, self._extrinsics, self._lidar = log, commander, extrinsics, lidar
        self._images = {i: log.images(i) for i in wanted}
        poses = {log.sweeps[i].pose for i in wanted}
        if extrinsics == "exposure":
            poses |= {image.pose for images in self._images.values() for image in images.values()}
        tokens = [log.sweeps[i].token for i in wanted]
        self._poses, self._boxes, self._lights = _poses(log.db, poses), _boxes(log.db, tokens), _lights(log.db, tokens)

    def __len__(self) -> int:
        return len(self._log.sweeps)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[Mapping[str, Any]]:
        """The frame of a sweep that was asked for.

        Raises:
            SampleError: code ``bad_frame`` or ``bad_pose``.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sweep = self._log.sweeps[index]
        token = self._log.token(index)
        pose = self._pose(sweep.pose, token)
        translation, quaternion = pose[:3], pose[3:7]
        route = self._log.route(index)
        command = np.zeros(4, dtype=np.int64)
        heading = heading_from_quaternion(quaternion)
        command[self._commander(np.array([*translation[:2], heading]), route)] = 1
        rotation = rotation_matrix(quaternion)
        lidar = self._log.lidars.get(sweep.lidar)
        if lidar is None:
            raise SampleError("bad_frame", f"{token}: the log has no lidar {sweep.lidar!r:.60}")
        return {
            "token": token,
            "timestamp": sweep.timestamp,
            "scene_token": self._log.scene(index),
            "map_location": self._log.map_name,
            "roadblock_ids": list(route),
            "driving_command": command,
            "ego2global_translation": translation,
            "ego2global_rotation": quaternion,
            "ego_dynamic_state": pose[7:].tolist(),
            "traffic_lights": [(i, status == "red") for i, status in self._lights.get(sweep.token, ())],
            "lidar_path": sweep.filename if self._lidar else None,
            "cams": {
                channel: self._camera(image, translation, rotation, token)
                for channel, image in self._images[index].items()
            },
            "anns": _annotations(self._boxes.get(sweep.token, []), translation, rotation, heading, lidar),
        }

    def _pose(self, pose: bytes, token: str) -> Float64:
        """[11] the row of `_poses`."""
        row = self._poses.get(pose)
        if row is None or None in row:
            raise SampleError("bad_pose", f"{token}: the log has no whole ego pose {pose!r:.60}, found {row!r:.80}")
        values = np.array(row, dtype=np.float64)
        if not np.isfinite(values).all() or not is_rotation(values[3:7]):
            raise SampleError("bad_pose", f"{token}: ego pose {pose!r:.60} is not one: {values.tolist()}")
        return values

    def _camera(self, image: Exposure, translation: Float64, rotation: Float64, token: str) -> dict[str, Any]:
        rig = self._log.rigs[image.camera]
        R, t = rig.rotation, rig.translation
        if self._extrinsics == "exposure":
            then = self._pose(image.pose, token)
            turned = rotation_matrix(then[3:7])
            R, t = rotation.T @ turned @ R, rotation.T @ (turned @ t + (then[:3] - translation))
        return {
            "data_path": image.file,
            "sensor2lidar_rotation": R,
            "sensor2lidar_translation": t,
            "cam_intrinsic": rig.intrinsics,
            "distortion": rig.distortion,
            "calibrated_size": rig.size,
        }


def _annotations(
    rows: list[tuple[Any, ...]], translation: Float64, rotation: Float64, heading: float, lidar: Float64
) -> dict[str, Any]:
    values = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 10)
    boxes, velocities = local_boxes(values, translation, rotation, heading, lidar)
    return {
        "gt_boxes": boxes,
        "gt_names": [row[1] for row in rows],
        "gt_velocity_3d": velocities,
        "track_tokens": [hexed(row[0], "lidar_box.track_token") for row in rows],
    }


def local_boxes(
    values: Float64, translation: Float64, rotation: Float64, heading: float, lidar: Float64
) -> tuple[Float64, Float64]:
    """Global boxes in the ego frame, to the bit as OpenScene has them: centres turned in space, headings subtracted.

    Args:
        values: [N, 10] x, y, z, length, width, height [m], yaw [rad], vx, vy, vz [m/s], global.
        translation: [3] of the ego.
        rotation: [3, 3] ego -> global.
        heading: of the ego.
        lidar: [3, 3] lidar -> ego, all but the identity, since nuPlan's merged sweeps are in the ego frame.

    Returns:
        [N, 7] x, y, z, length, width, height, yaw in the ego frame, and velocities [N, 3] in the lidar's axes.
    """
    back = rotation.T.copy()
    inverse, to_lidar = np.linalg.inv(rotation).T, np.linalg.inv(lidar).T
    boxes = np.empty((len(values), 7))
    for box, row in zip(boxes, values, strict=True):  # one by one: a product of all at once would round otherwise
        box[:3] = back @ (row[:3] - translation)
    boxes[:, 3:6] = values[:, 3:6]
    boxes[:, 6] = values[:, 6] - heading
    return boxes, np.array([row[7:] @ inverse @ to_lidar for row in values]).reshape(-1, 3)


def _poses(db: LogDb, tokens: Iterable[bytes]) -> dict[bytes, tuple[float, ...]]:
    """x, y, z, qw, qx, qy, qz, vx, vy, ax, ay by pose token."""
    statement = (
        "SELECT p.token, p.x, p.y, p.z, p.qw, p.qx, p.qy, p.qz, p.vx, p.vy, p.acceleration_x, p.acceleration_y "
        "FROM wanted AS w JOIN ego_pose AS p ON p.token = w.token"
    )
    return {token: tuple(rest) for token, *rest in db.among(tokens, statement)}


def _boxes(db: LogDb, tokens: Iterable[bytes]) -> Rows:
    """(track, name, x, y, z, length, width, height, yaw, vx, vy, vz) of each box by sweep token."""
    statement = (
        "SELECT b.lidar_pc_token, b.rowid, b.track_token, c.name, b.x, b.y, b.z, b.length, b.width, b.height, "
        "b.yaw, b.vx, b.vy, b.vz FROM wanted AS w JOIN lidar_box AS b ON b.lidar_pc_token = w.token "
        "JOIN track AS t ON t.token = b.track_token JOIN category AS c ON c.token = t.category_token"
    )
    return _grouped(db.among(tokens, statement))


def _lights(db: LogDb, tokens: Iterable[bytes]) -> Rows:
    """(lane connector, status) of each light by sweep token."""
    statement = (
        "SELECT l.lidar_pc_token, l.rowid, l.lane_connector_id, l.status "
        "FROM wanted AS w JOIN traffic_light_status AS l ON l.lidar_pc_token = w.token"
    )
    return _grouped(db.among(tokens, statement))


def _grouped(rows: Iterable[tuple[Any, ...]]) -> Rows:
    """Of (sweep token, place in the table, ...): the rest, in the order of the table."""
    ordered = sorted(rows, key=itemgetter(0, 1))
    return {token: [row[2:] for row in group] for token, group in groupby(ordered, key=itemgetter(0))}
