"""The road graph of a nuPlan map: blocks of parallel lanes, what follows what, and the blocks at a place.

Links to what the map does not have are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import shapely

from maps.areas import Areas
from maps.geopackage import GeoPackage, Layer
from maps.lanes import Lane, read_lanes
from shards_schema.errors import SampleError

NEAR_M: Final = 1.0
"""Half of the square within which a block is where one is."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A roadblock (parallel lanes of one direction), or a roadblock connector.

    Attributes:
        id: its FID.
        connector: whether it is a roadblock connector.
        area: its polygon.
        lanes: its lanes, or lane connectors, in the order of the file.
        before: what one comes from to it.
        after: what one drives to from it.
    """

    id: int
    connector: bool
    area: shapely.Geometry = field(repr=False)
    lanes: list[Lane] = field(default_factory=list, repr=False)
    before: list[Block] = field(default_factory=list, repr=False)
    after: list[Block] = field(default_factory=list, repr=False)


class Roads:
    """A location's graph.

    Attributes:
        blocks: roadblocks and roadblock connectors, by id.
    """

    def __init__(self, file: GeoPackage) -> None:
        """Read six layers of it.

        Raises:
            SampleError: code ``bad_map``: a layer or column is missing, or does not hold what it should.
        """
        groups = file.layer("lane_groups_polygons")
        links = file.layer("lane_group_connectors", "from_lane_group_fid", "to_lane_group_fid")
        roadblocks, connectors = _blocks(groups, connector=False), _blocks(links, connector=True)
        for i, before, after in links.rows("from_lane_group_fid", "to_lane_group_fid"):
            for one, following in ((roadblocks.get(before), connectors[i]), (connectors[i], roadblocks.get(after))):
                if one is not None and following is not None:
                    one.after.append(following)
                    following.before.append(one)
        self.blocks: Mapping[int, Block] = connectors | roadblocks
        self._layers = ((list(roadblocks.values()), Areas.of(groups)), (list(connectors.values()), Areas.of(links)))
        for lane in read_lanes(file):
            if (block := (connectors if lane.connector else roadblocks).get(lane.block)) is not None:
                block.lanes.append(lane)

    def block(self, name: str) -> Block | None:
        """The block that a log's route calls so; None where the map has none."""
        return self.blocks.get(int(name)) if name.isdecimal() else None

    def meeting(self, area: shapely.Geometry) -> list[Block]:
        """Blocks that `area` touches: roadblocks, then connectors, each in the order of the file."""
        return [blocks[n] for blocks, areas in self._layers for n in areas.meeting(area)]

    def at(self, x: float, y: float) -> list[Block]:
        """Blocks at a place; where there are none, the nearest of each kind.

        Raises:
            SampleError: code ``bad_map``, the map has no blocks.
        """
        near = self.meeting(shapely.box(x - NEAR_M, y - NEAR_M, x + NEAR_M, y + NEAR_M))
        near = near or [blocks[n] for blocks, areas in self._layers for n in areas.nearest(shapely.Point(x, y))]
        if not near:
            raise SampleError("bad_map", "the map has no roadblocks")
        return near


def _blocks(layer: Layer, *, connector: bool) -> dict[int, Block]:
    return {i: Block(i, connector, area) for i, area in zip(layer.ids.tolist(), layer.shapes, strict=True)}
