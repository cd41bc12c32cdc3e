"""The frame records: OpenScene's keys and types, and frames of reference that agree with each other and the images."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest

from shards_schema.poses import heading_from_quaternion
from shards_schema.records import CHANNELS
from synthetic.config import SyntheticConfig
from synthetic.drive import Drive
from synthetic.logs import (
    LogSpec,
    drive_of,
    frame_records,
    log_specs,
    pickled,
    timestamps,
    track_token,
)
from synthetic.mesh import signal_head
from synthetic.render import Renderer
from synthetic.scenery import lots

KEYS = {
    "token", "frame_idx", "timestamp", "log_name", "log_token", "scene_name", "scene_token", "map_location",
    "roadblock_ids", "vehicle_name", "can_bus", "lidar_path", "lidar2ego_translation", "lidar2ego_rotation",
    "ego2global_translation", "ego2global_rotation", "ego_dynamic_state", "traffic_lights", "driving_command", "cams",
    "sample_prev", "sample_next", "ego2global", "lidar2ego", "lidar2global", "anns",
}  # fmt: skip
CONFIG = SyntheticConfig(seed=5, logs=1, frames=24, width=480, height=270, manoeuvres=("left_turn",), processes=1)
SPEC = log_specs(CONFIG)[0]
Frames = list[dict[str, Any]]


@pytest.fixture(scope="module")
def drive() -> Drive:
    return drive_of(CONFIG, SPEC)


@pytest.fixture(scope="module")
def frames(drive: Drive) -> Frames:
    return frame_records(CONFIG, SPEC, drive)


def to_global(frame: dict[str, Any], points: np.ndarray) -> np.ndarray:
    return points @ frame["ego2global"][:3, :3].T + frame["ego2global"][:3, 3]


def project(frame: dict[str, Any], channel: str, point: np.ndarray) -> np.ndarray:
    """Pixel of a global point, by the record's own calibration."""
    cam = frame["cams"][channel]
    ego = (point - frame["ego2global"][:3, 3]) @ frame["ego2global"][:3, :3]
    p = (ego - cam["sensor2lidar_translation"]) @ cam["sensor2lidar_rotation"]
    assert p[2] > 0.5
    return (cam["cam_intrinsic"] @ p)[:2] / p[2]


def test_keys_types_and_shapes(frames: Frames) -> None:
    assert len(frames) == 24
    for i, frame in enumerate(frames):
        assert set(frame) == KEYS
        assert len(frame["token"]) == 16
        int(frame["token"], 16)
        assert type(frame["timestamp"]) is int
        assert frame["frame_idx"] == i
        assert frame["driving_command"].sum() == 1
        assert frame["can_bus"].shape == (18,)
        assert all(type(v) is float for v in frame["ego_dynamic_state"])
        assert all(type(n) is int and type(red) is bool for n, red in frame["traffic_lights"])
        assert set(frame["cams"]) == set(CHANNELS)
        anns, n = frame["anns"], len(frame["anns"]["gt_names"])
        assert n > 5
        assert anns["gt_boxes"].shape == (n, 7)
        assert anns["gt_velocity_3d"].shape == (n, 3)
        assert len(set(anns["track_tokens"])) == len(set(anns["instance_tokens"])) == n
        known = {"vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object"}
        assert set(anns["gt_names"].tolist()) <= known
    instances = [t for f in frames for t in f["anns"]["instance_tokens"]]
    assert len(instances) == len(set(instances))


def test_timestamps_are_half_a_second_apart_with_jitter() -> None:
    stamps = timestamps(CONFIG, SPEC)
    assert all(type(s) is int for s in stamps)
    steps = np.diff(stamps)
    assert np.abs(steps - 500_000).max() <= 6
    assert len(set(steps.tolist())) > 1


