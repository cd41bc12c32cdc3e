"""The intrinsics that are stored are for the image that is stored, whatever became of the images on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pipeline.stores.decode import JpegHeader
from pipeline.writing import forecast
from pipeline.writing.calibration import calibrated_size, note, scaled_intrinsics
from pipeline.writing.samples import SamplesColumn, SamplesConfig, StoredImage
from shards_schema.errors import ConfigError, SampleError
from shards_schema.records import Camera
from teachers.testing.scenes import synthetic_scene

NUPLAN_K = np.array([[1545.0, 0, 960], [0, 1545, 560], [0, 0, 1]])
"""Of every camera of nuPlan's, whose images are 1920 x 1080."""


def camera(K: np.ndarray = NUPLAN_K, calibrated: tuple[int, int] | None = None) -> Camera:
    return Camera(
        channel="CAM_F0",
        image="somewhere/a.jpg",
        intrinsics=K,
        distortion=np.zeros(5),
        sensor2ego_rotation=np.eye(3),
        sensor2ego_translation=np.zeros(3),
        calibrated=calibrated,
    )


def intrinsics(width: float, height: float) -> np.ndarray:
    return np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])


@pytest.mark.parametrize(
    ("K", "calibrated", "image", "size"),
    [
        (NUPLAN_K, None, (1920, 1080), (1920, 1080)),
        (NUPLAN_K, (1920, 1080), (1920, 1080), (1920, 1080)),
        (NUPLAN_K, None, (960, 540), (1920, 1080)),
        (NUPLAN_K, None, (455, 256), (1920, 1080)),  # rounded to whole pixels
        (NUPLAN_K, None, (3840, 2160), (1920, 1080)),
        (intrinsics(480, 270), None, (480, 270), (480, 270)),
        (intrinsics(480, 270), None, (240, 135), (480, 270)),
        (intrinsics(1900, 1070), None, (1900, 1070), (1900, 1070)),
        (np.diag([1 / 3, 1 / 3, 1]) @ NUPLAN_K, None, (640, 360), (640, 360)),  # calibration and images were scaled
        (intrinsics(2000, 1100), (2000, 1100), (1000, 550), (2000, 1100)),
    ],
)
def test_what_a_calibration_is_for(
    K: np.ndarray, calibrated: tuple[int, int] | None, image: tuple[int, int], size: tuple[int, int]
) -> None:
    assert calibrated_size(camera(K, calibrated), image) == size
    assert (note(camera(K, calibrated), image) is None) == (image == size)


def test_an_image_of_its_calibration_is_scaled_to_the_bit_as_ever() -> None:
    assert_array_equal(scaled_intrinsics(camera(), (1920, 1080), (1920, 1080)), NUPLAN_K)
    assert_array_equal(
        scaled_intrinsics(camera(), (1920, 1080), (448, 252)), np.diag([448 / 1920, 252 / 1080, 1]) @ NUPLAN_K
    )


def test_smaller_images_project_to_the_same_place() -> None:
    points = np.random.default_rng(0).uniform((-3, -2, 4), (3, 2, 30), (50, 3))

    def share(K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        pixels = points @ K.T
        return np.asarray(pixels[:, :2] / pixels[:, 2:] / size)

    whole = share(scaled_intrinsics(camera(), (1920, 1080), (224, 126)), (224, 126))
    assert_allclose(share(scaled_intrinsics(camera(), (960, 540), (224, 126)), (224, 126)), whole, rtol=1e-12)
    assert_allclose(share(scaled_intrinsics(camera(), (960, 540), (960, 540)), (960, 540)), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("K", "calibrated", "image"),
    [
        (NUPLAN_K, None, (448, 448)),  # pressed, or cut
        (NUPLAN_K, (1920, 1080), (1920, 1024)),
        (intrinsics(480, 270), None, (240, 240)),
        (np.eye(3), None, (480, 270)),
    ],
)
def test_what_cannot_be_known_is_refused(
    K: np.ndarray, calibrated: tuple[int, int] | None, image: tuple[int, int]
) -> None:
    with pytest.raises(SampleError, match=r"somewhere/a.jpg: the image is .* and its calibration is for") as caught:
        scaled_intrinsics(camera(K, calibrated), image, image)
    assert caught.value.code == "bad_calibration"


def glance(size: tuple[int, int]) -> forecast.Glance:
    scene = synthetic_scene(size=(480, 270))
    header = JpegHeader(height=size[1], width=size[0], colorspace="YCbCr", subsampling="420")
    return forecast.Glance(scene, images={scene.camera(0, "CAM_F0").image: (b"", header)})


def test_it_is_said_once_before_the_work_begins() -> None:
    small = [glance((240, 135)) for i in range(3)]
    (told,) = forecast.calibration_notes(["CAM_F0"], small)
    assert told.startswith("images of CAM_F0 are 240 x 135, their calibration is for 480 x 270: the intrinsics")
    assert forecast.calibration_notes(["CAM_F0"], [glance((480, 270))]) == []
    cut = [glance((240, 240)) for i in range(3)]
    with pytest.raises(ConfigError, match=r"samples.views: .*the image is 240 x 240"):
        forecast.calibration_notes(["CAM_F0"], cut)


def test_the_samples_column_stores_them() -> None:
    scene = synthetic_scene(size=(480, 270))
    column = SamplesColumn(SamplesConfig(), num_history=scene.num_history, num_future=scene.num_future)
    members = column.members(scene, {"CAM_F0": StoredImage(b"", (240, 135), (120, 68))})
    stored = json.loads(members["json"])["cameras"]["cam_f0"]["intrinsics"]
    assert_allclose(stored[0][2], 60)
    assert_allclose(stored[1][2], 34)
    with pytest.raises(SampleError, match="the image is 240 x 240"):
        column.members(scene, {"CAM_F0": StoredImage(b"", (240, 240), (120, 120))})
