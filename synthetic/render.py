"""What the cameras see, at any time of a drive.

    sky, hills -> ground layers -> solids, far to near -> reduce to size -> shade the ground (grain, shadows, haze)

The fourth channel of the canvas holds how much of a pixel is ground; grain and haze of the ground are inverse-mapped
per pixel from the map, so that they stay in place while the camera moves. The same inputs give the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from shards_schema.poses import Float64
from shards_schema.records import CHANNELS, Image
from synthetic import mesh as solids
from synthetic.drive import Drive
from synthetic.geometry import rng_of
from synthetic.ground import GRASS, ground
from synthetic.mesh import Mesh
from synthetic.painter import HAZE, HAZE_RANGE, SUPER, Scene, Thing, View, colours, thing
from synthetic.rig import ego_position, ego_rotation, pixel_rays, rig
from synthetic.scenery import Actor, lots, uprights
from synthetic.world import LANE_WIDTH, Town

SIGHT = 190.0
_SHADOW = 0.60


def actor_mesh(actor: Actor) -> Mesh:
    """The solid of an annotated actor."""
    if actor.kind == "car":
        return solids.car(actor.size, actor.colour, _brakes(actor))
    if actor.kind in ("van", "truck", "bus"):
        return solids.lorry(actor.size, actor.colour, _brakes(actor), actor.kind == "bus")
    if actor.kind == "pedestrian":
        pace = float(np.hypot(actor.vx, actor.vy))
        walked = actor.x * np.cos(actor.heading) + actor.y * np.sin(actor.heading)
        return solids.pedestrian(actor.size, actor.colour, int(walked / 0.6 % 3) - 1 if pace > 0.2 else 0)
    if actor.kind == "cyclist":
        return solids.cyclist(actor.size, actor.colour)
    return solids.street_thing(actor.kind, actor.size, actor.colour)


def _brakes(actor: Actor) -> bool:
    parked = actor.track.startswith(("parked", "lot"))
    return not parked and (actor.a < -0.4 or float(np.hypot(actor.vx, actor.vy)) < 0.2)


@dataclass(frozen=True, eq=False)
class Stage:
    """One moment of a drive.

    Attributes:
        scene: all solids; those of the actors are its things `first`, `first` + 1, ...
        actors: in range.
        first: see `scene`.
        rotation: [3, 3] ego -> town.
        position: [3] of the ego's origin in the town's frame [m].
    """

    scene: Scene
    actors: list[Actor]
    first: int
    rotation: Float64
    position: Float64


class Renderer:
    """Renders a drive's cameras at one image size.

    Args:
        drive: whose town, traffic and lights are seen.
        width, height: of the images in pixels.
    """

    def __init__(self, drive: Drive, width: int, height: int) -> None:
        self.drive, self.width, self.height = drive, width, height
        self.cameras = rig(width, height)
        self._backdrop, self._backdrop_rgb = _backdrop(drive.town)
        self._sky = _sky(width * SUPER, height * SUPER)
        rng = rng_of("grain")
        self._fine = rng.normal(0.0, 1.0, (512, 512)).astype(np.float32)
        coarse = rng.normal(0.0, 1.0, (256, 256))
        coarse = (coarse + np.roll(coarse, 1, 0) + np.roll(coarse, 1, 1) + np.roll(coarse, (1, 1), (0, 1))) / 2.0
        self._coarse = coarse.astype(np.float32)
        self._rays = {
            name: (pixel_rays(cam.intrinsics, width, height) @ cam.rotation.T).astype(np.float32)
            for name, cam in self.cameras.items()
        }

    def frame(self, t: float, channels: Sequence[str] = CHANNELS) -> dict[str, Image]:
        """The images of some cameras at time `t` [s]: channel -> uint8 [height, width, 3] RGB."""
        stage = self.stage(t)
        quads, rgb = ground(self.drive.town)
        at = np.hypot(*(quads[..., :2].mean(1) - stage.position[:2]).T) < SIGHT
        paint, inks = quads[at], colours(rgb[at], 255)
        return {name: self._image(name, stage, paint, inks) for name in channels}

    def stage(self, t: float) -> Stage:
        """Who stands where at time `t` [s]."""
        ego = self.drive.ego(t)
        rotation, position = ego_rotation(ego), ego_position(ego)
        still, middles = _still_things(self.drive.town)
        close = np.hypot(*(middles - position[:2]).T) < SIGHT
        actors = [a for a in self.drive.actors(t) if np.hypot(a.x - ego.x, a.y - ego.y) < SIGHT]
        things = [thing(a.name, actor_mesh(a), a.x, a.y, a.heading) for a in actors]
        things = [*(still[i] for i in np.nonzero(close)[0]), *things, *self._signals(t, position)]
        return Stage(Scene(things, position), actors, int(close.sum()), rotation, position)

    def view(self, channel: str, stage: Stage) -> View:
        """A camera at the time of `stage`."""
        cam = self.cameras[channel]
        eye = stage.position + stage.rotation @ cam.translation
        return View(stage.rotation @ cam.rotation, eye, cam.intrinsics, self.width, self.height)

    def _signals(self, t: float, position: Float64) -> list[Thing]:
        """The signal heads, with the lamps that are lit at `t`."""
        made: list[Thing] = []
        for up in uprights(self.drive.town):
            if up.kind == "signal" and np.hypot(up.x - position[0], up.y - position[1]) < 130.0:
                head = solids.signal_head(self.drive.lights.state(up.node, up.leg, t))
                if up.reach == 0.0:
                    made.append(thing("signal", head, up.x, up.y, up.heading, up.height - 0.75))
                    continue
                # Over the middle of each lane: the driver's left is the heading's right.
                for back in np.arange(LANE_WIDTH / 2, up.reach, LANE_WIDTH) + 1.0:
                    x, y = up.x + np.sin(up.heading) * back, up.y - np.cos(up.heading) * back
                    made.append(thing("signal", head, float(x), float(y), up.heading, up.height - 1.45))
        return made

    def _image(self, name: str, stage: Stage, paint: Float64, inks: NDArray[np.int64]) -> Image:
        scene, view = stage.scene, self.view(name, stage)
        eye = view.eye
        canvas = self._sky.copy()
        draw = ImageDraw.Draw(canvas)
        view.fill(draw, self._backdrop + np.array([eye[0], eye[1], 0.0]), colours(self._backdrop_rgb, 0))
        view.fill(draw, view.plain(), colours(np.array([GRASS]), 255))
        view.fill(draw, paint, inks)
        shade = Pillow.new("L", canvas.size)
        view.fill(ImageDraw.Draw(shade), scene.shadows, np.full(len(scene.shadows), 255))
        painted = scene.painted(view)
        view.fill(draw, scene.quads[painted], colours(scene.hazed(painted, eye), 0))
        rgbx = np.asarray(canvas.reduce(SUPER)).astype(np.float32)
        dark = np.asarray(shade.reduce(SUPER)).astype(np.float32)
        return self._finish(name, rgbx, dark, stage.rotation, eye)

    def _finish(
        self, name: str, rgbx: NDArray[np.float32], dark: NDArray[np.float32], rotation: Float64, eye: Float64
    ) -> Image:
        """Grain, shadows and haze where the ground is seen, inverse-mapped from the pixel to the map."""
        rows = np.nonzero(rgbx[..., 3].any(axis=1))[0]
        rgb = rgbx[..., :3]
        if len(rows):
            band = slice(int(rows[0]), int(rows[-1]) + 1)
            rays = self._rays[name][band] @ rotation.T.astype(np.float32)
            reach = np.float32(eye[2]) / np.maximum(-rays[..., 2], np.float32(1e-4))
            reach = np.minimum(reach, np.float32(2000.0))
            x, y = (np.asarray(rays[..., i] * reach, dtype=np.float32) for i in (0, 1))
            fine = self._fine[_cell(x, eye[0], 14.0), _cell(y, eye[1], 14.0)]
            coarse = self._coarse[_cell(x, eye[0], 1.6) & 255, _cell(y, eye[1], 1.6) & 255]
            grain = 1.0 + 0.055 * fine * np.exp(-reach / 11.0) + 0.028 * coarse * np.exp(-reach / 70.0)
            light = grain * (1.0 - np.float32((1.0 - _SHADOW) / 255.0) * dark[band])
            share = rgbx[band, :, 3] / np.float32(255.0)
            haze = (1.0 - np.exp(-reach / np.float32(HAZE_RANGE))) * share
            gain = (1.0 + share * (light - 1.0)) * (1.0 - haze)
            rgb[band] = rgb[band] * gain[..., None] + haze[..., None] * HAZE.astype(np.float32)
        return np.ascontiguousarray(np.clip(rgb + 0.5, 0.0, 255.0).astype(np.uint8))


def _cell(offset: NDArray[np.float32], origin: float, per_metre: float) -> NDArray[np.int32]:
    """Index of the grain's cell; the origin is reduced first, so that float32 holds the rest."""
    base = np.float32(origin * per_metre % 512.0)
    return np.asarray(np.floor(offset * np.float32(per_metre) + base).astype(np.int32) & 511, dtype=np.int32)


