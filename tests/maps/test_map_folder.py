"""Which file is a location's map, and what is said where it is not there: in the owner's words and class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maps.folder import INDEX, MapFolder
from shards_schema.errors import ConfigError, ShardsError, WeightsError


@pytest.mark.parametrize("fault", [ConfigError, WeightsError])
def test_where_maps_lie(tmp_path: Path, fault: type[ShardsError]) -> None:
    folder = MapFolder(tmp_path, "source.maps_root", fault)
    for call in (folder.locations, lambda: folder.file("us-ma-boston")):
        with pytest.raises(fault, match=r"source\.maps_root: no maps at .*Set maps_root"):
            call()
    (tmp_path / INDEX).write_text(json.dumps({"us-ma-boston": {"version": "9"}, "mars": {}}))
    assert folder.locations() == ["mars", "us-ma-boston"]
    with pytest.raises(fault, match=r"no map of us-ma-boston at .*9/map\.gpkg"):
        folder.file("us-ma-boston")
    path = tmp_path / "us-ma-boston" / "9" / "map.gpkg"
    path.parent.mkdir(parents=True)
    path.touch()
    assert folder.file("us-ma-boston") == path
    for unknown in ("mars", "sg-one-north"):
        with pytest.raises(fault, match=f"version of the map of {unknown}"):
            folder.file(unknown)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '"us-ma-boston"'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    folder = MapFolder(tmp_path, "maps_root", ConfigError)
    for call in (folder.locations, lambda: folder.file("us-ma-boston")):
        with pytest.raises(ConfigError, match=INDEX):
            call()
