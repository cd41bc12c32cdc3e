"""What several test files read and none changes, made once a session: by that process of pytest-xdist that is first.

It lies beside the processes' own temp folders, and goes when they go. Copy what you want to harm.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs import teachers as teachers_job
from pipeline.sources import registry as sources
from synthetic import SyntheticConfig
from synthetic.nuplan_dataset import generate_nuplan
from tests.chaos import small
from tests.inline_job import run_inline


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by `make`, which is called once however many processes ask; the others wait."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
    with (root / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            make(folder)
            done.touch()
    return folder


NUPLAN = SyntheticConfig(
    logs=1, frames=8, width=32, height=18, lidar_points=0, traffic=0.2, manoeuvres=("follow",), cameras=(), processes=1
)
"""Of `nuplan`."""


def nuplan(factory: pytest.TempPathFactory) -> Path:
    """A NAVSIM tree with its nuPlan log: 8 frames with grey images, none of them between the frames."""
    return made_once(factory, "nuplan", lambda folder: generate_nuplan(NUPLAN, folder, ()))


def drive(factory: pytest.TempPathFactory) -> Path:
    """The generated drive of `tests.chaos.small`: 2 logs of 5 scenes."""
    return made_once(factory, "drive", lambda folder: sources.build(small.source(folder)))


def undisturbed(factory: pytest.TempPathFactory) -> Path:
    """What `small.settings` of that drive come to where nothing goes wrong; made in this process, without Ray."""
    config = small.settings(drive(factory))

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "job.yaml").write_text(yaml.safe_dump(config, sort_keys=False))  # the order stands in column.json
        with pytest.MonkeyPatch.context() as patch:
            run_inline(patch)
            teachers_job.main([str(folder / "job.yaml"), f"out={folder / 'out'}"])

    return made_once(factory, "undisturbed", make) / "out"
