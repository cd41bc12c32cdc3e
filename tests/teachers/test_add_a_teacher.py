"""A dataset gains columns: a built-in fourth, and a fifth from a stranger's package, by the page that tells how.

The package is the one that docs/add-a-teacher.md prints. pip installs it in a folder of its own, and the suite, the
registry and the job with its Ray workers find it there by its entry point.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
import zarr

from jobs import teachers as teachers_job
from pipeline.reading.verify import verify
from pipeline.writing.task import ShardReceipt
from shards_schema import layout
from teachers.cosmos.teacher import CosmosTeacher
from teachers.vggt.teacher import VGGTTeacher
from tests.chaos import small
from tests.chaos.world import digests
from tests.inline_job import run_inline
from tests.made_once import drive

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-teacher.md"
FOUR = ["cosmos", "samples", "vggt"]
TINY_VJEPA2 = "teachers.vjepa2={weights: {random: 0}, network: tiny, size: [96, 48], pools: {grid: [3, 6]}}"
PHASED_TEST = """
import numpy as np
from stripes_phased import PhasedStripes
from teachers.base import PhasedTeacher


class TestPhased(Plain):
    def _phased(self, teacher):
        return PhasedStripes(teacher.config)

    def make(self):
        return self._phased(super().make())

    def make_other_weights(self):
        return self._phased(super().make_other_weights())

    def make_other_config(self):
        return self._phased(super().make_other_config())

    def test_it_is_phased_and_computes_what_the_plain_one_does(self):
        plain = Plain().make()
        plain.load("cpu")
        assert isinstance(self.loaded(), PhasedTeacher)
        for scene, mine in zip(self.scenes(), self.alone()):
            assert np.array_equal(mine["grid"], plain.compute(self.inputs(plain, [scene]))[0]["grid"])


def test_the_registry_finds_it():
    from teachers import registry

    assert registry.available()["stripes"] == "stripes:build"
"""
pytestmark = pytest.mark.timeout(600)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def gained(before: dict[str, str], out: Path, column: str) -> None:
    """Asserts that `out` holds all of `before` to the byte, but for the two tables of all columns, and `column`."""
    after = digests(out)
    assert before.keys() <= after.keys()
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {layout.INDEX}  # no sample was quarantined, so the other table is as it was
    new = after.keys() - before.keys()
    assert new
    assert all(path.startswith((f"{column}/", f"{layout.ZARR}/{column}/")) for path in new)
    assert verify(str(out)).faults == ()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[ShardReceipt]:
    """The job as it is, but its shards are made here and not in Ray's actors, where a test cannot look."""
    return run_inline(monkeypatch)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config: 2 logs of 5 scenes, in 2 shards."""
    folder = tmp_path_factory.mktemp("work")
    teachers = {"vggt": {**small.VGGT, "views": ["CAM_F0"]}, "cosmos": small.COSMOS}
    config = small.settings(drive(tmp_path_factory), shard_size=5, teachers=teachers) | {"out": str(folder / "out")}
    (folder / "job.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture
def dataset(work: Path, in_this_process: list[ShardReceipt]) -> Path:
    """vggt and cosmos of it, made once."""
    teachers_job.main([str(work / "job.yaml")])
    in_this_process.clear()
    return work / "out"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the page's package: written, and installed by pip into a folder."""
    folder = tmp_path_factory.mktemp("stranger")
    files = {
        match[1]: block
        for block in blocks("toml") + blocks("python")
        if (match := re.match(r"# (my-teachers/\S+)\n", block))
    }
    assert sorted(files) == [
        f"my-teachers/{name}" for name in ("pyproject.toml", "stripes.py", "stripes_phased.py", "test_stripes.py")
    ]
    (folder / "my-teachers").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    command = "-m pip install --quiet --no-index --no-deps --no-build-isolation --target site ./my-teachers"
    ran(command.split(), folder, {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return environment | {
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "TESTS": str(folder / "my-teachers"),
        "OMP_NUM_THREADS": "1",
    }


def ran(arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def never(*_: Any) -> NoReturn:
    raise AssertionError("a teacher whose column is there was asked to compute")


def test_a_fourth_column_and_no_other_is_computed(
    dataset: Path, work: Path, in_this_process: list[ShardReceipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(dataset)
    assert sorted({path.split("/")[0] for path in before if "/" in path}) == sorted([*FOUR, layout.ZARR])
    for teacher in (VGGTTeacher, CosmosTeacher):
        for member in ("preprocess", "stage", "launch", "compute"):
            monkeypatch.setattr(teacher, member, never)
    teachers_job.main([str(work / "job.yaml"), TINY_VJEPA2])  # vggt and cosmos still stand in the config
    assert [[column.column for column in receipt.columns] for receipt in in_this_process] == [["vjepa2"]] * 2
    assert {receipt.decodes for receipt in in_this_process} == {8}  # of 5 scenes: their windows of 4 frames, once each
    gained(before, dataset, "vjepa2")
    group: Any = zarr.open_group(str(dataset / layout.ZARR), mode="r")
    assert group["vjepa2/grid"].shape == (10, 1, 2, 3, 6, 32)
    assert group["vjepa2/valid"][:].all()


def test_a_fifth_from_a_package_of_somebody_else(dataset: Path, work: Path, package: dict[str, str]) -> None:
    # its own test file, as its author runs it; the same with its compute in phases; and where the registry finds it
    again = "from test_stripes import TestStripes as Plain\nfrom stripes import StripesConfig\n" + PHASED_TEST
    (Path(package["TESTS"]) / "test_phased.py").write_text(again)
    output = ran(["-m", "pytest", "-q", "-p", "no:cacheprovider", package["TESTS"]], work, package)
    count = int(re.findall(r"^(\d+) checks", PAGE.read_text(), re.MULTILINE)[0])
    assert f"{count + (count + 3)} passed, 1 skipped" in output  # the skipped one passes in phases; and the two below
    # the page's command, in a real Ray: only this teacher is in the config, and only its module is in the worker
    (command,) = (line for line in "".join(blocks("bash")).splitlines() if "jobs.teachers" in line)
    _, *arguments = shlex.split(command)
    swap = {"configs/demo.yaml": str(work / "job.yaml"), "out=out/demo": f"out={dataset}"}
    before = digests(dataset)
    output = ran([swap.get(argument, argument) for argument in arguments], work, package)
    assert re.search(r"^stripes +2 +10 +10 +0 ", output, re.MULTILINE), output
    gained(before, dataset, "stripes")
    # and what the page reads
    (block,) = (block for block in blocks("python") if "zarr.open_group" in block)
    exec(block.replace("out/demo", str(dataset)), {})
