"""`make pretrain`, small: a folder that a recipe takes, with a card that says what is in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import pretrain
from shards_schema.errors import ConfigError
from teachers import registry

SMALL = ("drives=1", "held_out=1", "geometry_steps=2", "geometry_frames=3", "dynamics_steps=2", "dynamics_clips=1")


def test_the_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = pretrain.main([f"out={tmp_path}", "processes=1", "seed=3", *SMALL])
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert card["recipe"]["seed"] == 3
    assert "processes" not in card["recipe"]  # it decides no bit
    assert card["license"] == "Apache-2.0"
    for name, digest in card["sha256"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    figures = card["held_out"]
    assert set(figures["three views"]) == {"trained", "random weights", "medians"}
    assert set(figures["three moments"]) == {"trained", "random weights", "medians", "medians, standing still"}
    assert set(figures["video"]) == {"trained", "random weights", "mean frame", "frame beside, repeated"}
    assert all(np.isfinite(value) for table in figures.values() for row in table.values() for value in row.values())
    assert figures["three views"]["medians"]["rotation"] < 1.0  # the rig is the same in every town
    said = capsys.readouterr().out
    assert all(f"\n{who} " in said for table in figures.values() for who in table)
    assert f"{figures['three views']['trained']['absrel']:.3f}" in said
    with Image.open(tmp_path / pretrain.PICTURE) as picture:
        assert picture.size == (3 * 252, 3 * 140)
    vggt = registry.build("vggt", {"weights": {"path": str(tmp_path)}, "network": "town", "width": 252})
    cosmos = registry.build("cosmos", {"weights": {"path": str(tmp_path)}})
    for teacher, kind in ((vggt, "model.safetensors"), (cosmos, "diffusion_pytorch_model.safetensors")):
        teacher.load("cpu")
        assert teacher.provenance()["weights"]["sha256"] == card["sha256"][kind]
        assert not teacher.random_weights


def test_a_recipe_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="geometry_frames"):
        pretrain.main(["geometry_frames=4"])
