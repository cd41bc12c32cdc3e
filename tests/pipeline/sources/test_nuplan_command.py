"""The driving command against what OpenScene's own code gave for 500 poses and routes (tests/data/nuplan/README.md)."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maps.nuplan_map import load_map
from maps.roads import Roads
from pipeline.sources.nuplan_command import driving_command
from shards_schema.errors import SampleError
from shards_schema.records import COMMANDS

DATA = Path(__file__).parents[2] / "data" / "nuplan"
CASES: list[dict[str, Any]] = json.loads(gzip.decompress((DATA / "commands.json.gz").read_bytes()))["cases"]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.gpkg"
    path.write_bytes(gzip.decompress((DATA / "town.gpkg.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def roads(town: Path) -> Roads:
    return load_map(town).roads


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


def test_a_lane_without_a_baseline_is_refused_where_it_counts(town: Path, roads: Roads, tmp_path: Path) -> None:
    """Left out, it would change the command of those about it in silence; far from it nothing changes."""
    straight = [case for case in CASES if case["command"] == 1]
    here, block = next((case, b) for case in straight for b in roads.at(*case["pose"][:2]) if not b.connector)
    away = next(case for case in straight if np.hypot(*np.subtract(case["pose"], here["pose"])[:2]) > 200.0)
    assert str(block.id) not in away["route"]
    broken = Path(shutil.copy(town, tmp_path / "broken.gpkg"))
    with sqlite3.connect(broken) as db:
        db.execute("DELETE FROM baseline_paths WHERE lane_fid = ?", (block.lanes[0].id,))
    hurt = load_map(broken).roads
    with pytest.raises(SampleError, match=f"lane {block.lanes[0].id} should have one baseline, has 0") as refused:
        driving_command(hurt, np.array(here["pose"]), here["route"])
    assert refused.value.code == "bad_map"
    assert driving_command(hurt, np.array(away["pose"]), away["route"]) == 1
