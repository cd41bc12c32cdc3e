"""VGGT's preprocessing against Pillow."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch

from shards_schema.errors import SampleError
from shards_schema.records import Image
from teachers.vggt.preprocess import fit, preprocess

Make = Callable[[int, int], Image]


def noise(height: int, width: int) -> Image:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(height: int, width: int) -> Image:
    y, x = np.mgrid[:height, :width]
    wave = 127.5 + 127.5 * np.sin(x / 50) * np.cos(y / 40)
    return np.stack((255 * x / (width - 1), 255 * y / (height - 1), wave), axis=-1).round().astype(np.uint8)


def edges(height: int, width: int) -> Image:
    y, x = np.mgrid[:height, :width]
    return np.repeat(((x // 13 + y // 7) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)


def by_pillow(image: Image, width: int, resized: int) -> Image:
    return np.asarray(PIL.Image.fromarray(image).resize((width, resized), PIL.Image.Resampling.BICUBIC))


@pytest.mark.parametrize("make", [noise, smooth, edges])
@pytest.mark.parametrize(("size", "target"), [((1080, 1920), 518), ((1080, 1920), 126), ((900, 1600), 518)])
def test_camera_sizes_equal_pillow_within_one(make: Make, size: tuple[int, int], target: int) -> None:
    image = make(*size)
    fitted = fit(*size, target)
    ours, theirs = preprocess(image, target), by_pillow(image, target, fitted.resized)
    difference = np.abs(ours.astype(int) - theirs)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert difference.max() <= 1
    assert difference.mean() < 0.02


@pytest.mark.parametrize("make", [noise, smooth, edges])
@pytest.mark.parametrize("size", [(270, 480), (360, 640)])
def test_sizes_near_the_target_equal_pillow_within_two(make: Make, size: tuple[int, int]) -> None:
    image = make(*size)
    difference = np.abs(preprocess(image, 518).astype(int) - by_pillow(image, 518, 294))
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-4
    assert difference.mean() < 0.02


@pytest.mark.parametrize(
    ("size", "target", "shape"),
    [
        ((1080, 1920), 518, (294, 518)),
        ((270, 480), 518, (294, 518)),
        ((1080, 1920), 252, (140, 252)),
        ((1080, 1920), 126, (70, 126)),
        ((1000, 1000), 518, (518, 518)),
        ((1000, 600), 518, (518, 518)),
    ],
)
def test_sizes(size: tuple[int, int], target: int, shape: tuple[int, int]) -> None:
    assert preprocess(noise(*size), target).shape == (*shape, 3)


def test_tall_images_are_cropped_around_the_centre() -> None:
    image = smooth(1000, 600)
    fitted = fit(1000, 600, 518)
    assert fitted == (518, 868, 518, 175)
    theirs = by_pillow(image, 518, 868)[175 : 175 + 518]
    assert np.abs(preprocess(image, 518).astype(int) - theirs).max() <= 2
    assert np.abs(preprocess(image, 518).astype(int) - theirs).mean() < 0.02


def test_an_image_of_the_right_size_is_left_alone() -> None:
    assert np.array_equal(preprocess(noise(294, 518), 518), noise(294, 518))


def test_many_threads_give_what_one_gives() -> None:
    threads = torch.get_num_threads()
    images = [np.roll(noise(270, 480), i, axis=1) for i in range(8)]
    alone = [preprocess(image, 252) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: preprocess(image, 252), images * 4))
    assert all(np.array_equal(together[i], alone[i % 8]) for i in range(32))
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("error")
def test_read_only_and_strided_images_are_taken() -> None:
    image = noise(270, 480)
    expected = preprocess(image, 252)
    image.flags.writeable = False
    assert np.array_equal(preprocess(image, 252), expected)
    assert np.array_equal(preprocess(image[:, ::-1], 252), preprocess(image[:, ::-1].copy(), 252))
    assert np.array_equal(image, noise(270, 480))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((1, 1000, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(image: Image) -> None:
    with pytest.raises(SampleError) as caught:
        preprocess(image, 518)
    assert caught.value.code == "image_shape"
