"""What is trained on and what is held out: drives of towns that nothing else in the project drives through.

A drive is one clip of the front camera, at 2 Hz, as the Cosmos teacher sees it; and frames with the truth behind each
pixel, as the VGGT teacher sees them. Images go through the same JPEG and the same resize as a teacher's. Half of the
drives are filmed at the size of `configs/demo.yaml`, half at that of `configs/world.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from loky import ProcessPoolExecutor
from numpy.typing import NDArray

from shards_schema.poses import Float64
from shards_schema.records import Image
from synthetic import SyntheticConfig, drive_of, log_specs
from synthetic.geometry import rng_of
from synthetic.pixels import truth
from synthetic.render import Renderer
from teachers.images import fit
from teachers.vggt.preprocess import preprocess

TRAINED, HELD_OUT = 1_000_000, 2_000_000
"""Seeds of the first towns; each serves four drives, one a location."""
VIEWS = ("CAM_F0", "CAM_L0", "CAM_R0")
CLIP = 9
"""Frames of a clip: now and four seconds."""
RIG = (0, 4, 8)
"""Frames of a clip at which all views are filmed."""
WIDTH, HEIGHT = 252, 140
"""Of VGGT's images, in pixels."""
VIDEO = 256, 144
"""Of the clip's images, in pixels."""
_FILMED = ((480, 270), (256, 144))
_QUALITY = 90


@dataclass(frozen=True, slots=True, eq=False)
class Footage:
    """A drive, filmed.

    Attributes:
        video: uint8 [9, 144, 256, 3], front camera, 0.5 s apart.
        frames: (frame of the clip, view) of each of the F frames below.
        images: uint8 [F, 140, 252, 3].
        depth: float32 [F, 140, 252], metres along the optical axis; inf is sky.
        pose: float64 [F, 4, 4], camera -> town.
        intrinsics: float64 [3, 3], of all frames.
    """

    video: NDArray[np.uint8]
    frames: tuple[tuple[int, str], ...]
    images: NDArray[np.uint8]
    depth: NDArray[np.float32]
    pose: Float64
    intrinsics: Float64


def film(number: int, first: int) -> Footage:
    """Drive `number` of those whose towns' seeds begin at `first` (`TRAINED`, `HELD_OUT`)."""
    config = SyntheticConfig(seed=first + number // 4, logs=8, frames=40)
    spec = log_specs(config)[number % 4 + 4 * (number // 4 % 2)]
    width, height = _FILMED[(number + number // 4) % 2]
    drive = drive_of(config, spec)
    seen, behind = Renderer(drive, width, height), Renderer(drive, WIDTH, HEIGHT)
    start = float(rng_of(config.seed, spec.key, "clip").uniform(1.0, 14.0))
    video: list[Image] = []
    kept: list[tuple[tuple[int, str], Image, Any]] = []
    for step in range(CLIP):
        views = VIEWS if step in RIG else VIEWS[:1]
        t = start + 0.5 * step
        for view, image in seen.frame(t, views).items():
            jpeg = simplejpeg.encode_jpeg(image, quality=_QUALITY, colorspace="RGB", colorsubsampling="420")
            decoded = simplejpeg.decode_jpeg(jpeg)
            if view == VIEWS[0]:
                video.append(fit(decoded, VIDEO))
            kept.append(((step, view), preprocess(decoded, WIDTH), truth(behind, t, view)))
    keys, images, truths = zip(*kept, strict=True)
    return Footage(
        video=np.stack(video),
        frames=keys,
        images=np.stack(images),
        depth=np.stack([found.depth for found in truths]),
        pose=np.stack([found.pose for found in truths]),
        intrinsics=truths[0].intrinsics,
    )


def films(count: int, first: int, processes: int) -> Iterator[Footage]:
    """The first `count` drives of a kind, in order, whatever the number of processes."""
    if processes <= 1:
        yield from (film(number, first) for number in range(count))
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(film, range(count), [first] * count)


def medians(footage: Sequence[Footage]) -> dict[str, NDArray[np.float32]]:
    """Each pixel's median depth over the rig's frames, by view: float32 [140, 252]; sky counts, as the farthest."""
    return {
        view: np.median([drive.depth[drive.frames.index((step, view))] for drive in footage for step in RIG], axis=0)
        for view in VIEWS
    }
