"""Which frames a nuPlan log has, and which images belong to them, as OpenScene's conversion finds them.

`NuplanLog` reads the sweeps, images and scenes (some 20,000 short rows of a log of 8 minutes), and matches exposures to
sweeps:

    sweeps (20 Hz)    |    |    |    |    |    |    |    |    |    |    |
    exposures (10 Hz) o         o         o         o         o         o         of a channel: the last one within
                     [----+----]                                                  50 ms of the sweep, both ends included
    frames at 2 Hz    F                                                 F         every 10th sweep from the first
    frames at 10 Hz   F         F         F         F         F         F         every 2nd

The first frame is where OpenScene begins: the first sweep in whose 100 ms there are exactly eight exposures, or the
one after it if that is no further from its front camera. Both rates begin there, so the frames at 2 Hz are among those
at 10 Hz, with the same tokens and images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickles.unpickle import load_pickle
from pipeline.sources.nuplan_db import LogDb, hexed, unreadable
from pipeline.sources.untrusted import floats
from shards_schema.errors import SampleError, UnsafePickleError
from shards_schema.poses import Float64
from shards_schema.records import CHANNELS

SWEEP_HZ: Final = 20
WINDOW_US: Final = 50_000
"""An exposure belongs to a sweep that it is at most this far from."""
SLACK: Final = 0.2
"""Frames follow each other without a gap when they are one period apart, give or take this share of it."""
_UNIT: Final = 1e-14
_FORMS: Final = {"translation": (3,), "rotation": (4,), "intrinsic": (3, 3), "distortion": (5,)}


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """A row of ``lidar_pc``; tokens as in the file."""

    token: bytes
    timestamp: int
    pose: bytes
    scene: bytes
    lidar: bytes
    filename: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Rig:
    """A camera's calibration: `rotation` [3, 3] and `translation` [3] camera -> ego, `intrinsics` [3, 3].

    They are for images of `size`, (width, height).
    """

    rotation: Float64
    translation: Float64
    intrinsics: Float64
    distortion: Float64
    size: tuple[int, int]


class Exposure(NamedTuple):
    """An image: its file, the tokens of its ego pose and of its camera."""

    file: str
    pose: bytes
    camera: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Exposures:
    """One channel's images in time order, and their microseconds [N]."""

    times: NDArray[np.int64]
    rows: list[Exposure]

    def near(self, stamps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each stamp the first of those within `WINDOW_US`, and the end of them."""
        first = np.searchsorted(self.times, stamps - WINDOW_US, side="left")
        return first, np.searchsorted(self.times, stamps + WINDOW_US, side="right")


class NuplanLog:
    """The tables of an open log that say which frames there are.

    Attributes:
        db: the open log.
        channels: the cameras that a frame must have.
        step: sweeps from one frame to the next.
        sweeps: all of them, in time order.
        stamps: int64 [N], their microseconds.
        map_name: nuPlan's location.
        rigs: calibrations by camera token.
        lidars: [3, 3] lidar -> ego by lidar token.
        frames_at: indices of the sweeps that are frames, `step` apart, from the first frame to the log's end; empty
            when no sweep has its images.
    """

    def __init__(self, db: LogDb, channels: Sequence[str], rate: int) -> None:
        """Read them.

        Args:
            db: the open log.
            channels: the cameras that a frame must have.
            rate: frames a second: a divisor of 20.

        Raises:
            SampleError: code ``log_unreadable``, or ``unsafe_pickle`` of a calibration: nothing of the log can be used.
        """
        self.db = db
        self.channels = tuple(channels)
        self.step = SWEEP_HZ // rate
        self.map_name = self._map_name()
        self.sweeps = [
            Sweep(*row)
            for row in db.select(
                "SELECT token, timestamp, ego_pose_token, scene_token, lidar_token, filename FROM lidar_pc "
                "ORDER BY timestamp, rowid"
            )
        ]
        if bad := next((s for s in self.sweeps if not isinstance(s.timestamp, int)), None):
            raise unreadable(db.where, f"lidar_pc: a sweep's timestamp should be an integer, got {bad.timestamp!r:.40}")
        self.stamps = np.array([sweep.timestamp for sweep in self.sweeps], dtype=np.int64)
        self.rigs, of_camera = self._cameras()
        self.lidars = {
            token: rotation_matrix(self._unpickled(blob, "lidar, rotation", (4,)))
            for token, blob in db.select("SELECT token, rotation FROM lidar")
        }
        self._exposures = self._images(of_camera)
        self._routes = {
            token: tuple(i for i in str(ids or "").split(" ") if i)
            for token, ids in db.select("SELECT token, roadblock_ids FROM scene")
        }
        first = self._first_frame()
        self.frames_at = range(first, len(self.sweeps), self.step) if first is not None else range(0)

    def token(self, index: int) -> str:
        """Of the sweep at `index`.

        Raises:
            SampleError: code ``bad_frame``.
        """
        return hexed(self.sweeps[index].token, f"lidar_pc.token of sweep {index}")

    def scene(self, index: int) -> str:
        """The token of that sweep's scene.

        Raises:
            SampleError: code ``bad_frame``.
        """
        return hexed(self.sweeps[index].scene, f"lidar_pc.scene_token of sweep {index}")

    def route(self, index: int) -> tuple[str, ...]:
        """The roadblock ids of that sweep's scene; empty where it has none."""
        return self._routes.get(self.sweeps[index].scene, ())

    def images(self, index: int) -> dict[str, Exposure]:
        """Channel -> the exposure that belongs to a sweep, of the channels asked for that have one."""
        out = {}
        for channel in self.channels:
            exposures = self._exposures[channel]
            (first,), (end,) = exposures.near(self.stamps[index : index + 1])
            if first < end:
                out[channel] = exposures.rows[int(end) - 1]
        return out

    def follows(self, before: int, after: int) -> bool:
        """Whether two times [us] are those of frames that follow each other without a gap."""
        period = self.step * 1_000_000 / SWEEP_HZ
        return abs(after - before - period) <= SLACK * period

    def _map_name(self) -> str:
        rows = list(self.db.select("SELECT map_version FROM log"))
        if len(rows) != 1 or not isinstance(rows[0][0], str):
            raise unreadable(self.db.where, f"table log should have one row that names the map, found {rows!r:.80}")
        return rows[0][0]

    def _cameras(self) -> tuple[dict[bytes, Rig], dict[bytes, str]]:
        """Calibrations and channels by camera token."""
        rigs, of_camera = {}, {}
        statement = f"SELECT token, channel, width, height, {', '.join(_FORMS)} FROM camera"
        for token, channel, width, height, *blobs in self.db.select(statement):
            if channel in CHANNELS:
                if not all(isinstance(side, int) and side > 0 for side in (width, height)):
                    raise unreadable(
                        self.db.where, f"camera {channel}: width and height should be pixels, got {width!r}, {height!r}"
                    )
                t, q, k, d = (
                    self._unpickled(blob, f"camera {channel}, {name}", shape)
                    for blob, (name, shape) in zip(blobs, _FORMS.items(), strict=True)
                )
                rigs[token], of_camera[token] = Rig(rotation_matrix(q), t, k, d, (width, height)), channel
        return rigs, of_camera

    def _unpickled(self, blob: object, what: str, shape: tuple[int, ...]) -> Float64:
        where = f"{self.db.where}: {what}"
        try:
            if not isinstance(blob, bytes):
                raise TypeError(f"expected a pickled list, got {blob!r:.40}")
            array = floats(load_pickle(blob, where), shape, "log_unreadable", "its value")
            if shape == (4,) and not is_rotation(array):
                raise ValueError(f"expected a quaternion of shape [4], got {array.tolist()}")
        except UnsafePickleError:
            raise
        except (SampleError, TypeError, ValueError) as error:
            raise unreadable(where, str(error)) from None
        return array

    def _images(self, of_camera: Mapping[bytes, str]) -> dict[str, _Exposures]:
        found: dict[str, list[tuple[int, Exposure]]] = {channel: [] for channel in CHANNELS}
        statement = (
            "SELECT camera_token, timestamp, filename_jpg, ego_pose_token FROM image "
            "WHERE timestamp IS NOT NULL AND filename_jpg IS NOT NULL ORDER BY timestamp, rowid"
        )
        for camera, timestamp, file, pose in self.db.select(statement):
            if not isinstance(timestamp, int):
                raise unreadable(self.db.where, f"image: a timestamp should be an integer, got {timestamp!r:.40}")
            if camera in of_camera:
                found[of_camera[camera]].append((timestamp, Exposure(file, pose, camera)))
        return {
            channel: _Exposures(np.array([t for t, _ in rows], dtype=np.int64), [row for _, row in rows])
            for channel, rows in found.items()
        }

    def _first_frame(self) -> int | None:
        """OpenScene's rule by all eight cameras; if none has them, by those that are asked for."""
        for channels in (CHANNELS, self.channels):
            near = [self._exposures[channel].near(self.stamps) for channel in channels]
            full = np.flatnonzero(sum(end - first for first, end in near) == len(channels))
            if len(full):
                start = int(full[0])
                here, there = (self._from_front(start + i, channels[0]) for i in (0, 1))
                return start if here < there else start + 1
        return None

    def _from_front(self, index: int, channel: str) -> float:
        """Microseconds from a sweep to the first of its exposures of a channel; infinite without one."""
        if index >= len(self.sweeps):
            return np.inf
        exposures = self._exposures[channel]
        (first,), (end,) = exposures.near(self.stamps[index : index + 1])
        return float(abs(exposures.times[first] - self.stamps[index])) if first < end else np.inf


def is_rotation(q_wxyz: Float64) -> bool:
    """Whether a quaternion [4] is anywhere near a unit; float32 ones are not exact."""
    return bool((np.abs(q_wxyz) < 2).all() and np.abs(q_wxyz).max() > 0.25)


def rotation_matrix(q_wxyz: Float64) -> Float64:
    """[3, 3] of a Hamilton quaternion [4], made a unit first: the lower right of Q(q) Q'(q)^T, where Q(q) p = q p and
    Q'(q) p = p q (so it is done in pyquaternion, which nuPlan uses; the closed form rounds otherwise).
    """
    w, x, y, z = q_wxyz if abs(1.0 - float(q_wxyz @ q_wxyz)) < _UNIT else q_wxyz / np.linalg.norm(q_wxyz)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])
    return np.asarray((left @ right.T)[1:, 1:])
