"""`storage` in a column's config, through the job's own command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs import teachers as teachers_job
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from shards_schema.errors import ConfigError, MismatchError
from tests.chaos import small
from tests.inline_job import run_inline
from tests.made_once import drive


@pytest.fixture
def config(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small VGGT whose grid is kept as int8."""
    storage = {"l3_grid": "int8", "l3_special": "bfloat16"}
    values = small.settings(
        drive(tmp_path_factory), shard_size=2, teachers={"vggt": {**small.VGGT, "storage": storage}}
    )
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values | {"out": str(tmp_path / "out")}, sort_keys=False))
    return str(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("{l3_grif: int8}", "there is no target 'l3_grif'"),
        ("{l3_grid: float32}", "the teacher gives float16"),
        ("{depth: int8}", "int8 needs .* a channel axis"),
        ("int8", "expected target: choice"),
    ],
)
def test_an_impossible_storage_ends_before_any_work(config: str, storage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        teachers_job.main([config, f"teachers.vggt.storage={storage}"])
    assert not (Path(config).parent / "out").exists()


def test_a_column_in_its_own_storage(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch)
    teachers_job.main([config])
    out = Path(config).parent / "out"
    assert verify(str(out)).faults == ()
    dataset = Dataset(str(out))
    stored = {s.name: (s.dtype, s.encoding, s.computed) for s in dataset.columns["vggt"].targets}
    assert stored["l3_grid"] == ("int8", "int8", "float16")
    assert stored["l3_grid_scale"] == ("float16", "scale", None)
    assert stored["l3_special"] == ("uint16", "bfloat16", "float32")
    assert stored["l3_tok12"] == ("float16", None, None)
    sample = dataset.read(dataset.tokens("vggt")[0])["vggt"]
    assert str(sample["l3_grid"].dtype) == str(sample["l3_special"].dtype) == "float32"
    assert dataset.statistics("vggt", "l3_grid").count == len(dataset.tokens("vggt")) * 3 * 180
    with pytest.raises(MismatchError, match="column 'vggt' was begun with fingerprint"):
        teachers_job.main([config, "teachers.vggt.storage={l3_grid: int8}"])
