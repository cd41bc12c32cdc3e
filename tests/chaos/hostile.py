"""Values that no honest log or document holds, put at random into one that is: what bytes alone would not get to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np


def laughs(levels: int = 40) -> list[Any]:
    """A list of 2^levels numbers in `levels` lists: nothing until somebody walks it."""
    value: list[Any] = [0.0, 1.0]
    for _ in range(levels):
        value = [value, value]
    return value


def deep(levels: int = 3000) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


JSON_VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 1 << 40,
    lambda: 1 << 62,
    lambda: 1 << 80,
    lambda: 1.5,
    lambda: 1e308,
    lambda: "",
    lambda: "../../../../etc/passwd",
    lambda: "/etc/passwd",
    lambda: "a/b",
    lambda: "<script>alert(1)</script>",
    lambda: "x" * 5000,
    lambda: "a\0b",
    list,
    dict,
    lambda: [[]],
    lambda: [0, 0],
    lambda: [-512, 512],
    lambda: [1 << 62, 1 << 62],
    lambda: {"a": {"b": 1}},
    lambda: deep(200),
)
"""Of a JSON document."""

LOG_VALUES: tuple[Callable[[], Any], ...] = (
    *JSON_VALUES,
    lambda: float("nan"),
    lambda: float("-inf"),
    lambda: "\ud800",
    lambda: b"bytes",
    lambda: laughs(),
    lambda: deep(),
    lambda: (),
    lambda: {1, 2},
    lambda: 1 << 5000,
    lambda: np.zeros(0),
    lambda: np.zeros((0, 7)),
    lambda: np.full((3, 3), np.nan),
    lambda: np.zeros((4, 4), np.float32),
    lambda: np.eye(3, dtype=">f8"),
    lambda: np.array("x"),
    lambda: np.array([b"\xff"]),
    lambda: np.float64("nan"),
    lambda: np.int8(3),
    lambda: np.array(5),
    lambda: np.ones((2, 2, 2, 2), bool),
    lambda: 3j,
)
"""Of a pickle, as far as `load_pickle` lets them through, and a few that it does not."""


def spoil(document: Any, rng: random.Random, values: tuple[Callable[[], Any], ...], changes: int) -> Any:
    """`document` with some of its places, at any depth, exchanged, deleted, renamed or doubled; changed in place."""
    for _ in range(changes):
        places = list(_places(document))
        if not places:
            return rng.choice(values)()
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(rng.randrange(len(holder) + 1), holder[key])
            case 1:
                holder[rng.choice(("x", "", "../x", "cam_f0"))] = holder.pop(key)
            case 2:
                other, at = rng.choice(places)
                if other is not holder and not isinstance(other[at], list | dict):
                    holder[key] = other[at]
            case _:
                holder[key] = rng.choice(values)()
    return document


def _places(value: Any, depth: int = 0) -> Any:
    """(container, key) of everything in nested lists and dicts, to a depth of eight, from long ones a few."""
    if depth > 8:
        return
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys[:60]:
        yield value, key
        yield from _places(value[key], depth + 1)
