"""JPEG bytes to pixels, once, with a reason when it cannot be.

simplejpeg (libjpeg-turbo) gives the same pixels as Pillow in a third of the time. The header is read first, so that
an image that would unpack into gigabytes, or take minutes, is refused before it does. What NAVSIM's devkit reads with
Pillow is read here with the same result: EXIF orientation is ignored, progressive files are as good as others. Where
the devkit would go on with something that is no picture of three channels, we do not: CMYK is refused. Grey, of which
it would make an array without channels, becomes three equal ones.

Not found: damage that is still a valid JPEG (a flipped bit within the entropy-coded data may be). A dataset that comes
with checksums should be checked by them before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import simplejpeg
from pydantic import Field

from shards_schema.errors import SampleError
from shards_schema.inputs.disguises import disguise
from shards_schema.records import Image

Side = Annotated[int, Field(ge=1, le=16_384)]
"""Pixels along a side of an image that is made."""

MAX_PIXELS = 64_000_000
"""A 1920x1080 camera has 2 million; more than this is a decompression bomb."""

MAX_SCAN_PIXELS = 10 * MAX_PIXELS
"""Pixels times scans: a progressive file of 200 kB can ask for hundreds of passes over all of its pixels."""
_SCAN = b"\xff\xda"
"""Start of scan: entropy-coded data never holds these two bytes (a 0xff there is followed by 0 or a restart)."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a JPEG says of itself.

    Attributes:
        height: pixels.
        width: pixels.
        colorspace: ``YCbCr``, ``RGB`` or ``Gray``.
        subsampling: of the chroma: ``420``, ``422``, ``444``, ...; ``Gray`` where there is none.
    """

    height: int
    width: int
    colorspace: str
    subsampling: str


def read_header(data: bytes, where: str) -> JpegHeader:
    """The header of a JPEG that may be decoded.

    Raises:
        SampleError: codes ``image_empty``, ``image_not_jpeg``, ``image_too_large``, ``image_colorspace``,
            ``image_damaged`` (cut within the header).
    """
    if not data:
        raise SampleError("image_empty", f"{where}: the file has 0 bytes")
    try:
        height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a colour space that simplejpeg has no name for
        if data[:2] == b"\xff\xd8":  # begins as a JPEG does: cut within its header
            raise _damaged(data, where, error) from error
        raise SampleError(
            "image_not_jpeg", f"{where}: no JPEG in {len(data)} bytes ({disguise(data) or error})"
        ) from error
    if height * width > MAX_PIXELS:
        raise SampleError("image_too_large", f"{where}: {width}x{height} pixels, at most {MAX_PIXELS} are decoded")
    if (scans := data.count(_SCAN)) * height * width > MAX_SCAN_PIXELS:
        raise SampleError(
            "image_too_large",
            f"{where}: {scans} scans of {width}x{height} pixels, {MAX_SCAN_PIXELS} in all are decoded",
        )
    if colorspace in ("CMYK", "YCCK"):
        raise SampleError("image_colorspace", f"{where}: colour space {colorspace}, expected YCbCr, RGB or grey")
    return JpegHeader(height, width, colorspace, subsampling)


def decode_jpeg(data: bytes, where: str) -> Image:
    """RGB pixels, uint8 [H, W, 3], of a JPEG.

    Raises:
        SampleError: as `read_header`; and ``image_damaged`` (truncated or corrupt).
    """
    read_header(data, where)
    try:
        image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except (ValueError, KeyError) as error:
        raise _damaged(data, where, error) from error
    return image


def _damaged(data: bytes, where: str, error: Exception) -> SampleError:
    return SampleError("image_damaged", f"{where}: {len(data)} bytes, truncated or corrupt ({error})")


def encode_jpeg(image: Image, quality: int) -> bytes:
    """A JPEG with 4:2:0 chroma; the same pixels give the same bytes for one version of libjpeg-turbo."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data
