"""Solids of coloured quads: houses, cars, people, trees, signals.

A quad is four points counter-clockwise as seen from outside. The quads of a solid are listed so that, of those that
face a camera at eye height, a later one is never behind an earlier one: a painter may draw them in that order. Solids
are built about their own origin (x forward) and placed by `placed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from shards_schema.poses import Float64

SUN = np.array([0.42, -0.36, 0.83]) / np.linalg.norm([0.42, -0.36, 0.83])
Colour = tuple[int, int, int]
GLASS: Colour = (46, 56, 68)
TYRE: Colour = (24, 24, 26)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Quads [K, 4, 3], their colours [K, 3] (0..255), which of them shine by themselves [K], and `detail` [K].

    `detail`: 0 is always drawn, 1 only from near by, 2 only from afar.
    """

    quads: Float64
    rgb: Float64
    shines: Float64
    detail: Float64


class Solid:
    """A mesh in the making."""

    def __init__(self) -> None:
        self._quads: list[Float64] = []
        self._rgb: list[Colour] = []
        self._shines: list[bool] = []
        self._detail: list[int] = []

    def quad(self, points: ArrayLike, colour: Colour, shines: bool = False, detail: int = 0) -> None:
        """One quad [4, 3]."""
        self._quads.append(np.asarray(points, dtype=np.float64))
        self._rgb.append(colour)
        self._shines.append(shines)
        self._detail.append(detail)

    def block(
        self, base: Float64, top: Float64, z0: float, z1: float, colour: Colour, roof: Colour | None = None
    ) -> Float64:
        """A block over a ring `base` [4, 2] (front left, rear left, rear right, front right) up to the ring `top`.

        Returns its sides [4, 4, 3]: left, rear, right, front.
        """
        low = np.concatenate((base, np.full((4, 1), z0)), axis=1)
        high = np.concatenate((top, np.full((4, 1), z1)), axis=1)
        sides = np.stack([np.stack((low[i], low[(i + 1) % 4], high[(i + 1) % 4], high[i])) for i in range(4)])
        if z0 > 1.7:
            self.quad(low[::-1], colour)
        for side in sides:
            self.quad(side, colour)
        self.quad(high, roof or colour)
        return sides

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        roof: Colour | None = None,
    ) -> Float64:
        """An upright box; returns its sides as `block` does."""
        ring = np.array([[x[1], y[1]], [x[0], y[1]], [x[0], y[0]], [x[1], y[0]]])
        return self.block(ring, ring, z[0], z[1], colour, roof)

    def panel(
        self,
        side: Float64,
        u: tuple[float, float],
        v: tuple[float, float],
        colour: Colour,
        shines: bool = False,
        detail: int = 0,
    ) -> None:
        """A part of a side, u along its lower edge and v upwards, both 0..1."""
        (u0, u1), (v0, v1) = u, v
        weights = [
            [(1 - q) * (1 - p), (1 - q) * p, q * p, q * (1 - p)] for p, q in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))
        ]
        self.quad(np.array(weights) @ side, colour, shines, detail)

    def mesh(self) -> Mesh:
        """What has been built."""
        return Mesh(
            np.stack(self._quads),
            np.array(self._rgb, dtype=np.float64),
            np.array(self._shines, dtype=np.float64),
            np.array(self._detail, dtype=np.float64),
        )


def _ring(length: float, width: float, x: float = 0.0) -> Float64:
    return np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2.0 + (x, 0.0)