def test_quaternion_matrix_and_position_agree(frames: Frames) -> None:
    for frame in frames:
        w, x, y, z = frame["ego2global_rotation"]
        assert w * w + x * x + y * y + z * z == pytest.approx(1.0, abs=1e-12)
        matrix = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        np.testing.assert_allclose(frame["ego2global"][:3, :3], matrix, atol=1e-12)
        np.testing.assert_array_equal(frame["ego2global"][:3, 3], frame["ego2global_translation"])
        np.testing.assert_array_equal(frame["lidar2global"], frame["ego2global"] @ frame["lidar2ego"])
        # The body is tilted, so NAVSIM's heading differs from the usual yaw: a little, but not by rounding.
        usual = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        assert 1e-7 < abs(heading_from_quaternion([w, x, y, z]) - usual) < 1e-3


def test_parked_cars_stay_where_they_are(frames: Frames) -> None:
    places: dict[str, list[np.ndarray]] = {}
    for frame in frames:
        anns = frame["anns"]
        heading = heading_from_quaternion(frame["ego2global_rotation"])
        centres = to_global(frame, anns["gt_boxes"][:, :3])
        for token, name, centre, box in zip(
            anns["track_tokens"], anns["gt_names"], centres, anns["gt_boxes"], strict=True
        ):
            if name in ("traffic_cone", "barrier", "vehicle"):
                places.setdefault(token, []).append(np.append(centre, box[6] + heading))
    still = [np.array(p) for p in places.values() if len(p) > 5 and np.ptp(np.array(p)[:, 0]) < 0.5]
    assert len(still) > 10
    for track in still:
        assert np.ptp(track, axis=0).max() < 1e-6


def test_velocities_are_finite_differences(frames: Frames) -> None:
    checked = 0
    for a, b, c in zip(frames, frames[1:], frames[2:], strict=False):
        where = [
            dict(zip(f["anns"]["track_tokens"], to_global(f, f["anns"]["gt_boxes"][:, :3]), strict=True))
            for f in (a, c)
        ]
        velocity = b["anns"]["gt_velocity_3d"] @ b["ego2global"][:3, :3].T
        for token, name, v in zip(b["anns"]["track_tokens"], b["anns"]["gt_names"], velocity, strict=True):
            if name == "vehicle" and token in where[0] and token in where[1] and np.linalg.norm(v) > 3.0:
                moved = (where[1][token] - where[0][token]) / ((c["timestamp"] - a["timestamp"]) / 1e6)
                assert np.linalg.norm(moved - v) < 0.8  # over a second; drivers brake and turn
                checked += 1
    assert checked > 30


def test_a_house_corner_reprojects_onto_itself(drive: Drive, frames: Frames) -> None:
    """The pixel of one corner in each frame, sent back by the pose to the corner's range, is the corner again."""
    house = next(x for x in lots(drive.town) if x.kind == "house" and abs(x.x) + abs(x.y) < 1e3)
    corner = np.array([*(house.ring()[0] + drive.town.origin), 2.0])
    seen = 0
    for frame in frames:
        for channel in CHANNELS:
            cam = frame["cams"][channel]
            ego = (corner - frame["ego2global"][:3, 3]) @ frame["ego2global"][:3, :3]
            p = (ego - cam["sensor2lidar_translation"]) @ cam["sensor2lidar_rotation"]
            if p[2] > 1.0:
                pixel = project(frame, channel, corner)
                ray = np.linalg.solve(cam["cam_intrinsic"], np.append(pixel, 1.0)) * p[2]
                back = to_global(frame, cam["sensor2lidar_rotation"] @ ray + cam["sensor2lidar_translation"])
                np.testing.assert_allclose(back, corner, atol=1e-5)
                seen += 1
    assert seen > 10


def _painted(image: np.ndarray, pixel: np.ndarray, reach: int = 2) -> np.ndarray:
    u, v = (int(x) for x in np.round(pixel))
    return image[v - reach : v + reach + 1, u - reach : u + reach + 1].reshape(-1, 3).astype(np.float64)


