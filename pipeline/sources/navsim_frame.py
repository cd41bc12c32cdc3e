"""One frame of a NAVSIM log (a dict of the pickle) turned into a checked `Frame`.

Every value that a `Frame` holds has been checked for type, shape and finiteness, so that nothing behind the source
asks again. `FrameReader` parses a frame at most once and shares its record, or its error, between all windows that
overlap there; equal calibrations (a log has eight) are checked once and shared too.

Codes of the `SampleError`s: ``bad_frame`` (missing keys, wrong types, paths that leave the dataset), ``bad_pose``,
``bad_calibration``, ``bad_annotations``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from pipeline.sources.untrusted import floats, integer, items, shown, text
from shards_schema.errors import SampleError
from shards_schema.poses import Float64, heading_from_quaternion
from shards_schema.records import CHANNELS, Annotations, Camera, Frame

CameraFrame = Literal["ego", "lidar"]
"""The frame that ``sensor2lidar_*`` leads to; see `FrameReader`."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEYS: Final = (
    "token",
    "timestamp",
    "ego2global_translation",
    "ego2global_rotation",
    "ego_dynamic_state",
    "driving_command",
    "roadblock_ids",
    "traffic_lights",
    "cams",
)
_CAMERA_KEYS: Final = (
    "data_path",
    "cam_intrinsic",
    "distortion",
    "sensor2lidar_rotation",
    "sensor2lidar_translation",
)
_ANNOTATION_KEYS: Final = ("gt_boxes", "gt_names", "gt_velocity_3d", "track_tokens")
_ORTHONORMAL: Final = 1e-3
"""Largest |R^T R - I| of a rotation."""
_UNIT: Final = 1e-2
"""Largest distance of a quaternion's length from 1; the devkit makes any length 1, and so would hide a wrong one."""
_Calibration = tuple[Float64, Float64, Float64, Float64]


def token_and_time(raw: Mapping[str, Any]) -> tuple[str, int]:
    """The token and the timestamp [us] of a frame.

    Raises:
        SampleError: code ``bad_frame``: one is missing, or the token is not 1 to 64 letters, digits, ``_`` or ``-``
            (tokens become file names); or it is no dict.
    """
    require(raw, ("token", "timestamp"), "bad_frame", "a frame")
    token = raw["token"]
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise SampleError("bad_frame", f"a frame's token should be hex characters, got {shown(token)}")
    return str(token), integer(raw["timestamp"], "bad_frame", f"frame {token}: timestamp, as integer microseconds,")


