"""What `python -m benchmarks scale` measures, on a few scenes: it runs, and what it makes up is a whole dataset.

(Its part on a real Ray takes ten seconds, and is left to the benchmark.)
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.scale.driver import measured
from benchmarks.scale.scenes import MEMBERS, ListSource
from pipeline.reading.reader import Dataset

SCENES = 600


def test_the_driver_is_measured_on_a_dataset_that_reads(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    shards = measured("plan", {"scenes": SCENES, "counts": str(tmp_path / "counts.json")})["shards"]
    assert sum(json.loads((tmp_path / "counts.json").read_text())) == SCENES
    written = measured("write", {"scenes": SCENES, "root": out})
    assert written["records_mb"] > 0
    assert measured("resume", {"scenes": SCENES, "root": out})["files"] == 2 * len(MEMBERS) * shards
    found = measured("index", {"scenes": SCENES, "root": out})
    assert found["records"] == len(MEMBERS) * shards
    assert found["index_mb"] > 0
    assert measured("close", {"scenes": SCENES, "root": out})["close_s"] > 0
    assert len(Dataset(out).tokens("vggt")) == SCENES
    assert len(ListSource(SCENES).scan().refs) == SCENES
