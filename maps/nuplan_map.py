"""One location's nuPlan map: its parts, each read when it is first wanted, and kept.

The driving command needs the roads alone, the reward context intersections and car parks too: neither pays for what it
does not use, and a process that needs both reads the roads once.
"""

from __future__ import annotations

import functools
from functools import cached_property
from pathlib import Path

from maps.areas import Areas
from maps.geopackage import GeoPackage
from maps.lanes import LaneAreas
from maps.roads import Roads


class NuplanMap:
    """A map; each part raises `SampleError`, code ``bad_map``, where the file does not hold it."""

    def __init__(self, path: Path) -> None:
        self._file = GeoPackage(path)

    @cached_property
    def roads(self) -> Roads:
        """Blocks and lanes."""
        return Roads(self._file)

    @cached_property
    def lanes(self) -> LaneAreas:
        """Areas of lanes."""
        return LaneAreas.of(
            [lane for block in self.roads.blocks.values() for lane in block.lanes if not lane.connector]
        )

    @cached_property
    def connectors(self) -> LaneAreas:
        """Areas of lane connectors."""
        return LaneAreas.of([lane for block in self.roads.blocks.values() for lane in block.lanes if lane.connector])

    @cached_property
    def intersections(self) -> Areas:
        """Areas of crossings."""
        return Areas.of(self._file.layer("intersections"))

    @cached_property
    def carparks(self) -> Areas:
        """Areas of car parks."""
        return Areas.of(self._file.layer("carpark_areas"))


def load_map(path: Path) -> NuplanMap:
    """The map in that file, the same one in all of a process until the file changes; nothing is read yet."""
    stat = path.stat()
    return _map(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _map(path: Path, size: int, mtime_ns: int) -> NuplanMap:
    return NuplanMap(path)