@cache
def _still_things(town: Town) -> tuple[list[Thing], Float64]:
    """Houses, trees, lamps and the posts of signals, and [N, 2] the middle of each."""
    made: list[Thing] = []
    for lot in lots(town):
        if lot.kind == "house":
            made.append(
                thing(
                    "building", solids.house(lot.length, lot.depth, lot.height, lot.colour), lot.x, lot.y, lot.heading
                )
            )
    grey = (92, 94, 98)
    for number, up in enumerate(uprights(town)):
        x, y, h = up.x, up.y, up.heading
        if up.kind == "tree":
            made.append(
                thing("vegetation", solids.post((-0.14, 0.14), 0.14, (0.0, 0.36 * up.height), (92, 70, 52)), x, y, h)
            )
            made.append(
                thing("vegetation", solids.crown(0.27 * up.height, 0.36 * up.height, up.height, number % 3), x, y, h)
            )
        elif up.kind == "lamp":
            made.append(thing("pole", solids.post((-0.07, 0.07), 0.07, (0.0, up.height), grey), x, y, h))
            made.append(
                thing("pole", solids.post((0.08, up.reach), 0.05, (up.height - 0.2, up.height - 0.1), grey), x, y, h)
            )
        elif up.reach == 0.0:
            made.append(thing("pole", solids.post((-0.07, 0.07), 0.07, (0.0, up.height - 0.76), grey), x, y, h))
        else:
            made.append(thing("pole", solids.post((-0.1, 0.1), 0.1, (0.0, up.height), grey), x, y, h))
            arm = solids.post((0.11, up.reach), 0.06, (up.height - 0.19, up.height - 0.07), grey)
            made.append(thing("pole", arm, x, y, h - np.pi / 2))
    return made, np.array([t.box[:2] for t in made])


