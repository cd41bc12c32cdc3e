"""One camera image as most networks want it: the centre at the target's aspect, resized, still uint8.

The resize is torch's antialiased bilinear on uint8, which computes in fixed point: the same bits for every
instruction set and thread count (its float twin differs between AVX levels), within one grey level of Pillow's
BILINEAR, and some six times faster. No global state of torch is read or set.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from shards_schema.records import Image

RULE = {"crop": "centre, to the aspect of size", "resize": "bilinear, antialiased, uint8 (torch interpolate)"}
"""The rule in words, for the records. Changing what `fit` does means changing this."""


def crop_box(width: int, height: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the largest centred box with the aspect of `size` (width, height), in pixels."""
    to_width, to_height = size
    if width * to_height > height * to_width:
        box_width, box_height = _rounded(height * to_width, to_height), height
    else:
        box_width, box_height = width, _rounded(width * to_height, to_width)
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def _rounded(numerator: int, denominator: int) -> int:
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def fit(image: Image, size: tuple[int, int]) -> Image:
    """`image` uint8 [H, W, 3] cropped and resized to uint8 [h, w, 3] for `size` (w, h); a new array."""
    left, top, width, height = crop_box(image.shape[1], image.shape[0], size)
    box = image[top : top + height, left : left + width]
    if not (box.flags.writeable and min(box.strides) > 0):  # torch takes neither read-only nor flipped memory
        box = box.copy()
    pixels_13HW = torch.from_numpy(box).permute(2, 0, 1).unsqueeze(0)
    resized = functional.interpolate(pixels_13HW, size=(size[1], size[0]), mode="bilinear", antialias=True)
    return np.array(resized[0].permute(1, 2, 0).numpy(), dtype=np.uint8, order="C", copy=True)


def to_video(images_BTHW3: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] as a video VAE's input [B, 3, T, H, W] in [-1, 1]."""
    video = images_BTHW3.permute(0, 4, 1, 2, 3).to(torch.float32).div_(127.5).sub_(1.0)
    return video.to(dtype).contiguous()
