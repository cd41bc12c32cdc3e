"""Polygons of one layer, and which of them are at a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from maps.geopackage import Layer, Shapes


@dataclass(frozen=True, slots=True, eq=False)
class Areas:
    """N polygons, in the order of the file.

    Attributes:
        ids: int64 [N].
        shapes: object [N], metres.
    """

    ids: NDArray[np.int64]
    shapes: Shapes
    _tree: shapely.STRtree

    @classmethod
    def of(cls, layer: Layer) -> Areas:
        """Those of a layer."""
        return cls(layer.ids, layer.shapes, shapely.STRtree(layer.shapes))

    def meeting(self, area: shapely.Geometry) -> list[int]:
        """Rows of the polygons that `area` touches, in order."""
        return sorted(self._tree.query(area, predicate="intersects").tolist())

    def holds(self, point: shapely.Point) -> bool:
        """Whether a point lies within one."""
        return len(self._tree.query(point, predicate="within")) > 0

    def nearest(self, point: shapely.Point) -> list[int]:
        """Row of the polygon nearest to `point`, the first of equals; none where there is no polygon."""
        metres = shapely.distance(self.shapes, point)  # NaN to an empty one, and to what GDAL could not read
        return [] if np.isnan(metres).all() else [int(np.nanargmin(metres))]
