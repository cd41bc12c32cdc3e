"""The towns as nuPlan maps: one GeoPackage a location, with the layers and columns that the devkit reads.

Geometry is stored in EPSG:4326 and projected back by the reader to `meta.projectedCoordSystem`. The feature id of a
row *is* its map id; pyogrio numbers rows from 1, so ids are set afterwards through sqlite3 (there is no spatial index
whose triggers would mind). The "last change" times are fixed, so the same town is the same bytes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from shards_schema.poses import Float64
from synthetic.geometry import Path, strip
from synthetic.scenery import lots
from synthetic.world import (
    GUTTER,
    LANE_WIDTH,
    LOCATIONS,
    NODE_REACH,
    SIDEWALK,
    STRIP,
    STRIP_MARGIN,
    Town,
    block_ring,
    crossing_ring,
    town,
)  # fmt: skip

MAP_VERSION = "nuplan-maps-v1.0"
_WHEN = "2021-06-01T00:00:00.000Z"


@dataclass(frozen=True)
class _Layer:
    """Rows of a layer: ids [N], rings or lines (local metres), columns of N values."""

    ids: list[int]
    shapes: list[Float64]
    columns: dict[str, Sequence[Any]]
    lines: bool = False


def write_maps(seed: int, folder: FilePath) -> None:
    """Write ``nuplan-maps-v1.0.json`` and ``<location>/<version>/map.gpkg`` for all four locations into `folder`."""
    for location, (version, _, _, _) in LOCATIONS.items():
        path = folder / location / version / "map.gpkg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_map(town(seed, location), path)
    index = {name: {"version": entry[0], "layers": {}} for name, entry in LOCATIONS.items()}
    (folder / f"{MAP_VERSION}.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_map(made: Town, path: FilePath) -> None:
    """Write one town to a new file."""
    import pyogrio  # with pandas: half a second, which who reads a town that is there need not wait
    from pyproj import Transformer

    epsg = LOCATIONS[made.location][1]
    back, layers = Transformer.from_crs(epsg, 4326, always_xy=True), _layers(made)
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _WHEN})
    try:
        for name, layer in layers.items():
            _write_layer(pyogrio.raw, path, name, layer, made.origin, back)
        pairs = {"projectedCoordSystem": f"EPSG:{epsg}", "name": made.location, "synthetic": "true"}
        columns: list[NDArray[Any]] = [np.array(list(pairs), object), np.array(list(pairs.values()), object)]
        pyogrio.raw.write(str(path), None, columns, ["key", "value"], layer="meta", driver="GPKG", geometry_type=None)
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
    with sqlite3.connect(path) as db:
        for name, layer in layers.items():
            # Through negative numbers, so that no new id meets an old one on the way.
            db.executemany(f'UPDATE "{name}" SET fid = ? WHERE fid = ?', [(-i, n) for n, i in enumerate(layer.ids, 1)])
            db.execute(f'UPDATE "{name}" SET fid = -fid')
        db.execute("UPDATE gpkg_contents SET last_change = ?", (_WHEN,))
    db.close()


def _write_layer(raw: Any, path: FilePath, name: str, layer: _Layer, origin: Float64, back: Any) -> None:
    shapes: list[Any] = []
    for shape in layer.shapes:
        lon, lat = back.transform(*(shape + origin).T)
        points = np.stack((lon, lat), axis=-1)
        shapes.append(shapely.LineString(points) if layer.lines else shapely.Polygon(points))
    data = [np.array(values, dtype=object if isinstance(values[0], str) else None) for values in layer.columns.values()]
    raw.write(
        str(path),
        np.array([shapely.to_wkb(shape) for shape in shapes], dtype=object),
        data,
        list(layer.columns),
        layer=name,
        driver="GPKG",
        geometry_type="LineString" if layer.lines else "Polygon",
        crs="EPSG:4326",
        layer_options={"SPATIAL_INDEX": "NO"},
    )


def _layers(made: Town) -> dict[str, _Layer]:
    lanes, connectors = list(made.lanes.values()), list(made.connectors.values())
    both = [*lanes, *connectors]
    blocks, links = made.blocks(), made.connector_blocks()
    stops = {(n, leg): 51_000 + n * 4 + leg for n in range(len(made.nodes)) for leg in range(4)}
    zebras = {i: road for i, road in enumerate(made.roads) if road.crossing is not None}
    bounds: dict[int, Float64] = {}
    for lane in both:
        for number, side in zip(lane.bounds, (LANE_WIDTH / 2, -LANE_WIDTH / 2), strict=True):
            bounds.setdefault(number, lane.path.offset(side).xy)
    nan = float("nan")
    car_parks = [lot.ring() for lot in lots(made) if lot.kind == "car_park"]
    walkways = [ring for road in made.roads for ring in _sidewalks(road.path, road.half)]
    legs = [(n, leg) for n in range(len(made.nodes)) for leg in range(4)]
    return {
        "lanes_polygons": _Layer(
            [x.id for x in lanes],
            [block_ring([x]) for x in lanes],
            {
                "lane_fid": [x.id for x in lanes],
                "lane_group_fid": [x.block for x in lanes],
                "lane_index": [x.index for x in lanes],
                "speed_limit_mps": [x.speed for x in lanes],
                "left_boundary_fid": [x.bounds[0] for x in lanes],
                "right_boundary_fid": [x.bounds[1] for x in lanes],
            },
        ),
        "lane_connectors": _Layer(
            [c.id for c in connectors],
            [c.path.xy for c in connectors],
            {
                "lane_group_connector_fid": [c.block for c in connectors],
                "exit_lane_fid": [c.before for c in connectors],
                "entry_lane_fid": [c.after for c in connectors],
                "speed_limit_mps": [c.speed for c in connectors],
                "traffic_light_stop_line_fids": [str(stops[c.node, c.leg]) for c in connectors],
                "intersection_fid": [50_000 + c.node for c in connectors],
            },
            lines=True,
        ),
        "gen_lane_connectors_scaled_width_polygons": _Layer(
            [90_000 + i for i in range(len(connectors))],
            [block_ring([c]) for c in connectors],
            {
                "lane_connector_fid": [c.id for c in connectors],
                "left_boundary_fid": [c.bounds[0] for c in connectors],
                "right_boundary_fid": [c.bounds[1] for c in connectors],
            },
        ),
        "baseline_paths": _Layer(
            [100_000 + i for i in range(len(both))],
            [x.path.xy for x in both],
            {
                "lane_fid": [nan if x.turn else float(x.id) for x in both],
                "lane_connector_fid": [float(x.id) if x.turn else nan for x in both],
            },
            lines=True,
        ),
        "boundaries": _Layer(list(bounds), list(bounds.values()), {"boundary_type_fid": [2] * len(bounds)}, lines=True),
        "lane_groups_polygons": _Layer(
            list(blocks), [block_ring(b, GUTTER) for b in blocks.values()], {"lanes": [len(b) for b in blocks.values()]}
        ),
        "lane_group_connectors": _Layer(
            list(links),
            [block_ring(b) for b in links.values()],
            {
                "from_lane_group_fid": [made.lanes[b[0].before].block for b in links.values()],
                "to_lane_group_fid": [made.lanes[b[0].after].block for b in links.values()],
                "intersection_fid": [50_000 + b[0].node for b in links.values()],
            },
        ),
        "intersections": _Layer(
            [50_000 + n for n in range(len(made.nodes))],
            [made.node_ring(n, GUTTER) for n in range(len(made.nodes))],
            {"intersection_type_fid": [1] * len(made.nodes)},
        ),
        "stop_polygons": _Layer(
            [*stops.values(), *(52_000 + i for i in zebras)],
            [_stop_ring(made, n, leg) for n, leg in legs] + [crossing_ring(r, 2.9) for r in zebras.values()],
            {"stop_polygon_type_fid": [2] * len(stops) + [0] * len(zebras)},
        ),
        "crosswalks": _Layer(
            [53_000 + i for i in range(len(legs))] + [54_000 + i for i in zebras],
            [_leg_crosswalk(made, n, leg) for n, leg in legs] + [crossing_ring(r) for r in zebras.values()],
            {"crosswalk_type_fid": [0] * (len(legs) + len(zebras))},
        ),
        "walkways": _plain(55_000, walkways, "walkway_type_fid"),
        "carpark_areas": _plain(56_000, car_parks, "carpark_type_fid"),
        "road_segments": _plain(
            57_000, [strip(r.path, r.half + GUTTER, -r.half - GUTTER) for r in made.roads], "road_type_fid"
        ),
        "generic_drivable_areas": _plain(
            58_000, [ring for r in made.roads for ring in _bays(r.path, r.half, r.crossing)], "area_type_fid"
        ),
    }


def _plain(first: int, rings: list[Float64], column: str) -> _Layer:
    return _Layer([first + i for i in range(len(rings))], rings, {column: [0] * len(rings)})


def _stop_ring(made: Town, node: int, leg: int) -> Float64:
    """The stop line of an approach with 1.2 m before it; on the left half of the leg, seen outwards."""
    half = made.roads[made.nodes[node].roads[leg]].half
    return made.leg_rectangle(node, leg, (NODE_REACH - 0.1, NODE_REACH + 1.2), (0.0, half))


def _leg_crosswalk(made: Town, node: int, leg: int) -> Float64:
    half = made.roads[made.nodes[node].roads[leg]].half + GUTTER
    return made.leg_rectangle(node, leg, (NODE_REACH - 4.6, NODE_REACH - 1.5), (-half, half))


def _sidewalks(path: Path, half: float) -> list[Float64]:
    inner, outer = half + STRIP, half + STRIP + SIDEWALK
    return [strip(path, outer, inner), strip(path, -inner, -outer)]


def _bays(path: Path, half: float, crossing: float | None) -> list[Float64]:
    """The strips beside the lanes, apart from where people cross."""
    ends = [STRIP_MARGIN, path.length - STRIP_MARGIN]
    cuts = [ends] if crossing is None else [[ends[0], crossing - 6.0], [crossing + 6.0, ends[1]]]
    pieces = [Path(path.point(np.linspace(a, b, 12))) for a, b in cuts]
    return [r for p in pieces for r in (strip(p, half + STRIP, half), strip(p, -half, -half - STRIP))]
