"""Which images a camera's intrinsics are for, and what they are for the image that is there.

Images are made smaller to save disk, and the logs keep the calibration of the original. nuPlan's camera table states
the size of the original; OpenScene's pickles do not, and it is told by the principal point, which is near the middle of
the image (nuPlan's is 20 of 1,080 rows below it): the size of the image itself, or nuPlan's 1920 x 1080, where that is
within 5 % of it, else twice the principal point. An image of other proportions was cut, or pressed, and nobody can tell
which: that is refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shards_schema.errors import SampleError
from shards_schema.poses import Float64
from shards_schema.records import Camera

Size = tuple[int, int]
"""(width, height)."""

NUPLAN: Final[Size] = (1920, 1080)
_NEAR: Final = 0.05
_PROPORTIONS: Final = 0.02


def calibrated_size(camera: Camera, image: Size) -> Size:
    """The size of the images that the camera's intrinsics are for, which is `image` unless it cannot be.

    Raises:
        SampleError: code ``bad_calibration``: neither `image` nor its original in the same proportions.
    """
    size = camera.calibrated or _told(camera.intrinsics, image)
    stretch = image[0] * size[1] / (image[1] * size[0]) if min(size) > 0 else np.inf
    if abs(stretch - 1) > _PROPORTIONS:
        raise SampleError(
            "bad_calibration",
            f"{camera.image}: the image is {_text(image)} and its calibration is for {_text(size)}: whether it was "
            "cut or pressed cannot be known, so neither can its intrinsics; keep the proportions of the original",
        )
    return size


def scaled_intrinsics(camera: Camera, original: Size, stored: Size) -> Float64:
    """[3, 3] for the image as it is stored.

    Args:
        camera: whose calibration it is.
        original: size of the image that was read.
        stored: size that the whole of it was given.

    Raises:
        SampleError: see `calibrated_size`.
    """
    width, height = calibrated_size(camera, original)
    return np.diag([stored[0] / width, stored[1] / height, 1.0]) @ camera.intrinsics


def note(camera: Camera, image: Size) -> str | None:
    """What to say of a camera whose images are not those of its calibration; None where they are.

    Raises:
        SampleError: see `calibrated_size`.
    """
    if (size := calibrated_size(camera, image)) == image:
        return None
    return (
        f"images of {camera.channel} are {_text(image)}, their calibration is for {_text(size)}: the intrinsics that "
        "the samples column stores are scaled to its images"
    )


def _told(intrinsics: Float64, image: Size) -> Size:
    double = 2 * intrinsics[:2, 2]
    if float(np.abs(double - image).max()) < 1:
        return image
    for size in (NUPLAN, image):
        if float(np.abs(double / size - 1).max()) < _NEAR:
            return size
    return round(double[0]), round(double[1])


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