def route(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The frame's roadblock ids in order, each once; nuPlan's ``[""]`` is no route.

    Raises:
        SampleError: code ``bad_frame``.
    """
    where = f"frame {shown(raw.get('token'))}"
    require(raw, ("roadblock_ids",), "bad_frame", where)
    ids = items(raw["roadblock_ids"], "bad_frame", f"{where}: roadblock_ids")
    return tuple(dict.fromkeys(found for i in ids if (found := _identifier(i, "bad_frame", f"{where}: roadblock_ids"))))


def _identifier(value: object, code: str, what: str) -> str:
    """A name or an id, which some logs hold as a number."""
    if isinstance(value, int | np.integer):
        return str(integer(value, code, what))
    return text(value, code, what)


class FrameReader:
    """The frames of one log as records, each parsed when it is first asked for.

    Args:
        raw: the log's frames as they are in its pickle.
        blobs: the folder or URL that image and lidar paths are relative to.
        camera_frame: OpenScene writes nuPlan's camera-to-ego extrinsics under the name ``sensor2lidar_*``, whatever
            ``lidar2ego`` says, and puts boxes in the ego frame; so "ego" takes them as they are. "lidar" believes the
            name and composes them with the frame's ``lidar2ego`` (the same thing where that is the identity).
    """

    def __init__(self, raw: Sequence[Mapping[str, Any]], blobs: str, camera_frame: CameraFrame = "ego") -> None:
        self._raw = raw
        self._blobs = blobs
        self._camera_frame = camera_frame
        self._parsed: dict[int, Frame | SampleError] = {}
        self._calibrations: dict[tuple[bytes, ...], _Calibration] = {}

    def frame(self, index: int) -> Frame:
        """The record of frame `index` of the log.

        Raises:
            SampleError: see the module docstring; the same one each time.
        """
        if index not in self._parsed:
            try:
                self._parsed[index] = self._parse(self._raw[index])
            except SampleError as error:
                self._parsed[index] = SampleError(error.code, f"frame {index} of the log: {error.reason}")
            except (TypeError, ValueError, OverflowError) as error:  # a type that no check below thought of
                self._parsed[index] = SampleError("bad_frame", f"frame {index} of the log: {error}")
        found = self._parsed[index]
        if isinstance(found, SampleError):
            raise SampleError(found.code, found.reason)
        return found

    def _parse(self, raw: Mapping[str, Any]) -> Frame:
        token, timestamp = token_and_time(raw)
        require(raw, _KEYS, "bad_frame", f"frame {token}")
        translation = floats(raw["ego2global_translation"], (3,), "bad_pose", f"{token}: ego2global_translation")
        rotation = floats(raw["ego2global_rotation"], (4,), "bad_pose", f"{token}: ego2global_rotation")
        if abs(np.linalg.norm(rotation) - 1) > _UNIT:
            raise SampleError(
                "bad_pose", f"{token}: ego2global_rotation is no quaternion of length 1: {rotation.tolist()}"
            )
        dynamics = floats(raw["ego_dynamic_state"], (4,), "bad_pose", f"{token}: ego_dynamic_state")
        lidar = raw.get("lidar_path")
        return Frame(
            token=token,
            timestamp=timestamp,
            ego_pose=np.array([translation[0], translation[1], heading_from_quaternion(rotation)]),
            ego_translation=translation,
            ego_rotation=rotation,
            velocity=dynamics[:2],
            acceleration=dynamics[2:],
            command=_command(raw["driving_command"], token),
            roadblock_ids=route(raw),
            traffic_lights=_traffic_lights(raw["traffic_lights"], token),
            cameras=self._cameras(raw, token),
            annotations=_annotations(raw.get("anns"), token),
            lidar=self._blob(lidar, f"{token}: lidar_path") if lidar else None,
        )

    def _cameras(self, raw: Mapping[str, Any], token: str) -> dict[str, Camera]:
        cams = raw["cams"]
        if not isinstance(cams, Mapping):
            raise SampleError("bad_frame", f"{token}: cams should map channels to cameras, got {shown(cams)}")
        cameras = {}
        for channel in CHANNELS:
            if not (cam := cams.get(channel)):
                continue
            where = f"{token}: cams.{channel}"
            if not isinstance(cam, Mapping):
                raise SampleError("bad_frame", f"{where}: expected a mapping, got {shown(cam)}")
            require(cam, _CAMERA_KEYS, "bad_frame", where)
            intrinsics, distortion, rotation, translation = self._calibration(raw, cam, where)
            cameras[channel] = Camera(
                channel=channel,
                image=self._blob(cam["data_path"], f"{where}.data_path"),
                intrinsics=intrinsics,
                distortion=distortion,
                sensor2ego_rotation=rotation,
                sensor2ego_translation=translation,
                calibrated=_size(cam.get("calibrated_size"), where),
            )
        return cameras

    def _calibration(self, raw: Mapping[str, Any], cam: Mapping[str, Any], where: str) -> _Calibration:
        code = "bad_calibration"
        K = floats(cam["cam_intrinsic"], (3, 3), code, f"{where}.cam_intrinsic")
        distortion = floats(cam["distortion"], (5,), code, f"{where}.distortion")
        R = floats(cam["sensor2lidar_rotation"], (3, 3), code, f"{where}.sensor2lidar_rotation")
        t = floats(cam["sensor2lidar_translation"], (3,), code, f"{where}.sensor2lidar_translation")
        to_ego = np.eye(4)
        if self._camera_frame == "lidar":
            require(raw, ("lidar2ego",), "bad_frame", where)
            to_ego = floats(raw["lidar2ego"], (4, 4), code, f"{where}: lidar2ego")
        key = tuple(a.tobytes() for a in (K, distortion, R, t, to_ego))
        if key not in self._calibrations:
            if abs(np.linalg.det(K)) < 1e-6:
                raise SampleError(code, f"{where}.cam_intrinsic is singular: {K.tolist()}")
            for what, rotation in (("sensor2lidar_rotation", R), ("lidar2ego", to_ego[:3, :3])):
                off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
                if off > _ORTHONORMAL or np.linalg.det(rotation) < 0:
                    raise SampleError(code, f"{where}: {what} is no rotation (off by {off:.2g}): {rotation.tolist()}")
            if self._camera_frame == "lidar":
                R, t = to_ego[:3, :3] @ R, to_ego[:3, :3] @ t + to_ego[:3, 3]
            self._calibrations[key] = K, distortion, R, t
        return self._calibrations[key]

    def _blob(self, path: object, where: str) -> str:
        path = text(path, "bad_frame", where)
        if not lies_within(path):
            raise SampleError(
                "bad_frame", f"{where}: expected a path within sensor_blobs/<split>, got {shown(path, 120)}"
            )
        return f"{self._blobs}/{path}"


def lies_within(path: str) -> bool:
    """Whether a path that a log names stays below the folder of the images."""
    return bool(path) and not path.startswith("/") and "://" not in path and ".." not in path.split("/")


def require(raw: object, keys: Sequence[str], code: str, where: str) -> None:
    """Refuse what is no dict, or lacks one of `keys`.

    Raises:
        SampleError: so, under `code`.
    """
    if not isinstance(raw, Mapping):
        raise SampleError(code, f"{where} should be a dict, got {shown(raw)}")
    if missing := [key for key in keys if key not in raw]:
        raise SampleError(code, f"{where} lacks {', '.join(missing)}")


def _size(value: object, where: str) -> tuple[int, int] | None:
    """What the nuPlan source adds to a camera; OpenScene's pickles do not have it."""
    if value is None:
        return None
    what = f"{where}.calibrated_size, (width, height),"
    sides = [integer(side, "bad_calibration", what) for side in items(value, "bad_calibration", what)]
    if len(sides) != 2 or min(sides) < 1:
        raise SampleError("bad_calibration", f"{what} should be two positive numbers, got {shown(value)}")
    return sides[0], sides[1]


def _command(value: Any, token: str) -> tuple[int, int, int, int]:
    try:
        bits = floats(value, (4,), "bad_frame", "driving_command").tolist()
    except SampleError:
        bits = []
    if sorted(bits) != [0, 0, 0, 1]:
        raise SampleError("bad_frame", f"{token}: driving_command should be one-hot of 4, got {shown(value)}")
    return int(bits[0]), int(bits[1]), int(bits[2]), int(bits[3])


def _traffic_lights(value: Any, token: str) -> tuple[tuple[int, bool], ...]:
    what = f"{token}: traffic_lights, (lane connector id, is red) pairs,"
    lights = []
    for pair in items(value, "bad_frame", what):
        connector, red = _pair(pair, what)
        lights.append((integer(connector, "bad_frame", what), bool(red)))
    return tuple(lights)


def _pair(value: object, what: str) -> Sequence[Any]:
    pair = items(value, "bad_frame", what)
    if len(pair) != 2 or not isinstance(pair[1], bool | int | np.bool_ | np.integer):
        raise SampleError("bad_frame", f"{what}, got {shown(value)}")
    return pair


def _annotations(anns: Any, token: str) -> Annotations | None:
    if anns is None:
        return None
    code = "bad_annotations"
    if not isinstance(anns, Mapping):
        raise SampleError(code, f"{token}: anns should be a mapping, got {shown(anns)}")
    require(anns, _ANNOTATION_KEYS, code, f"{token}: anns")
    try:
        counts = {key: len(anns[key]) for key in (*_ANNOTATION_KEYS, "instance_tokens") if key in anns}
    except TypeError:
        raise SampleError(code, f"{token}: anns should hold one list or array a key") from None
    if len(set(counts.values())) != 1:
        raise SampleError(code, f"{token}: anns of unequal lengths: {counts}")
    count = counts["gt_boxes"]
    boxes, velocity = (anns["gt_boxes"], anns["gt_velocity_3d"]) if count else (np.zeros((0, 7)), np.zeros((0, 3)))
    return Annotations(
        boxes=floats(boxes, (count, 7), code, f"{token}: anns.gt_boxes"),
        names=_texts(anns["gt_names"], f"{token}: anns.gt_names"),
        # NaN where the log does not know one: no target needs it, so no scene is lost for it
        velocity=floats(velocity, (count, 3), code, f"{token}: anns.gt_velocity_3d", unknown=True),
        track_tokens=_texts(anns["track_tokens"], f"{token}: anns.track_tokens"),
    )


def _texts(values: object, what: str) -> tuple[str, ...]:
    return tuple(_identifier(value, "bad_annotations", what) for value in items(values, "bad_annotations", what))
