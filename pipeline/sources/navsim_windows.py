"""The windows of a NAVSIM log that a scene filter wants, and why the others are not made.

Windows are the devkit's: starts 0, s, 2s, ...; H + F frames; a scene is that of the current frame. Two rules are
our own:

- A window never holds frames of two logs (``other_log``), nor of two of nuPlan's scenes with a gap in time between them
  (``other_scene``): private_test_hard is one pickle of many groups of five frames, minutes and cities apart.
- A gap in time within a scene is what the devkit takes for one step. Such windows are made, and counted; with `gaps`
  "drop" they are not (``time_gap``).

A current frame that cannot be used costs the windows around it (``bad_frame``). A log of which that is every window is
unreadable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

from pipeline.sources.navsim_frame import route, token_and_time
from pipeline.sources.scan import LogScan
from pipeline.sources.scene_filter import SceneFilter
from pipeline.sources.untrusted import shown
from shards_schema.errors import SampleError
from shards_schema.plan import SceneRef

Gaps = Literal["keep", "drop"]
"""What becomes of a window that holds a gap in time within a scene."""

PERIOD_US: Final = 500_000
SLACK_US: Final = 100_000
"""Frames follow each other without a gap when they are 0.5 s +- 0.1 s apart."""


def follows(before: int, after: int) -> bool:
    """Whether two times [us] are those of frames that follow each other without a gap."""
    return abs(after - before - PERIOD_US) <= SLACK_US


def break_between(before: Any, after: Any) -> tuple[str, str] | None:
    """What lies between a frame of a log and the next: ``other_log``, ``other_scene`` or ``time_gap``, and in words.

    Frames that say nothing of their log or time, or are none, are left to `FrameReader`.
    """
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return None
    times = before.get("timestamp"), after.get("timestamp")
    logs, scenes = ((before.get(key), after.get(key)) for key in ("log_name", "scene_token"))

    def told() -> str:
        return f"between frames {shown(before.get('token'), 24)} and {shown(after.get('token'), 24)}"

    if all(isinstance(log, str) for log in logs) and logs[0] != logs[1]:
        return "other_log", f"{told()} log {shown(logs[0])} ends and log {shown(logs[1])} begins"
    try:
        first, then = (int(time) for time in times)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    if follows(first, then):
        return None
    seconds = f"{told()} are {(then - first) * 1e-6:.1f} s"
    if all(isinstance(scene, str) for scene in scenes) and scenes[0] == scenes[1]:
        return "time_gap", seconds
    return "other_scene", f"{seconds}, and another scene begins"


def cut_windows(
    frames: Sequence[Any], name: str, wanted: SceneFilter, tokens: frozenset[str] | None, gaps: Gaps
) -> LogScan:
    """The scenes of a log.

    Args:
        frames: as they are in its pickle.
        name: of the log.
        wanted: counts of frames, stride, route.
        tokens: current frames that scenes are wanted of; None is all.
        gaps: what becomes of windows that hold one.

    Raises:
        SampleError: no window has a current frame that can be used.
    """
    refs: dict[str, SceneRef] = {}
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    over: set[str] = set()
    faults: list[SampleError] = []
    breaks = [break_between(a, b) for a, b in pairwise(frames)]
    for start in range(0, len(frames), wanted.stride):
        end = start + wanted.num_frames
        if end > len(frames):
            skipped["too_short"] += 1
            continue
        current = frames[start + wanted.num_history_frames - 1]
        try:
            token, timestamp = token_and_time(current)
            if wanted.has_route and not route(current):
                skipped["no_route"] += 1
                continue
        except SampleError as fault:
            faults.append(fault)
            skipped["bad_frame"] += 1
            examples.setdefault("bad_frame", f"log {name}: {fault.reason}")
            continue
        if tokens is not None and token not in tokens:
            skipped["not_in_tokens"] += 1
            continue
        held = dict(reversed([found for found in breaks[start : end - 1] if found]))
        reason = next((r for r in ("other_log", "other_scene", "time_gap") if r in held), None)
        if reason:
            examples.setdefault(reason, f"log {name}: {held[reason]}")
        if reason and (reason != "time_gap" or gaps == "drop"):
            skipped[reason] += 1
            continue
        skipped["repeated_token"] += token in refs
        refs[token] = SceneRef(name, timestamp, token, start)
        (over.add if reason else over.discard)(token)
    if faults and len(faults) == skipped.total() - skipped["too_short"] and not refs:
        raise faults[0]
    return LogScan(tuple(refs.values()), +skipped, examples, frozenset(over))
