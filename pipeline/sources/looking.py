"""What the scenes of a log lack of the images that columns ask them for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.sources.base import Missing, Wanted
from shards_schema.plan import SceneRef


def missing(refs: Iterable[SceneRef], wanted: Wanted, has: Callable[[SceneRef, int, str], bool]) -> Missing:
    """What the scenes of a log lack of what columns want.

    Args:
        refs: the scenes.
        wanted: see `Wanted`.
        has: whether a scene has the image of a step and a channel.
    """
    out: dict[str, dict[str, tuple[tuple[int, str], ...]]] = {}
    shared: dict[tuple[tuple[int, str], ...], tuple[tuple[int, str], ...]] = {}
    images = sorted(frozenset().union(*wanted.values()))
    for ref in refs:
        gone = [image for image in images if not has(ref, *image)]
        if not gone:
            continue
        for column, asked in wanted.items():
            if lost := tuple(image for image in gone if image in asked):
                out.setdefault(column, {})[ref.token] = shared.setdefault(lost, lost)
    return out
