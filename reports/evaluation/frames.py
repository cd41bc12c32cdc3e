"""Which scene is the frame before another, and extended comfort between the two answers of one driver.

NAVSIM's rule (``infer_start_adjacent_mapping``): scenes of a log in the order of time, among those that were scored;
two neighbours at most 0.55 s apart are a pair, and the later one gets the term. In a two-stage split the pairs are
those of its mapping, and both get it. A synthetic scene is no frame of its log, whatever its time: without a mapping it
has no frame before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence, Set

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


def comfort_between_frames(
    keys: Sequence[tuple[str, str]],
    states: Tensor,
    frames: Frames,
    *,
    mapped: Mapping[str, str] | None = None,
    synthetic: Set[str] = frozenset(),
) -> Tensor:
    """Extended comfort [K] with the same driver's answer one frame before; NaN where there is none.

    Args:
        keys: K (token, driver); answers that do not count (unparsed ones) are left out by the caller.
        states: float64 [K, 41, 11], simulated.
        frames: of every token.
        mapped: token -> token of the frame before, as a two-stage split has it; of these both get the term.
        synthetic: tokens that are paired by `mapped` alone.
    """
    mapped = mapped or {}
    apart_from_time = {*mapped, *mapped.values(), *synthetic}
    place = {key: k for k, key in enumerate(keys)}
    before = frames_before({token: frame for token, frame in frames.items() if token not in apart_from_time})
    for token, earlier in mapped.items():
        if token in frames and earlier in frames:
            apart = (frames[token][1] - frames[earlier][1]) * 1e-6
            if 0 < apart < MAX_INTERVAL_S:
                before[token] = (earlier, apart)
    now_and_then: dict[float, list[tuple[int, int]]] = {}
    for k, (token, name) in enumerate(keys):
        earlier, apart = before.get(token, ("", 0.0))
        if (earlier, name) in place:
            now_and_then.setdefault(apart, []).append((k, place[earlier, name]))
    out = torch.full((len(keys),), math.nan, dtype=torch.float64)
    for apart, places in now_and_then.items():
        now, then = torch.tensor(places).T
        found = extended_comfort(states[now], states[then], apart)
        out[now] = found
        shared = torch.tensor([keys[k][0] in mapped for k, _ in places])
        out[then[shared]] = found[shared]
    return out
