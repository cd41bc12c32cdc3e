"""The weights that ship with the project: what their card says of them, and that they know the town."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs import teachers as teachers_job
from pipeline.reading.reader import Dataset
from pipeline.writing.run import RANDOM_NOTICE, SYNTHETIC_NOTICE, TOWN_NOTICE
from pretraining import dynamics, footage, geometry, heldout, shipped
from pretraining.footage import HELD_OUT, Footage
from pretraining.steps import Recipe
from pretraining.windows import motions, rigs
from shards_schema.errors import ConfigError, WeightsError
from teachers import registry
from teachers.cosmos.checkpoint import build_network, describe
from teachers.vggt.checkpoint import load_checkpoint
from teachers.weights import TOWN, WeightsConfig, file_digest
from tests.chaos import small
from tests.inline_job import run_inline
from tests.made_once import drive

CARD = json.loads((TOWN / shipped.CARD).read_text())
TOWNS = {"town": True}


@pytest.fixture(scope="module")
def drives() -> list[Footage]:
    """Held out, the first of them as the card's."""
    return [footage.film(number, HELD_OUT) for number in (1, 6)]


def test_the_card_is_of_these_files() -> None:
    assert {name: file_digest(TOWN / name) for name in CARD["sha256"]} == CARD["sha256"]
    assert CARD["license"] == "Apache-2.0"
    assert Recipe(**CARD["recipe"]) == Recipe()  # what `make pretrain` does today is what made them
    assert sum((TOWN / name).stat().st_size for name in CARD["sha256"]) < 8e6
    assert CARD["parameters"]["vggt"] <= 2_000_000


def test_the_card_says_that_they_know_something() -> None:
    views, moments, video = (CARD["held_out"][name] for name in ("three views", "three moments", "video"))
    for table in (views, moments):
        for other in ("medians", "random weights"):
            assert table["trained"]["absrel"] < table[other]["absrel"]
            assert table["trained"]["delta"] > table[other]["delta"]
    assert video["trained"]["all"] > max(row["all"] for who, row in video.items() if who != "trained")


def test_vggt_beats_the_median_of_each_pixel(drives: list[Footage]) -> None:
    """Of these very drives, which is more than the training set's median knows of them."""
    network = geometry.untrained(0)
    load_checkpoint(network, TOWN / "model.safetensors", "cpu")
    network.requires_grad_(False).eval()
    for windows in (rigs, motions):
        trained = heldout.geometry(heldout.seen_by(network), drives, windows)
        median = heldout.geometry(heldout.blind(drives, windows), drives, windows)
        assert trained["absrel"] < median["absrel"]
        assert trained["delta"] > median["delta"]


def test_cv8x8x8_beats_what_knows_nothing(drives: list[Footage]) -> None:
    config = registry.build("cosmos", {"weights": TOWNS}).config  # type: ignore[attr-defined]
    network, statistics = build_network(config, describe(config))
    assert statistics is not None
    assert statistics.origin == "checkpoint"
    rows = heldout.dynamics_table({"trained": network}, drives, drives)
    assert rows["trained"]["all"] > max(row["all"] for who, row in rows.items() if who != "trained")
    mean, std = dynamics.statistics(network, drives)
    assert statistics.mean is not None
    assert statistics.std is not None
    np.testing.assert_allclose(std, statistics.std, rtol=0.5)
    assert np.abs((np.array(mean) - statistics.mean) / statistics.std).max() < 0.5


def test_teachers_take_them_by_name() -> None:
    vggt = registry.build("vggt", {"weights": TOWNS, "network": "town", "width": 252})
    cosmos = registry.build("cosmos", {"weights": TOWNS})
    for teacher, name in ((vggt, "model.safetensors"), (cosmos, "diffusion_pytorch_model.safetensors")):
        assert not teacher.random_weights
        assert teacher.provenance()["weights"] == {
            "random": False,
            "town": True,
            "file": name,
            "sha256": CARD["sha256"][name],
        }
        teacher.load("cpu")


def test_a_dataset_of_them_says_so(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"vggt": {**small.VGGT, "weights": TOWNS, "network": "town"}, "cosmos": small.COSMOS}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(small.settings(drive(tmp_path_factory), teachers=columns)))
    run_inline(monkeypatch)
    teachers_job.main([str(tmp_path / "job.yaml"), f"out={tmp_path / 'out'}"])
    town, random = (notice.format(name) for notice, name in ((TOWN_NOTICE, "vggt"), (RANDOM_NOTICE, "cosmos")))
    assert set(Dataset(str(tmp_path / "out")).manifest.notices) == {SYNTHETIC_NOTICE, random, town}


def test_what_has_no_such_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="set network: town"):
        registry.build("vggt", {"weights": TOWNS})
    with pytest.raises(ConfigError, match="exactly one of random, town, hub, path"):
        registry.build("vggt", {"weights": {"town": True, "random": 0}})
    with pytest.raises(WeightsError, match="AutoencoderKLWan"):
        registry.build("cosmos", {"weights": TOWNS, "model": "wan"}).provenance()
    with pytest.raises(WeightsError, match="no weights at"):
        WeightsConfig(town=True).locate("another.safetensors")
