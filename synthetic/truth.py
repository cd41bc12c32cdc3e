"""What the town knows of each thing in each image, and no log says: its kind, its colour, and how much of it is hidden.

Hidden is told by the painter itself: each actor's pixels are counted once in the whole picture and once as if it stood
alone. Things that nobody annotates (houses, trees, lamps) hide too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from pipeline.stores.disk import wrap_read_errors
from shards_schema.errors import DatasetError
from shards_schema.inputs import documents
from shards_schema.poses import Float64
from synthetic import MARKER
from synthetic.config import GENERATOR, SyntheticConfig
from synthetic.logs import LogSpec, drive_of, frame_tokens, log_specs, timestamps, track_token
from synthetic.painter import SUPER, View
from synthetic.render import Renderer
from synthetic.scenery import Actor

KINDS = {"car": "car", "van": "van", "truck": "lorry", "bus": "bus"}
"""Kind in the town -> word; others are called by their class."""
COLOURS = {
    "red": ((178, 32, 36), (186, 40, 40), (176, 48, 52)),
    "blue": ((28, 62, 128), (40, 76, 140), (40, 70, 120)),
    "white": ((214, 216, 218), (222, 224, 226), (210, 210, 205)),
    "black": ((42, 44, 48), (58, 60, 66), (50, 48, 56)),
    "grey": ((128, 132, 138), (140, 144, 148)),
    "yellow": ((226, 184, 44), (232, 190, 60)),
    "green": ((34, 96, 74), (60, 110, 70)),
    "brown": ((120, 70, 40),),
    "orange": ((200, 110, 50),),
}
"""Name -> the paints and coats that everybody would call so; the others have none."""
_NAMES = {rgb: name for name, paints in COLOURS.items() for rgb in paints}


@dataclass(frozen=True)
class Shown:
    """An actor in an image.

    Attributes:
        token: of the frame.
        channel: of the camera.
        track: its token in the log.
        kind: a word for what it is; None: its class says all.
        colour: a name; None where it has none that is plain.
        pixels: that it would cover if it stood alone, in an image of the config's size.
        hidden: the share of them that others cover, 0..1.
    """

    token: str
    channel: str
    track: str
    kind: str | None
    colour: str | None
    pixels: float
    hidden: float


def config_of(root: Path) -> SyntheticConfig:
    """The config of a generated folder.

    Raises:
        MissingFileError, StoreError: it has no marker, or that cannot be read.
        DatasetError: it is of another version of the generator.
    """
    path = root / MARKER
    with wrap_read_errors(str(path)):
        marker = documents.parse_json(documents.read(path, documents.JSON_BYTES))
    config = dict(marker.get("config", {}))
    if config.pop("generator", None) != GENERATOR:
        raise DatasetError(f"{path}: is of another generator than {GENERATOR!r}, which cannot tell what it painted")
    return SyntheticConfig.model_validate(config)


def shown(config: SyntheticConfig, tokens: Collection[str], channels: Collection[str]) -> Iterator[Shown]:
    """Every actor in the images of some frames, as far as a pixel of it would be in the image."""
    for spec in log_specs(config):
        frames = zip(frame_tokens(config, spec), timestamps(config, spec), strict=True)
        wanted = [(token, (stamp - spec.start) / 1e6) for token, stamp in frames if token in tokens]
        if wanted:
            renderer = Renderer(drive_of(config, spec), config.width, config.height)
            for token, t in wanted:
                yield from _of_frame(config, spec, renderer, token, t, channels)


def _of_frame(
    config: SyntheticConfig, spec: LogSpec, renderer: Renderer, token: str, t: float, channels: Collection[str]
) -> Iterator[Shown]:
    scene, actors = renderer.scene(t)
    for channel in channels:
        view = renderer.view(t, channel)
        use = scene.facing(view)
        owner, quads = scene.owner[use], scene.quads[use]
        seen = np.bincount(_numbers(view, quads, owner + 1), minlength=len(scene.box) + 1)
        for number in np.unique(owner).tolist():
            actor = actors.get(number)
            if actor is None:
                continue
            alone = _alone(view, quads[owner == number])
            if alone:
                yield Shown(
                    token=token,
                    channel=channel,
                    track=track_token(config, spec, actor),
                    kind=KINDS.get(actor.kind),
                    colour=_colour(actor),
                    pixels=alone / SUPER**2,
                    hidden=1.0 - int(seen[number + 1]) / alone,
                )


def _numbers(view: View, quads: Float64, numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The number of the quad that is seen in each pixel of the painter's canvas, 0 where there is none."""
    canvas = _canvas(view, "RGBX")
    inks = np.stack((numbers & 255, numbers >> 8, np.zeros_like(numbers)), axis=-1).astype(np.float64)
    view.fill(ImageDraw.Draw(canvas), quads, inks, 0)
    pixels = np.asarray(canvas)
    return np.asarray(pixels[..., 0] | pixels[..., 1].astype(np.uint16) << 8).reshape(-1)


def _alone(view: View, quads: Float64) -> int:
    """How many pixels of the canvas quads cover by themselves."""
    canvas = _canvas(view, "L")
    view.fill(ImageDraw.Draw(canvas), quads, None, 255)
    return int(np.count_nonzero(np.asarray(canvas)))


def _canvas(view: View, mode: str) -> Pillow.Image:
    return Pillow.new(mode, (view.width * SUPER, view.height * SUPER))


def _colour(actor: Actor) -> str | None:
    return _NAMES.get(actor.colour) if actor.name in ("vehicle", "pedestrian", "bicycle") else None
