"""Which scene is the frame before another, and extended comfort between the two answers of one driver.

NAVSIM's rule (``infer_start_adjacent_mapping``): scenes of a log in the order of time, among those that were scored;
two neighbours at most 0.55 s apart are a pair, and the later one gets the term.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scoring import extended_comfort
from scoring.metrics.extended_comfort import MAX_INTERVAL_S

Frames = Mapping[str, tuple[str, int]]
"""Token -> (log, microseconds)."""


def frames_before(frames: Frames) -> dict[str, tuple[str, float]]:
    """Token -> (token of the frame before, seconds between them), where there is one."""
    before: dict[str, tuple[str, float]] = {}
    ordered = sorted(frames, key=lambda t: frames[t])
    for earlier, token in itertools.pairwise(ordered):
        (log_a, us_a), (log_b, us_b) = frames[earlier], frames[token]
        if log_a == log_b and 0 < (apart := (us_b - us_a) * 1e-6) < MAX_INTERVAL_S:
            before[token] = (earlier, apart)
    return before


def comfort_between_frames(keys: Sequence[tuple[str, str]], states: Tensor, frames: Frames) -> Tensor:
    """Extended comfort [K] with the same driver's answer one frame before; NaN where there is none.

    Args:
        keys: K (token, driver); answers that do not count (unparsed ones) are left out by the caller.
        states: float64 [K, 41, 11], simulated.
        frames: of every token.
    """
    place = {key: k for k, key in enumerate(keys)}
    before = frames_before(frames)
    now_and_then: dict[float, list[tuple[int, int]]] = {}
    for k, (token, name) in enumerate(keys):
        earlier, apart = before.get(token, ("", 0.0))
        if (earlier, name) in place:
            now_and_then.setdefault(apart, []).append((k, place[earlier, name]))
    out = torch.full((len(keys),), math.nan, dtype=torch.float64)
    for apart, places in now_and_then.items():
        now, then = torch.tensor(places).T
        out[now] = extended_comfort(states[now], states[then], apart)
    return out
