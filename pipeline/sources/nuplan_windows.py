"""The windows of a nuPlan log that a scene filter wants, and why the others are not made.

    grid      F F F - F F F F ! F F F       frames of the log: "-" lacks something, "!" a jump in time after it
    kept      F F F   F F F F   F F F       windows are cut from these, as NAVSIM cuts them from a pickle,
    made      |---|   |---|     |---|       but not across a place where the grid is broken
                        |---|
    counted   each window of the grid that holds a break, under the first cause in it

With a stride of 1 and a filter that refuses none: made + counted + too short = frames of the grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from pipeline.sources.files import Listing
from pipeline.sources.nuplan_log import NuplanLog
from pipeline.sources.scan import LogScan
from pipeline.sources.scene_filter import SceneFilter
from shards_schema.errors import SampleError
from shards_schema.plan import SceneRef


def missing(log: NuplanLog, files: Listing, index: int, *, lidar: bool) -> str | None:
    """What the frame of the sweep at `index` lacks; None when it has everything."""
    images, sweep = log.images(index), log.sweeps[index].filename
    if len(images) < len(log.channels):
        return "missing_camera"
    if not all(image.file in files for image in images.values()):
        return "missing_image_file"
    return "missing_lidar_file" if lidar and not (sweep and sweep in files) else None


def cut_windows(
    log: NuplanLog,
    name: str,
    wanted: SceneFilter,
    tokens: frozenset[str] | None,
    lacks: Callable[[int], str | None],
) -> LogScan:
    """The scenes of a log.

    Args:
        log: the open log.
        name: its name.
        wanted: counts of frames, stride, route.
        tokens: current frames that scenes are wanted of; None is all.
        lacks: what the frame of a sweep lacks, if anything.

    Raises:
        SampleError: no window has a current frame with a token: the log cannot be used.
    """
    history, length = wanted.num_history_frames, wanted.num_frames
    refs: dict[str, SceneRef] = {}
    skipped: Counter[str] = Counter()
    faults: dict[int, SampleError] = {}
    grid = list(log.frames_at)
    lost = [lacks(index) for index in grid]
    jumps = [not log.follows(*log.stamps[[a, b]].tolist()) for a, b in pairwise(grid)]

    def refused(index: int) -> str | None:
        if wanted.has_route and not log.route(index):
            return "no_route"
        try:
            token = log.token(index)
        except SampleError as fault:
            faults.setdefault(index, fault)
            return "bad_frame"
        return "not_in_tokens" if tokens is not None and token not in tokens else None

    kept = [place for place, reason in enumerate(lost) if reason is None]
    for start in range(0, len(kept), wanted.stride):
        if start + length > len(kept):
            skipped["too_short"] += 1
            continue
        first, last = kept[start], kept[start + length - 1]
        current = grid[kept[start + history - 1]]
        if (reason := refused(current)) is not None:
            skipped[reason] += 1
        elif last - first == length - 1 and not any(jumps[first:last]):
            token = log.token(current)
            skipped["repeated_token"] += token in refs
            refs[token] = SceneRef(name, log.sweeps[current].timestamp, token, grid[first])
    for start in range(0, len(grid) - length + 1, wanted.stride):
        reason = next(filter(None, lost[start : start + length]), None)
        if reason is None and any(jumps[start : start + length - 1]):
            reason = "time_gap"
        if reason is not None and refused(grid[start + history - 1]) is None:
            skipped[reason] += 1
    if faults and len(faults) == skipped.total() - skipped["too_short"] and not refs:
        raise next(iter(faults.values()))
    if not grid:  # no sweep has its images, so there is no first frame either
        skipped["missing_camera"] += max(1, (len(log.sweeps) // log.step - length) // wanted.stride + 1)
    examples = dict.fromkeys(["bad_frame"] if faults else [], f"log {name}: {next(iter(faults.values()), None)}")
    return LogScan(tuple(refs.values()), +skipped, examples)
