"""What `make fidelity` says of choices, and that a dataset in another storage is a whole dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs import fidelity
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.stores.fidelity import COSINE
from reports.storage.figures import Figures, measure
from reports.storage.restored import restore
from shards_schema.errors import ConfigError
from shards_schema.specs import TargetSpec
from tests.jobs.storage_tokens import KINDS, random_vggt, synthetic
from tests.trainer.shard_toys import recipe_values, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("fidelity"))


def by_choice(rows: list[Figures]) -> dict[str, Figures]:
    return {f.choice: f for f in rows}


@pytest.mark.parametrize(
    ("kind", "offered"),
    [
        ("normal", {"float32", "float16", "bfloat16", "int8"}),
        ("heavy", {"float32", "float16", "bfloat16"}),
        ("massive", {"float32", "float16", "bfloat16"}),
        ("sinks", {"float32", "float16", "bfloat16"}),
        ("large", {"float32", "bfloat16"}),
    ],
)
def test_choices_that_are_offered(kind: str, offered: set[str]) -> None:
    assert kind in KINDS
    found = by_choice(measure(*synthetic(kind, 1, seed=0)))
    assert {name for name, figures in found.items() if figures.offered} == offered
    assert found["float32"].relative == 0
    assert found["bfloat16"].cosine is not None
    assert found["bfloat16"].cosine.low > 0.99999
    if kind in ("heavy", "massive", "sinks"):  # the raw cosine alone would have let it pass
        int8 = found["int8"]
        assert int8.cosine is not None
        assert int8.standardised is not None
        assert int8.cosine.low > COSINE > int8.standardised.low
    if kind == "large":
        assert found["float16"].overflow > 0
        assert found["float16"].quarantined == 1
        assert found["float16"].cosine is None


def test_figures_by_hand() -> None:
    """Two vectors whose codes are known: 127 and 1 in steps of a scale of 1, and 0.4 rounded away."""
    values = np.array([[127.0, 1.4, 0.0], [-127.0, -1.4, 0.0]], np.float32)
    spec = TargetSpec(name="x", dims=("token", "channel"), shape=(2, 3), dtype="float32", unit="1", meaning="by hand")
    int8 = by_choice(measure(spec, lambda: [values]))["int8"]
    cosine = (127 * 127 + 1.4) / np.hypot(127, 1.4) / np.hypot(127, 1)
    assert int8.cosine is not None
    assert int8.standardised is not None
    assert int8.cosine.mean == pytest.approx(cosine, abs=1e-9)
    after = (1 + 1 / 1.4) / np.hypot(1, 1) / np.hypot(1, 1 / 1.4)  # channels are +-1 once standardised; 1 / 1.4 is read
    assert int8.standardised.mean == pytest.approx(after, abs=1e-6)
    assert int8.relative == pytest.approx(0.4 / np.hypot(127, 1.4), rel=1e-5)
    assert int8.size == 2 * (512 + 512)  # each array is a header block and a block


def test_random_vggt_tokens_are_the_networks() -> None:
    found = {spec.name: (spec, list(samples())) for spec, samples in random_vggt("tiny", 1, 0)}
    assert {name: spec.shape for name, (spec, _) in found.items()} == {
        "patches": (3, 777, 128), "grid": (3, 10, 18, 128), "special": (3, 5, 128),
    }  # fmt: skip
    for spec, arrays in found.values():
        spec.check(arrays[0])
        assert by_choice(measure(spec, lambda arrays=arrays: arrays))["int8"].offered  # type: ignore[misc]


def test_a_few_larger_channels_of_the_real_architecture_are_enough() -> None:
    (spec, samples), *_ = random_vggt("tiny", 1, 0)
    massive = [values * np.where(np.arange(values.shape[-1]) % 32 == 5, np.float32(20), 1) for values in samples()]
    found = by_choice(measure(spec, lambda: massive))
    assert found["bfloat16"].offered
    assert not found["int8"].offered
    assert found["int8"].cosine is not None
    assert found["int8"].cosine.low > COSINE


def test_a_restored_dataset_is_whole(data: str, tmp_path: Path) -> None:
    dataset = Dataset(data)
    restore(dataset, str(tmp_path / "out"), {"toy": {"grid": "int8", "mean": "bfloat16"}})
    assert verify(str(tmp_path / "out")).faults == ()
    other = Dataset(str(tmp_path / "out"))
    assert other.tokens("samples", "toy") == dataset.tokens("samples", "toy")
    assert [s.dtype for s in other.columns["toy"].targets] == ["int8", "float16", "uint16", "int16"]
    for token in dataset.tokens("toy"):
        before, after = (d.read(token) for d in (dataset, other))
        assert before["samples"] == after["samples"]
        assert np.array_equal(before["toy"]["path"], after["toy"]["path"])
        assert np.allclose(before["toy"]["grid"], after["toy"]["grid"], atol=1 / 254)
        assert np.allclose(before["toy"]["mean"], after["toy"]["mean"], rtol=2**-8)


def test_the_whole_job(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a dataset, with students trained on each storage."""
    recipe = tmp_path / "recipe.yaml"
    values = recipe_values(data, "", baselines=False)
    recipe.write_text(yaml.safe_dump({k: v for k, v in values.items() if k not in ("out", "data")}))
    arguments = [f"data={data}", "samples=4", f"out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match="sft needs"):
        fidelity.main([f"data={data}", f"sft={recipe}"])
    found = fidelity.main([*arguments, f"sft={recipe}"])
    text = capsys.readouterr().out
    assert [f.choice for f in found["toy/grid"]] == ["float16", "int8"]
    assert [f.choice for f in found["toy/mean"]] == ["float32", "float16", "bfloat16", "int8"]
    assert "toy/path" not in found
    assert "NOTE: Made with RANDOM WEIGHTS" in text
    assert "R2: of linear probes on 20 scenes of 4 logs" in text
    assert "R2 lost (95 %)" in text
    document = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert set(document["sft"]) == {"as it is", "int8"}  # the grid is float16 already
    for rows in document["sft"].values():
        assert rows["ade_1"] > 0
    before, after = (document["sft"][c]["cosine_wm"] for c in ("as it is", "int8"))
    assert after == pytest.approx(before, abs=0.1)
    assert before != after
    assert all("probes" in row for rows in document["targets"].values() for row in rows)
    assert document["targets"]["toy/grid"][1]["size"] == found["toy/grid"][1].size
