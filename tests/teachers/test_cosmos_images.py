"""Preprocessing: against Pillow, the crop, memory, range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from teachers.base import ImageRequest
from teachers.images import crop_box, fit, to_video
from teachers.testing import synthetic_image, synthetic_scene

SIZES = [(512, 288), (448, 256), (640, 352), (224, 128)]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("smooth", [True, False])
def test_within_one_level_of_pillow(size: tuple[int, int], smooth: bool) -> None:
    image = synthetic_image(synthetic_scene(), ImageRequest(0, "CAM_F0"), (960, 540)) if smooth else noise(960, 540)
    left, top, width, height = crop_box(960, 540, size)
    box = (left, top, left + width, top + height)
    want = np.asarray(Pillow.fromarray(image).crop(box).resize(size, Pillow.Resampling.BILINEAR))
    got = fit(image, size)
    assert got.shape == (size[1], size[0], 3)
    assert np.abs(got.astype(int) - want).max() <= 1


def test_enlarging_is_within_one_level_of_pillow_too() -> None:
    image = noise(160, 90)
    want = np.asarray(Pillow.fromarray(image).resize((512, 288), Pillow.Resampling.BILINEAR))
    assert np.abs(fit(image, (512, 288)).astype(int) - want).max() <= 1


@pytest.mark.parametrize(
    ("original", "size", "box"),
    [
        ((1920, 1080), (512, 288), (0, 0, 1920, 1080)),
        ((1920, 1080), (448, 256), (15, 0, 1890, 1080)),
        ((1920, 1080), (640, 352), (0, 12, 1920, 1056)),
        ((1600, 900), (512, 288), (0, 0, 1600, 900)),
        ((1920, 1200), (512, 288), (0, 60, 1920, 1080)),
    ],
)
def test_the_crop_is_the_largest_centred_box(
    original: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert crop_box(*original, size) == box


def test_a_constant_image_stays_constant() -> None:
    for level in (0, 1, 127, 254, 255):
        assert (fit(np.full((1080, 1920, 3), level, np.uint8), (512, 288)) == level).all()


def test_the_same_bits_with_one_thread_and_two() -> None:
    image, threads = noise(960, 540), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fit(image, (512, 288))
        torch.set_num_threads(2)
        assert np.array_equal(fit(image, (512, 288)), one)
    finally:
        torch.set_num_threads(threads)


def test_the_result_is_memory_of_its_own() -> None:
    image = noise(512, 288)
    result = fit(image, (512, 288))
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)
    assert result.flags.c_contiguous


def test_the_video_spans_minus_one_to_one() -> None:
    images_BTHW3 = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    video = to_video(images_BTHW3, torch.float32)
    assert tuple(video.shape) == (1, 3, 1, 16, 16)
    assert (float(video.min()), float(video.max())) == (-1.0, 1.0)
    assert float(video[0, 0, 0, 8, 0]) == pytest.approx(128 / 127.5 - 1, abs=1e-6)
