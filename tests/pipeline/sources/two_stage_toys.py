"""A small two-stage dataset of the generator: two logs of one first-stage pair each, two pairs of follow-ups a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthetic import SyntheticConfig, generate
from tests.made_once import made_once

FOLDER = "navhard_two_stage"
CONFIG = SyntheticConfig(
    splits=("test",),
    logs=2,
    frames=22,
    width=96,
    height=54,
    manoeuvres=("follow", "left_turn"),
    lidar_points=0,
    cameras=(),
    second_stage="navhard_two_stage",
    processes=1,
)


def two_stage(factory: pytest.TempPathFactory) -> Path:
    """Its root; the goldens of tests/data/two_stage are of this very dataset."""
    return made_once(factory, "two-stage", lambda folder: generate(CONFIG, folder))


def split_yaml(root: Path) -> Path:
    """The split's file, as the devkit's ``train_test_split/navhard_two_stage.yaml``."""
    return root / FOLDER / "filters" / f"{FOLDER}.yaml"
