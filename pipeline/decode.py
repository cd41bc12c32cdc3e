"""JPEG bytes to pixels, once, with a reason when it cannot be.

simplejpeg (libjpeg-turbo) gives the same pixels as Pillow in a third of the time. The header is read first, so that
an image that would unpack into gigabytes is refused before it does. EXIF orientation is ignored, as the devkit does.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from shards_schema.errors import SampleError
from shards_schema.records import Image

MAX_PIXELS = 64_000_000
"""A 1920x1080 camera has 2 million; more than this is a decompression bomb."""


def decode_jpeg(data: bytes, where: str) -> Image:
    """RGB pixels, uint8 [H, W, 3], of a JPEG.

    Raises:
        SampleError: codes ``image_empty``, ``image_not_jpeg``, ``image_too_large``, ``image_colorspace``,
            ``image_damaged`` (truncated or corrupt).
    """
    if not data:
        raise SampleError("image_empty", f"{where}: the file has 0 bytes")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if data[:2] == b"\xff\xd8":  # begins as a JPEG does: cut within its header
            raise SampleError("image_damaged", f"{where}: {len(data)} bytes, truncated or corrupt ({error})") from error
        raise SampleError("image_not_jpeg", f"{where}: no JPEG in {len(data)} bytes ({error})") from error
    if height * width > MAX_PIXELS:
        raise SampleError("image_too_large", f"{where}: {width}x{height} pixels, at most {MAX_PIXELS} are decoded")
    if colorspace in ("CMYK", "YCCK"):
        raise SampleError("image_colorspace", f"{where}: colour space {colorspace}, expected YCbCr, RGB or grey")
    try:
        image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise SampleError("image_damaged", f"{where}: {len(data)} bytes, truncated or corrupt ({error})") from error
    return image


def encode_jpeg(image: Image, quality: int) -> bytes:
    """A JPEG with 4:2:0 chroma; the same pixels give the same bytes for one version of libjpeg-turbo."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data