@cache
def car(size: tuple[float, float, float], colour: Colour, braking: bool) -> Mesh:
    """A saloon: body, cabin, wheels, lamps."""
    (length, width, h), made = size, Solid()
    waist = 0.58 * h
    dark: Colour = (int(colour[0] * 0.55), int(colour[1] * 0.55), int(colour[2] * 0.55))
    made.box((-length / 2 + 0.15, length / 2 - 0.15), (-width / 2 + 0.12, width / 2 - 0.12), (0.12, 0.32), (22, 22, 24))
    sides = made.box((-length / 2, length / 2), (-width / 2, width / 2), (0.28, waist), colour)
    for side in (sides[0], sides[2]):
        made.panel(side, (0.02, 0.98), (0.0, 0.22), dark)
        made.panel(side, (0.49, 0.5), (0.25, 0.98), dark)
    made.panel(sides[3], (0.04, 0.22), (0.5, 0.8), (250, 246, 220), True)
    made.panel(sides[3], (0.78, 0.96), (0.5, 0.8), (250, 246, 220), True)
    made.panel(sides[3], (0.28, 0.72), (0.25, 0.6), (34, 34, 38))
    lamp: Colour = (255, 36, 24) if braking else (150, 18, 20)
    made.panel(sides[1], (0.03, 0.25), (0.5, 0.86), lamp, True)
    made.panel(sides[1], (0.75, 0.97), (0.5, 0.86), lamp, True)
    made.panel(sides[1], (0.37, 0.63), (0.3, 0.52), (226, 226, 216))
    _wheels(made, length, width, 0.33)
    cabin = made.block(
        _ring(0.64 * length, 0.94 * width, -0.05 * length),
        _ring(0.4 * length, 0.78 * width, -0.07 * length),
        waist,
        h,
        colour,
    )
    for number, side in enumerate(cabin):
        for u in ((0.06, 0.48), (0.52, 0.94)) if number % 2 == 0 else ((0.07, 0.93),):
            made.panel(side, u, (0.1, 0.88), GLASS)
    return made.mesh()


def _wheels(made: Solid, length: float, width: float, radius: float) -> None:
    angle = np.linspace(0.0, 2 * np.pi, 9)[:8] + np.pi / 8
    for x in (-0.31 * length, 0.31 * length):
        for side in (1.0, -1.0):
            u, z = x - side * radius * np.cos(angle), radius + radius * np.sin(angle)
            ring = np.stack((u, np.full(8, side * (width / 2 + 0.01)), z), axis=-1)
            for four in (ring[[0, 1, 2, 3]], ring[[3, 4, 7, 0]], ring[[4, 5, 6, 7]]):
                made.quad(four, TYRE)
            hub = (ring - ring.mean(0)) * 0.5 + ring.mean(0) + (0.0, side * 0.01, 0.0)
            made.quad(hub[[0, 2, 4, 6]], (128, 130, 134))


@cache
def lorry(size: tuple[float, float, float], colour: Colour, braking: bool, bus: bool) -> Mesh:
    """A van, lorry or bus: one tall box, with windows all along if it is a bus."""
    (length, width, h), made = size, Solid()
    made.box((-length / 2 + 0.2, length / 2 - 0.2), (-width / 2 + 0.15, width / 2 - 0.15), (0.15, 0.42), (22, 22, 24))
    sides = made.box((-length / 2, length / 2), (-width / 2, width / 2), (0.38, h), colour)
    for number in (0, 2):
        spans = [(i / 8 + 0.015, (i + 1) / 8 - 0.01) for i in range(8)] if bus else [(0.05, 0.17)]
        for a, b in spans:
            made.panel(sides[number], (a, b) if number == 0 else (1 - b, 1 - a), (0.5, 0.86), GLASS)
        made.panel(sides[number], (0.0, 1.0), (0.0, 0.12), (60, 60, 64))
    made.panel(sides[3], (0.06, 0.94), (0.48, 0.88), GLASS)
    made.panel(
        sides[1],
        (0.1, 0.9),
        (0.5, 0.9),
        GLASS if bus else (int(colour[0] * 0.8), int(colour[1] * 0.8), int(colour[2] * 0.8)),
    )
    lamp: Colour = (255, 36, 24) if braking else (150, 18, 20)
    for u in ((0.04, 0.16), (0.84, 0.96)):
        made.panel(sides[3], u, (0.12, 0.24), (250, 246, 220), True)
        made.panel(sides[1], u, (0.12, 0.28), lamp, True)
    _wheels(made, length, width, 0.42)
    return made.mesh()


