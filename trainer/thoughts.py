"""Thinking in text: a chain of facts before the answer, written of a scene's labels to learn from.

    straight, 7 m/s. red light 18 m ahead. vehicle 12 m ahead at 3 m/s. pedestrian 9 m ahead 4 m left at 1 m/s.

Command and speed of the ego, the nearest red light on its route, and the nearest road users ahead of it: all of now,
none of what comes. A policy writes it itself (`Student.sample`); the labels only say what it should have written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from shards_schema.records import COMMANDS

LENGTH = 64
"""Pieces that a thought of a tiny student has at most, its end among them: as many as `WIDEST` has."""
_USERS = ("vehicle", "pedestrian", "bicycle")
_TOLD = 3
_AROUND_M, _ASIDE_M = 50.0, 8.0
_LIGHT_M = 60.0
_LIGHTS = ("v2_light_active", "v2_light_xy", "v2_light_rings", "v2_light_polygons")
WIDEST = "straight, 33 m/s. red light 55 m ahead. " + " ".join(["vehicle 33 m ahead 33 m left at 33 m/s."] * _TOLD)
"""The longest thought."""
PHRASES = (
    WIDEST,
    *COMMANDS,
    *(f" {user} right, at {digit}{digit} m" for user, digit in zip((*_USERS, *_USERS[:1] * 7), range(10), strict=True)),
    " no red light. light unknown. nobody ahead. others unknown.",
)
"""Texts with every piece that a thought can have: what a tiny student's words are made of."""


class Thoughts:
    """Facts of the scenes of a dataset.

    Args:
        dataset: open with `samples`, and with its pdm column where it has one: that alone knows which lights are on the
            route.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.lights = next((c for c in dataset.columns if {*_LIGHTS} <= dataset.specs(c).keys()), None)
        self._known = frozenset(dataset.tokens(self.lights) if self.lights else ())

    def __call__(self, document: Mapping[str, Any]) -> str:
        """The thought of a scene, by its ``<token>.json``; what its labels do not tell is called unknown."""
        command, speed = document["ego"]["command"], math.hypot(*document["ego"]["velocity"])
        return " ".join([f"{command}, {speed:.0f} m/s.", self._light(document["token"]), *_others(document)])

    def _light(self, token: str) -> str:
        """The nearest area of the route's lane connectors that is red now."""
        if token not in self._known or self.lights is None:
            return "light unknown."
        found = self._dataset.read(token, {self.lights: _LIGHTS})[self.lights]
        active, xy, rings, polygons = (np.asarray(found[name]) for name in _LIGHTS)
        areas = [xy[rings[polygons[i]] : rings[polygons[i + 1]]] for i in np.flatnonzero(active[:, 0])]
        away = [float(np.hypot(*area.T).min()) for area in areas if area[:, 0].max() > 0]
        nearest = min(away, default=math.inf)
        return f"red light {nearest:.0f} m ahead." if nearest < _LIGHT_M else "no red light."


def _others(document: Mapping[str, Any]) -> list[str]:
    """The nearest road users ahead of the rear axle, not far from the line on which it stands."""
    labels = document["annotations"]
    if labels is None:
        return ["others unknown."]
    found = []
    for (x, y, *_), name, velocity in zip(labels["boxes"], labels["names"], labels["velocity"], strict=True):
        if name in _USERS and x > 0 and abs(y) < _ASIDE_M and math.hypot(x, y) < _AROUND_M:
            aside = f" {abs(y):.0f} m {'left' if y > 0 else 'right'}" if round(abs(y)) else ""
            fast = "" if None in velocity[:2] else f" at {min(math.hypot(*velocity[:2]), 99):.0f} m/s"
            found.append((math.hypot(x, y), f"{name} {x:.0f} m ahead{aside}{fast}."))
    return [text for _, text in sorted(found)[:_TOLD]] or ["nobody ahead."]


def facts_said(said: str, true: str) -> tuple[int, int]:
    """Of the facts of a true thought how many were said, word for word, and how many there are."""
    told = {fact.strip() for fact in said.split(".")}
    facts = [fact.strip() for fact in true.split(".") if fact.strip()]
    return sum(fact in told for fact in facts), len(facts)
