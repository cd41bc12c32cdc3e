"""The map polygons that the score of a scene needs, in the devkit's order.

What meets the square of 100 m around the ego's centre: roadblocks, the lanes of these, the connectors of roadblock
connectors (which do not count themselves), intersections, car parks. A lane comes with its block, near or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from maps.nuplan_map import NuplanMap
from scoring.context import Layer

RADIUS_M = 100.0
_NODE_CAPACITY = 10


@dataclass(frozen=True, slots=True, eq=False)
class DrivableMap:
    """M polygons.

    Attributes:
        ids: int64 [M], FIDs.
        layers: int64 [M], `scoring.context.Layer`.
        geometries: object [M], global.
    """

    ids: NDArray[np.int64]
    layers: NDArray[np.int64]
    geometries: NDArray[np.object_]

    def holding(self, x: float, y: float) -> list[int]:
        """Ids of the polygons that touch a point, in the order in which the devkit's tree finds them: it decides ties
        between connectors that begin together.
        """
        tree = shapely.STRtree(self.geometries, _NODE_CAPACITY)
        return [int(self.ids[n]) for n in tree.query(shapely.Point(x, y), predicate="intersects")]


def drivable_map(world: NuplanMap, centre: NDArray[np.float64], radius: float) -> DrivableMap:
    """The polygons around the global point `centre` [2]."""
    x, y = centre
    square = shapely.box(x - radius, y - radius, x + radius, y + radius)
    rows: list[tuple[int, Layer, shapely.Geometry]] = []
    near = world.roads.meeting(square)
    rows += [(block.id, Layer.ROADBLOCK, block.area) for block in near if not block.connector]
    for block in near:
        layer = Layer.LANE_CONNECTOR if block.connector else Layer.LANE
        rows += [(lane.id, layer, lane.polygon) for lane in block.lanes]
    for layer, areas in ((Layer.INTERSECTION, world.intersections), (Layer.CARPARK, world.carparks)):
        rows += [(int(areas.ids[n]), layer, areas.shapes[n]) for n in areas.meeting(square)]
    geometries = np.empty(len(rows), dtype=object)
    geometries[:] = [geometry for _, _, geometry in rows]
    return DrivableMap(
        np.array([i for i, _, _ in rows], dtype=np.int64),
        np.array([layer for _, layer, _ in rows], dtype=np.int64),
        geometries,
    )
