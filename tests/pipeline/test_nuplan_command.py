"""The driving command against what OpenScene's own code gave for 500 poses and routes (tests/data/nuplan/README.md)."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest

from pipeline.sources.nuplan_command import driving_command
from pipeline.sources.nuplan_roads import INDEX, Roads, map_path
from shards_schema.errors import ConfigError, SampleError
from shards_schema.records import COMMANDS

DATA = Path(__file__).parents[1] / "data" / "nuplan"
CASES: list[dict[str, Any]] = json.loads(gzip.decompress((DATA / "commands.json.gz").read_bytes()))["cases"]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.gpkg"
    path.write_bytes(gzip.decompress((DATA / "town.gpkg.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def roads(town: Path) -> Roads:
    return Roads(town)


def test_as_openscene_has_it(roads: Roads) -> None:
    said = [driving_command(roads, np.array(case["pose"]), case["route"]) for case in CASES]
    wrong = [i for i, (ours, case) in enumerate(zip(said, CASES, strict=True)) if ours != case["command"]]
    assert not wrong
    assert min(Counter(said)[i] for i in range(len(COMMANDS))) > 30


@pytest.mark.parametrize("route", [(), ("1",), ("not a number",), ("20000", "1")])
def test_no_route_or_one_that_the_map_lacks_is_unknown(roads: Roads, route: tuple[str, ...]) -> None:
    known = next(case for case in CASES if case["command"] == 1)
    assert driving_command(roads, np.array(known["pose"]), known["route"]) == 1
    assert COMMANDS[driving_command(roads, np.array(known["pose"]), route)] == "unknown"


def test_a_map_that_is_none(town: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.gpkg"
    text.write_text("no map")
    with pytest.raises(SampleError, match="not a nuPlan map") as error:
        Roads(text)
    assert error.value.code == "bad_map"
    bare = tmp_path / "bare.gpkg"
    columns = [np.array(["projectedCoordSystem"], object), np.array(["EPSG:32619"], object)]
    pyogrio.raw.write(str(bare), None, columns, ["key", "value"], layer="meta", driver="GPKG", geometry_type=None)
    with pytest.raises(SampleError, match="lane_groups_polygons"):
        Roads(bare)


def test_where_maps_lie(town: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Set maps_root"):
        map_path(str(tmp_path), "us-ma-boston")
    (tmp_path / INDEX).write_text(json.dumps({"us-ma-boston": {"version": "9"}}))
    with pytest.raises(ConfigError, match="no map of us-ma-boston"):
        map_path(str(tmp_path), "us-ma-boston")
    (tmp_path / "us-ma-boston" / "9").mkdir(parents=True)
    shutil.copy(town, tmp_path / "us-ma-boston" / "9" / "map.gpkg")
    assert map_path(str(tmp_path), "us-ma-boston").is_file()
    with pytest.raises(ConfigError, match="sg-one-north"):
        map_path(str(tmp_path), "sg-one-north")