@cache
def pedestrian(size: tuple[float, float, float], coat: Colour, step: int) -> Mesh:
    """Two legs (`step` -1, 0, 1: which one is in front), a coat, arms, a head."""
    (_, width, h), made = size, Solid()
    stride = 0.17 * step
    for side, x in ((-1, stride), (1, -stride)):
        y = (0.02, 0.17) if side > 0 else (-0.17, -0.02)
        made.box((x - 0.09, x + 0.09), y, (0.0, 0.48 * h), (44, 48, 66))
    made.box((-0.14, 0.14), (-width / 2 + 0.1, width / 2 - 0.1), (0.46 * h, 0.84 * h), coat)
    for side, x in ((-1, -stride), (1, stride)):
        y = (width / 2 - 0.11, width / 2) if side > 0 else (-width / 2, -width / 2 + 0.11)
        made.box(
            (x * 0.6 - 0.06, x * 0.6 + 0.06),
            y,
            (0.48 * h, 0.82 * h),
            (int(coat[0] * 0.8), int(coat[1] * 0.8), int(coat[2] * 0.8)),
        )
    made.box((-0.1, 0.12), (-0.09, 0.09), (0.85 * h, h), (214, 168, 136), (70, 48, 34))
    return made.mesh()


@cache
def cyclist(size: tuple[float, float, float], coat: Colour) -> Mesh:
    """A bicycle and who rides it."""
    (length, width, h), made = size, Solid()
    made.box((-length / 2, -length / 2 + 0.62), (-0.03, 0.03), (0.02, 0.64), TYRE)
    made.box((length / 2 - 0.62, length / 2), (-0.03, 0.03), (0.02, 0.64), TYRE)
    made.box((-0.4, 0.45), (-0.03, 0.03), (0.5, 0.62), (186, 40, 44))
    made.box((-0.15, 0.1), (-0.16, 0.16), (0.5, 0.95), (44, 48, 66))
    made.box((-0.25, 0.2), (-width / 2 + 0.08, width / 2 - 0.08), (0.92, 0.82 * h), coat)
    made.box((0.05, 0.27), (-0.1, 0.1), (0.84 * h, h), (240, 240, 236))
    return made.mesh()


@cache
def street_thing(kind: str, size: tuple[float, float, float], colour: Colour) -> Mesh:
    """A cone, a barrier, a roadworks sign, a bin."""
    (length, width, h), made = size, Solid()
    white: Colour = (240, 240, 236)
    if kind == "cone":
        made.box((-length / 2, length / 2), (-width / 2, width / 2), (0.0, 0.06), (40, 40, 42))
        made.block(_ring(0.7 * length, 0.7 * width), _ring(0.42 * length, 0.42 * width), 0.06, 0.42 * h, colour)
        made.block(_ring(0.42 * length, 0.42 * width), _ring(0.3 * length, 0.3 * width), 0.42 * h, 0.66 * h, white)
        made.block(_ring(0.3 * length, 0.3 * width), _ring(0.12 * length, 0.12 * width), 0.66 * h, h, colour)
    elif kind == "sign":
        made.box((-0.04, 0.04), (-0.04, 0.04), (0.0, 0.6), (120, 120, 124))
        sides = made.box((-length / 2, length / 2), (-0.05, 0.05), (0.6, h), colour)
        for side in (sides[0], sides[2]):
            made.panel(side, (0.35, 0.65), (0.2, 0.8), (30, 26, 20))
    else:
        sides = made.box((-length / 2, length / 2), (-width / 2, width / 2), (0.0, h), colour)
        if kind == "barrier":
            for side in sides:
                for i in range(3):
                    made.panel(side, ((2 * i + 0.2) / 6, (2 * i + 1.2) / 6), (0.35, 0.85), white)
    return made.mesh()


