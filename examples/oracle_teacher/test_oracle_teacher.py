"""`python -m pytest examples/oracle_teacher`: the suite of every teacher, on scenes of a small generated drive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from oracle_teacher import AGENTS, COLS, GRID_CHANNELS, ROUTE_CHANNELS, ROWS, build

from pipeline.sources import registry
from shards_schema.records import Scene
from teachers.base import Teacher
from teachers.testing import TeacherConformance


class TestOracle(TeacherConformance):
    source: ClassVar[dict[str, Any]]
    """Of the generated drive; its images are grey, since nobody looks at them."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _drive(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        root = str(tmp_path_factory.mktemp("drive"))
        small = {"logs": 2, "frames": 18, "width": 96, "height": 54, "cameras": [], "lidar_points": 0, "processes": 1}
        cls.source = {"kind": "synthetic", "root": root, **small, "filter": {"frame_interval": 1}}

    @property
    def maps(self) -> str:
        return f"{self.source['root']}/maps"

    def make(self) -> Teacher:
        return build({"maps_root": self.maps, "batch_size": 3})

    def make_other_weights(self) -> None:
        return None  # it has none

    def make_other_config(self) -> Teacher:
        return build({"maps_root": self.maps, "batch_size": 3, "ego": True})

    def scenes(self) -> Sequence[Scene]:
        source = registry.build(self.source)
        refs = source.scan().refs
        logs = sorted({ref.log for ref in refs})
        found = [scene for log in logs for scene in source.scenes(log, [ref for ref in refs if ref.log == log])]
        return [scene for scene in found if isinstance(scene, Scene)]

    def test_it_tells_what_the_log_tells(self) -> None:
        """The agents of now stand in their cells, and only they; with `ego`, the drive stands there too."""
        told, people = 0, self.run(self.make_other_config(), self.scenes())
        for scene, targets in zip(self.scenes(), people, strict=True):
            labels = scene.current.annotations
            assert labels is not None
            there = np.zeros((len(ROWS) - 1, len(COLS) - 1, len(AGENTS)))
            for (x, y), name in zip(labels.boxes[:, :2], labels.names, strict=True):
                if name in AGENTS and ROWS[0] <= x < ROWS[-1] and COLS[0] <= y < COLS[-1]:
                    there[np.digitize(x, ROWS) - 1, np.digitize(y, COLS) - 1, AGENTS.index(name)] = 1
            assert np.array_equal(targets["grid"][0, ..., : len(AGENTS)], there)
            assert np.allclose(targets["route"][:, -3:], np.vstack((np.zeros(3), scene.future_trajectory()[[3, 7]])))
            assert (targets["view"][..., : len(AGENTS)].sum() > 0) == (targets["view"][..., -1].max() > 0)
            told += int(there.sum())
        assert told > 0

    def test_a_red_light_is_nearer_when_the_ego_is(self) -> None:
        """What is told of the route are metres from the ego: who drives up to a light has it nearer, frame by frame."""
        route = np.stack([targets["route"] for targets in self.alone()])[:, 0]
        light, crossing = route[:, ROUTE_CHANNELS.index("red light")], route[:, ROUTE_CHANNELS.index("crossing")]
        assert (light >= 0).all()
        assert ((light == 60) | (np.abs(light - crossing) < 5)).all()
        assert np.isfinite(route).all()
        assert len(GRID_CHANNELS) == self.alone()[0]["grid"].shape[-1]
