"""The folder of all maps (NUPLAN_MAPS_ROOT): which file is the map of a location.

<root>/nuplan-maps-v1.0.json                    location -> the version of its map
<root>/<location>/<version>/map.gpkg
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards_schema.errors import ShardsError
from shards_schema.inputs import documents

INDEX: Final = "nuplan-maps-v1.0.json"


@dataclass(frozen=True, slots=True)
class MapFolder:
    """Where the maps are, and how its owner tells that they are not there.

    Attributes:
        root: a local folder.
        setting: the config's key that names it, for messages.
        fault: class of the errors.
    """

    root: Path
    setting: str
    fault: type[ShardsError]

    def locations(self) -> list[str]:
        """Those of the index, sorted.

        Raises:
            fault: no index, or none that maps locations.
        """
        return sorted(self._index())

    def file(self, location: str) -> Path:
        """The map of a location.

        Raises:
            fault: no index, the location is not in it, or its file is not there.
        """
        try:
            path = self.root / location / str(self._index()[location]["version"]) / "map.gpkg"
        except (KeyError, TypeError) as error:
            raise self.fault(
                f"{self.setting}: {self.root / INDEX} should tell the version of the map of {location}, "
                f"found {type(error).__name__}: {error}"
            ) from None
        if not path.is_file():
            raise self.fault(f"{self.setting}: no map of {location} at {path}")
        return path

    def _index(self) -> Mapping[str, Any]:
        try:
            index = documents.parse_json(documents.read(self.root / INDEX, documents.JSON_BYTES))
        except (OSError, ValueError) as error:
            raise self.fault(
                f"{self.setting}: no maps at {self.root}: {INDEX}: {error}. "
                "Set maps_root to nuPlan's maps folder (NUPLAN_MAPS_ROOT)"
            ) from error
        if not isinstance(index, dict) or not index:
            raise self.fault(
                f"{self.setting}: {self.root / INDEX} should map locations to versions, holds {index!r:.80}"
            )
        return index