def _sky(width: int, height: int) -> Pillow.Image:
    """Blue above, pale at the horizon (which is near 0.52 of the height for all cameras)."""
    up = np.clip(1.0 - np.arange(height) / (0.52 * height), 0.0, 1.0)[:, None]
    rows = HAZE * (1.0 - up) ** 1.6 + np.array([92.0, 146.0, 208.0]) * (1.0 - (1.0 - up) ** 1.6)
    pixels = np.zeros((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = rows[:, None].astype(np.uint8)
    return Pillow.frombytes("RGBX", (width, height), pixels.tobytes())


def _backdrop(town: Town) -> tuple[Float64, Float64]:
    """Hills and clouds on a far cylinder around the eye: quads [K, 4, 3] and colours [K, 3]."""
    rng = rng_of("backdrop", town.seed, town.location)
    radius, quads, rgb = 2500.0, [], []
    for _ in range(16):
        azimuth, up = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.1, 0.3))
        for _ in range(5):
            a, e = azimuth + float(rng.normal(0, 0.07)), up + float(rng.normal(0, 0.008))
            half, tall = float(rng.uniform(0.04, 0.11)), float(rng.uniform(0.007, 0.02))
            t = np.linspace(0.0, 2 * np.pi, 13)[:12]
            ring = np.stack((np.cos(a + half * np.cos(t)), np.sin(a + half * np.cos(t)), e + tall * np.sin(t)), axis=-1)
            for i in range(0, 12, 2):
                quads.append(np.stack((ring[0], ring[i], ring[i + 1], ring[(i + 2) % 12])) * radius)
                rgb.append((226, 232, 238))
    for layer, (tall, colour) in enumerate(((0.075, (166, 182, 198)), (0.042, (146, 162, 160)))):
        azimuths = np.linspace(0.0, 2 * np.pi, 97)
        phases = rng.uniform(0, 6.28, 5)
        ridge = tall * (0.55 + 0.16 * sum(np.sin((k + 2 + layer) * (k + 1) * azimuths + phases[k]) for k in range(5)))
        top = np.stack((np.cos(azimuths), np.sin(azimuths), np.maximum(ridge, 0.01)), axis=-1) * radius
        base = top * (1.0, 1.0, 0.0)
        quads += list(np.stack((base[:-1], base[1:], top[1:], top[:-1]), axis=1))
        rgb += [colour] * 96
    return np.stack(quads), np.array(rgb, dtype=np.float64)