def test_images_show_the_boxes_where_the_records_say() -> None:
    """The box of the car that the ego follows, projected by the record: its rear is painted in the car's hue, up to the
    edges of the box and not beyond."""
    config = CONFIG.model_copy(update={"manoeuvres": ("follow",), "traffic": 0.0, "logs": 12})
    drives = ((spec, drive_of(config, spec)) for spec in log_specs(config))
    spec, drive = next((s, d) for s, d in drives if np.ptp(d.motions[1].vehicle.colour) > 80)
    colour = np.array(drive.motions[1].vehicle.colour, dtype=np.float64)
    frames = frame_records(config, spec, drive)
    renderer = Renderer(drive, config.width, config.height)
    for frame in frames[::6]:
        t = (frame["timestamp"] - spec.start) / 1e6
        image = renderer.frame(t)["CAM_F0"]
        index = frame["anns"]["track_tokens"].index(_track(config, spec, drive, t))
        x, y, z, length, width, height, heading = frame["anns"]["gt_boxes"][index]
        ahead, left = (
            np.array([np.cos(heading), np.sin(heading), 0.0]),
            np.array([-np.sin(heading), np.cos(heading), 0.0]),
        )
        for across, painted in ((0.25, True), (-0.25, True), (0.46, True), (-0.46, True), (0.7, False), (-0.7, False)):
            point = np.array([x, y, z - 0.2 * height]) - ahead * length / 2 + left * across * width
            pixels = _painted(image, project(frame, "CAM_F0", to_global(frame, point)), 1)
            alike = pixels @ colour / np.linalg.norm(colour) / np.linalg.norm(pixels, axis=1)
            assert (np.median(alike) > 0.98) == painted, (t, across, pixels.mean(0), colour)


def _track(config: SyntheticConfig, spec: LogSpec, drive: Drive, t: float) -> str:
    return track_token(config, spec, next(a for a in drive.actors(t) if a.track == "lead"))


def test_the_horizon_is_where_the_camera_says(drive: Drive, frames: Frames) -> None:
    """Above the horizon there is sky or a solid, never ground; a lane marking far ahead is bright where it must be."""
    renderer = Renderer(drive, 240, 135)
    image = renderer.frame(0.0)["CAM_F0"].astype(np.float64)
    lane = drive.route.lanes[0]
    road = drive.town.roads[lane.road]
    middle = road.path if lane.forward else road.path.reversed()
    ego = drive.ego(0.0)
    at = middle.project([ego.x, ego.y])
    ratio = []
    for d in (8.0, 9.0, 10.0, 11.0):
        marking, asphalt = (np.array([*(middle.point(at + d, left) + drive.town.origin), 0.0]) for left in (0.0, -1.4))
        half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
        yellow, grey = ((half @ np.append(project(frames[0], "CAM_F0", p), 1.0))[:2] for p in (marking, asphalt))
        ratio.append(_painted(image, yellow, 1)[:, 0].max() / _painted(image, grey, 1)[:, 0].mean())
    assert min(ratio) > 1.25
    assert image[:20, :, 2].mean() > image[:20, :, 0].mean()  # the sky is blue


def test_a_red_lamp_is_lit_for_a_red_light(frames: Frames, drive: Drive) -> None:
    for state, colour in (("red", 0), ("green", 1)):
        head = signal_head(state)
        lit = head.rgb[head.shines > 0]
        assert lit.shape == (1, 3)
        assert int(np.argmax(lit[0])) == colour
    reds = {n for n, red in frames[0]["traffic_lights"] if red}
    by_leg = {c.id: (c.node, c.leg) for c in drive.town.connectors.values()}
    assert reds
    assert all(drive.lights.state(*by_leg[n], 0.0) == "red" for n in reds)


class _Plain(pickle.Unpickler):
    allowed = frozenset(
        {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    )

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) in self.allowed, (module, name)
        return super().find_class(module, name)


def test_pickles_hold_plain_data_that_numpy_1_reads_too(frames: Frames) -> None:
    data = pickled(frames)
    assert b"numpy._core" not in data
    again = _Plain(io.BytesIO(data)).load()
    assert [f["token"] for f in again] == [f["token"] for f in frames]
    np.testing.assert_array_equal(again[3]["anns"]["gt_boxes"], frames[3]["anns"]["gt_boxes"])
    assert again[3]["anns"]["gt_names"].dtype == np.dtype("<U14")
