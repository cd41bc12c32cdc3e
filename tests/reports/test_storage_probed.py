"""What storage loses of what a target tells: known, of columns whose contents are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.reading.reader import Dataset
from reports.storage.probed import Lost, Probed
from shards_schema.records import Scene
from shards_schema.specs import TargetSpec
from teachers.base import Targets, TeacherInput
from tests.reports.invented import FRAMES, LOGS, Float64, Invented, Street, made, next_second
from tests.toys import write_images


class Whole(Invented):
    """`grid` with channels of very different sizes, `pool` its mean, `huge` beyond float16, and one number."""

    @property
    def specs(self) -> tuple[TargetSpec, ...]:
        def spec(name: str, dims: tuple[str, ...], *shape: int) -> TargetSpec:
            return TargetSpec(name=name, dims=dims, shape=shape, dtype="float32", unit="1", meaning="invented")

        token, channel = "token", "channel"
        grid, pool = spec("grid", (token, channel), 2, 12), spec("pool", (channel,), 12)
        return grid, pool, spec("huge", (token, "huge_channel"), 2, 3), spec("plain", ("one",), 1)

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [self._made(item.scene) for item in batch]

    def _made(self, scene: Scene) -> Targets:
        told = float(next_second(scene)[0])
        grid = np.zeros((2, 12), np.float32)
        grid[:, 0] = 3e4 + len(scene.log)  # massive, and says nothing
        grid[:, 1] = told, -told  # gone in int8, where 128 channels share a scale; gone in the mean
        return {
            "grid": grid,
            "pool": grid.mean(0) + np.float32(0.1 * told) * (np.arange(12) == 2),
            "huge": np.full((2, 3), 1e5 * told, np.float32),
            "plain": np.array([told], np.float32),
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("stored")
    write_images(root, logs=LOGS, frames=FRAMES)
    return made(Street(str(root)), root / "out", Whole("whole"))


@pytest.fixture(scope="module")
def found(data: Dataset) -> tuple[dict[str, dict[str, Lost | None]], Probed]:
    probed = Probed(data, ["whole"], 1000)
    return {name: probed.choices("whole", spec) for name, spec in data.specs("whole").items()}, probed


def test_r2_that_a_choice_loses(found: tuple[dict[str, dict[str, Any]], Probed]) -> None:
    grid = found[0]["grid"]
    assert [*grid] == ["float32", "float16", "bfloat16", "int8"]
    assert grid["float32"].lost == (0, 0)
    assert grid["float32"].r2.middle > 0.95
    assert "x 1 s" in grid["float32"].labels
    assert abs(grid["float16"].lost.middle) < 1e-4  # rounded to 11 bits
    assert grid["int8"].lost.middle > 0.95
    assert grid["int8"].lost.middle - grid["int8"].lost.half > 0.9
    assert grid["int8"].r2.middle < 0.02
    assert grid["int8"].most.middle >= grid["int8"].lost.middle
    assert grid["int8"].to_json()["lost"]["middle"] == grid["int8"].lost.middle


def test_what_cannot_be_stored_or_has_no_channels(found: tuple[dict[str, dict[str, Any]], Probed]) -> None:
    assert found[0]["huge"]["float16"] is None
    assert found[0]["huge"]["bfloat16"].lost.middle < 0.01
    assert [*found[0]["plain"]] == ["float32", "float16", "bfloat16"]


def test_a_pool_in_place_of_what_it_pools(found: tuple[dict[str, dict[str, Any]], Probed]) -> None:
    """`huge` and `plain` have other channels, so they stand in nobody's place."""
    (pool,) = found[1].in_place("whole").items()
    assert pool[0] == "pool"
    assert pool[1][0] == "grid"
    assert found[1].in_place("other") == {}


def test_none_is_said_so(data: Dataset) -> None:
    none = Probed(data, ["whole"], 1)
    assert none.choices("whole", data.specs("whole")["grid"]) == {}
    assert none.about == "none: probes hold whole logs out, which takes 3 of them, and these scenes are of 1"
    assert f"on {LOGS * (FRAMES - 4)} scenes of {LOGS} logs" in Probed(data, ["whole"], 1000).about


def test_a_column_that_tells_nothing_loses_none(tmp_path: Path) -> None:
    """Which is no R2 of 0: there is nothing to lose."""

    def noise(scene: Scene) -> Float64:
        return np.random.default_rng([int(scene.token, 16) % 2**31, 9]).normal(size=2)

    write_images(tmp_path, logs=LOGS, frames=FRAMES)
    dataset = made(Street(str(tmp_path)), tmp_path / "out", Invented("noise", [noise]))
    assert set(Probed(dataset, ["noise"], 1000).choices("noise", dataset.specs("noise")["grid"]).values()) == {None}
