"""The truth behind each pixel: depth, class and instance, and how much of each object can be seen.

The painter's order is kept and each quad painted as a number; then the ray of each pixel is intersected with the
plane of the quad that it sees. So depth is exact but at edges, where the painter says whose
a pixel is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from shards_schema.poses import Float64
from synthetic.painter import NEAR, SUPER, View
from synthetic.render import Renderer
from synthetic.rig import pixel_rays
from synthetic.scenery import Actor

CLASSES = (
    "sky", "ground", "building", "vegetation", "pole", "signal",
    "vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object",
)  # fmt: skip
"""Classes, by number; from "vehicle" on they are nuPlan's, of annotated boxes."""
WORDS = {"car": "car", "van": "van", "truck": "lorry", "bus": "bus"}
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
_GROUND = 1
_SOLID = 2
"""Numbers that are painted: 0 is the sky with its hills, 1 the ground, then the quads of the solids in their order."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An annotated object in one image.

    Attributes:
        actor: it.
        pixels: in which it is seen.
        alone: pixels in which it would be seen if it stood alone, the image's border aside.
        share: how much of `alone` is seen, 0..1.
    """

    actor: Actor
    pixels: int
    alone: float
    share: float

    @property
    def kind(self) -> str | None:
        """A word for what it is; None: its class says all."""
        return WORDS.get(self.actor.kind)

    @property
    def colour(self) -> str | None:
        """A name; None where it has none that is plain."""
        return _NAMES.get(self.actor.colour) if self.actor.name in ("vehicle", "pedestrian", "bicycle") else None


@dataclass(frozen=True, eq=False)
class Truth:
    """What one camera sees at one time.

    Attributes:
        depth: float32 [h, w], metres along the optical axis to what the pixel's centre sees; inf is sky.
        kind: uint8 [h, w], of `CLASSES`.
        instance: int16 [h, w], which of `objects`; -1 where no annotated box is seen.
        objects: those that would be seen if they were alone; some have no pixel.
        pose: float64 [4, 4], camera (x right, y down, z forward) -> town.
        intrinsics: float64 [3, 3].
    """

    depth: NDArray[np.float32]
    kind: NDArray[np.uint8]
    instance: NDArray[np.int16]
    objects: tuple[Seen, ...]
    pose: Float64
    intrinsics: Float64


def truth(renderer: Renderer, t: float, channel: str) -> Truth:
    """The truth behind `renderer.frame(t)[channel]`."""
    stage = renderer.stage(t)
    view, scene = renderer.view(channel, stage), stage.scene
    canvas = Pillow.new("I", (view.width * SUPER, view.height * SUPER))
    draw = ImageDraw.Draw(canvas)
    view.fill(draw, view.plain(), np.array([_GROUND]))
    painted = scene.painted(view)
    view.fill(draw, scene.quads[painted], np.arange(_SOLID, _SOLID + len(painted)))
    whole = np.asarray(canvas)
    number = whole[::SUPER, ::SUPER].astype(np.int64)  # a point of each pixel, a quarter of a pixel from its centre
    owner = scene.owner[painted]
    kinds = np.array([CLASSES.index(kind) for kind in scene.kinds], np.uint8)
    kind = np.concatenate((np.array([0, 1], np.uint8), kinds[owner]))[number]
    actor = owner - stage.first
    actor[(actor < 0) | (actor >= len(stage.actors))] = -1
    whose = np.concatenate((np.full(_SOLID, -1), actor))
    objects, numbers = _objects(view, scene.quads[painted], actor, stage.actors, whose[whole])
    instance = numbers[whose[number]]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = view.turn, view.eye
    return Truth(_depth(view, scene.quads[painted], number), kind, instance, objects, pose, view.k)


def _depth(view: View, quads: Float64, number: NDArray[np.int64]) -> NDArray[np.float32]:
    """Where each pixel's ray meets the plane of its quad, no nearer and no farther than the quad's corners."""
    rays = pixel_rays(view.k, view.width, view.height)
    local = view.local(quads)
    normal = np.cross(local[:, 2] - local[:, 0], local[:, 3] - local[:, 1])
    ground = view.turn[2]  # the town's z axis in the camera's frame
    normal = np.concatenate((np.zeros((1, 3)), ground[None], normal))
    offset = np.concatenate(([0.0], [-view.eye[2]], (normal[_SOLID:] * local.mean(1)).sum(1)))
    z = local[..., 2]
    low = np.concatenate(([np.inf], [NEAR], np.maximum(z.min(1), NEAR)))
    high = np.concatenate(([np.inf], [3e3], np.maximum(z.max(1), NEAR)))
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = offset[number] / (normal[number] * rays).sum(-1)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.inf)
    return np.clip(depth, low[number], high[number]).astype(np.float32)


def _objects(
    view: View, quads: Float64, actor: NDArray[np.int64], actors: list[Actor], seen: NDArray[np.int64]
) -> tuple[tuple[Seen, ...], NDArray[np.int16]]:
    """The actors of an image, and the number of each of `actors` among them, -1 (also at the end) where it is not.

    Args:
        view: the camera.
        quads: [K, 4, 3].
        actor: [K] whose quad it is.
        actors: all of them.
        seen: [H, W] who is seen on the enlarged canvas.
    """
    counts = np.bincount(seen[seen >= 0], minlength=len(actors))
    sampled = seen[::SUPER, ::SUPER]
    pixels = np.bincount(sampled[sampled >= 0], minlength=len(actors))
    objects: list[Seen] = []
    numbers = np.full(len(actors) + 1, -1, np.int16)
    for i in np.unique(actor[actor >= 0]).tolist():
        canvas = Pillow.new("L", (view.width * SUPER, view.height * SUPER))
        own = quads[actor == i]
        view.fill(ImageDraw.Draw(canvas), own, np.full(len(own), 1))
        alone = int(np.count_nonzero(np.asarray(canvas)))
        if alone:
            numbers[i] = len(objects)
            objects.append(Seen(actors[i], int(pixels[i]), alone / SUPER**2, int(counts[i]) / alone))
    return tuple(objects), numbers