@cache
def house(length: float, depth: float, height: float, colour: Colour) -> Mesh:
    """Storeys of windows over a ground floor with doors; one band a storey from afar."""
    made = Solid()
    sides = made.box((-length / 2, length / 2), (-depth / 2, depth / 2), (0.0, height), colour, (112, 108, 106))
    trim: Colour = (int(colour[0] * 0.72), int(colour[1] * 0.72), int(colour[2] * 0.72))
    band: Colour = (int(colour[0] * 0.45 + 30), int(colour[1] * 0.45 + 36), int(colour[2] * 0.45 + 44))
    storeys = max(1, round((height - 1.0) / 3.2))
    for number, side in enumerate(sides):
        across = length if number % 2 == 0 else depth
        count = max(2, int(across / 3.0))
        made.panel(side, (0.0, 1.0), (0.955, 1.0), trim)
        for storey in range(storeys):
            low = (0.9 + 3.2 * storey) / height
            high = (2.5 + 3.2 * storey) / height
            if storey == 0:
                made.panel(side, (0.0, 1.0), (0.0, 3.1 / height), trim)
            made.panel(side, (0.06, 0.94), (low, high), band, detail=2)
            for i in range(count):
                lit = (i * 7 + storey * 5 + number * 3 + int(height)) % 6 == 0
                glass: Colour = (196, 182, 132) if lit else (62, 78, 96) if (i + storey) % 3 else (88, 108, 128)
                door = storey == 0 and (i + number) % 4 == 1
                across_u = ((i + 0.22) / count, (i + 0.78) / count)
                made.panel(side, across_u, (0.0 if door else low, high), (74, 52, 40) if door else glass, detail=1)
    return made.mesh()


@cache
def crown(radius: float, z0: float, z1: float, tone: int) -> Mesh:
    """The crown of a tree: a rough ball."""
    made = Solid()
    green: Colour = ((58, 104, 48), (74, 116, 46), (48, 92, 52))[tone]
    around, up = np.linspace(0.0, 2 * np.pi, 9), np.linspace(-0.42 * np.pi, 0.5 * np.pi, 5)
    bumps = 1.0 + 0.06 * np.sin(np.arange(45) * 2.399 + tone).reshape(5, 9)
    bumps[:, 8], bumps[4] = bumps[:, 0], 1.0
    r = radius * np.cos(up)[:, None] * bumps
    z = (z0 + z1) / 2 + (z1 - z0) / 2 * np.sin(up)[:, None] * np.ones((1, 9))
    p = np.stack((r * np.cos(around), r * np.sin(around), z), axis=-1)
    for j in range(4):
        for i in range(8):
            shade = 0.84 + 0.32 * ((i * 5 + j * 3 + tone) % 7) / 6
            colour: Colour = (int(green[0] * shade), int(green[1] * shade), int(green[2] * shade))
            made.quad(p[[j, j, j + 1, j + 1], [i, i + 1, i + 1, i]], colour)
    return made.mesh()


@cache
def post(x: tuple[float, float], half: float, z: tuple[float, float], colour: Colour) -> Mesh:
    """A post or an arm: a thin box from x[0] to x[1]."""
    made = Solid()
    made.box(x, (-half, half), z, colour)
    return made.mesh()


@cache
def signal_head(state: str) -> Mesh:
    """A three-lamp signal, 1.2 m tall from its own origin up, which faces +x."""
    made = Solid()
    sides = made.box((-0.16, 0.16), (-0.3, 0.3), (0.0, 1.25), (34, 36, 34))
    lamps: dict[str, Colour] = {"green": (40, 255, 120), "yellow": (255, 210, 40), "red": (255, 40, 30)}
    for place, (name, colour) in enumerate(lamps.items()):
        on = name == state
        dim: Colour = (int(colour[0] * 0.18), int(colour[1] * 0.18), int(colour[2] * 0.18))
        made.panel(sides[3], (0.16, 0.84), (0.04 + place / 3.15, 0.31 + place / 3.15), colour if on else dim, on)
    return made.mesh()


def placed(mesh: Mesh, x: float, y: float, heading: float, z: float = 0.0) -> tuple[Float64, Float64]:
    """Quads [K, 4, 3] in the town's frame, and their colours [K, 3] in its light (Lambert, with some sky)."""
    c, s = np.cos(heading), np.sin(heading)
    turn = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    quads = mesh.quads @ turn + (x, y, z)
    normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    light = 0.6 + 0.42 * np.maximum(normal @ SUN, 0.0) + 0.06 * normal[:, 2]
    return quads, mesh.rgb * np.where(mesh.shines > 0, 1.0, light)[:, None]
