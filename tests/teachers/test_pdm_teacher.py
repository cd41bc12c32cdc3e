"""The PDM teacher: it passes the conformance suite, its column gives contexts back bit for bit, and it refuses."""

from __future__ import annotations

import functools
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from maps.folder import INDEX
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.writing.apart import Processes
from scoring.context import Polygons, RewardContext, Version, collate
from shards_schema.errors import ConfigError, SampleError, ShardsError, SpecError, WeightsError
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from shards_schema.specs import TargetSpec
from teachers.base import Targets, Teacher, TeacherInput, fingerprint
from teachers.pdm import build, context_from_targets
from teachers.registry import build as build_any
from teachers.testing import TeacherConformance

DATA = Path(__file__).parents[1] / "data" / "pdm"
LOCATION = "us-ma-boston"
VERSIONS: tuple[Version, Version] = ("v1", "v2")


def unpack(root: Path) -> Path:
    """The two logs and their map, as a NAVSIM dataset in `root`."""
    logs = root / "navsim_logs" / "mini"
    maps = root / "maps" / LOCATION / "1"
    logs.mkdir(parents=True)
    maps.mkdir(parents=True)
    for packed in (DATA / "logs").glob("*.pkl.gz"):
        (logs / packed.name.removesuffix(".gz")).write_bytes(gzip.decompress(packed.read_bytes()))
    (maps / "map.gpkg").write_bytes(gzip.decompress((DATA / "maps" / "two_logs.gpkg.gz").read_bytes()))
    (root / "maps" / INDEX).write_text(json.dumps({LOCATION: {"version": "1"}}))
    return root


@functools.cache
def read_scenes(root: Path, **window: int) -> list[Scene]:
    source = NavsimSource(NavsimConfig(root=str(root), split="mini", filter={"frame_interval": 1, **window}))
    refs: dict[str, list[SceneRef]] = {}
    for ref in source.scan().refs:
        refs.setdefault(ref.log, []).append(ref)
    found = [scene for log, wanted in refs.items() for scene in source.scenes(log, wanted)]
    assert all(isinstance(scene, Scene) for scene in found), found
    return [scene for scene in found if isinstance(scene, Scene)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("navsim"))


@pytest.fixture(scope="module")
def scenes(root: Path) -> list[Scene]:
    return read_scenes(root)[::12]


@pytest.fixture
def teacher(root: Path) -> Teacher:
    made = build({"maps_root": str(root / "maps")})
    made.load("cpu")
    return made


def run(teacher: Teacher, scenes: Sequence[Scene]) -> list[Targets]:
    inputs = []
    for scene in scenes:
        assert list(teacher.requests(scene)) == []
        inputs.append(TeacherInput(scene, np.zeros((0, 0, 0, 3), np.uint8)))
    return teacher.compute(inputs)


@pytest.mark.slow
def test_in_processes_of_its_own_it_gives_the_same_bytes(teacher: Teacher, scenes: list[Scene]) -> None:
    want = run(teacher, scenes)
    processes = Processes([teacher], 2)
    first, second = (processes.submit("pdm", scenes) for _ in range(2))
    for made in (first.result(300)()[0], second.result(300)()[0]):
        assert all(a[name].tobytes() == b[name].tobytes() for a, b in zip(made, want, strict=True) for name in b)
    processes.close()


class TestConformance(TeacherConformance):
    """The suite, on scenes of the two logs."""

    root: Path

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _dataset(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        TestConformance.root = unpack(tmp_path_factory.mktemp("conformance"))

    def make(self) -> Teacher:
        return build({"maps_root": str(self.root / "maps"), "batch_size": 3})

    def make_other_weights(self) -> Teacher | None:
        """A map in which every speed limit is halved."""
        other = self.root / "other"
        if not other.exists():
            scale_speed_limits(self.root / "maps", other)
        return build({"maps_root": str(other), "batch_size": 3})

    def make_other_config(self) -> Teacher:
        return build({"maps_root": str(self.root / "maps"), "batch_size": 3, "radius": 50.0})

    def scenes(self) -> Sequence[Scene]:
        return read_scenes(self.root)[7::18]


def scale_speed_limits(maps: Path, other: Path, factor: float = 0.5) -> None:
    import shutil
    import sqlite3

    shutil.copytree(maps, other)
    with sqlite3.connect(next(other.rglob("map.gpkg"))) as db:
        db.execute("DROP TRIGGER IF EXISTS rtree_lanes_polygons_geom_update4")
        db.execute(f"UPDATE lanes_polygons SET speed_limit_mps = speed_limit_mps * {factor}")


def same(a: RewardContext, b: RewardContext) -> None:
    for field in fields(RewardContext):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        parts = [(mine, theirs)]
        if isinstance(mine, Polygons):
            parts = [(getattr(mine, f.name), getattr(theirs, f.name)) for f in fields(Polygons)]
        for x, y in parts:
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype, field.name
                assert x.tobytes() == y.tobytes(), field.name
                assert x.shape == y.shape, field.name
            else:
                assert x == y, field.name


def through_npy(specs: Sequence[TargetSpec], targets: Targets) -> Targets:
    out = {}
    for spec in specs:
        buffer = io.BytesIO()
        np.save(buffer, targets[spec.name], allow_pickle=False)
        out[spec.name] = np.load(io.BytesIO(buffer.getvalue()))
    return out


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_contexts_come_back_bit_for_bit(root: Path, scenes: list[Scene], precision: str) -> None:
    from maps.nuplan_map import load_map
    from teachers.pdm.scene_context import prepare
    from teachers.pdm.teacher import reward_contexts

    teacher = build({"maps_root": root / "maps", "precision": precision})
    teacher.load("cpu")
    world = load_map(root / "maps" / LOCATION / "1" / "map.gpkg")
    two = scenes[1:3]
    want = reward_contexts([prepare(scene, world, VERSIONS) for scene in two])
    for scene, targets, contexts in zip(two, run(teacher, two), want, strict=True):
        stored = through_npy(teacher.specs, targets)
        for version, context in zip(VERSIONS, contexts, strict=True):
            back = context_from_targets(stored, version, scene.token)
            same(back, context.astype(precision))
            assert not np.isnan(collate([back]).pdm_progress.item())


def test_a_column_of_one_version_holds_no_other(root: Path, scenes: list[Scene]) -> None:
    teacher = build({"maps_root": root / "maps", "versions": ["v1"]})
    teacher.load("cpu")
    (targets,) = run(teacher, scenes[:1])
    assert not [name for name in targets if name.startswith("v2_")]
    assert context_from_targets(targets, "v1").version == "v1"
    with pytest.raises(SpecError, match=r"no v2 context without .*v2_agents_pose.*config list v2"):
        context_from_targets(targets, "v2", "abc")


def without_annotations(scene: Scene, step: int) -> Scene:
    frames = list(scene.frames)
    place = scene.num_history - 1 + step
    frames[place] = replace(frames[place], annotations=None)
    return replace(scene, frames=tuple(frames))


def with_current(scene: Scene, **changes: object) -> Scene:
    frames = list(scene.frames)
    place = scene.num_history - 1
    frames[place] = replace(frames[place], **changes)  # type: ignore[arg-type]
    return replace(scene, frames=tuple(frames))


def five_times_as_fast(scene: Scene) -> Scene:
    now = scene.timestamp
    frames = tuple(replace(f, timestamp=now + (f.timestamp - now) // 5) for f in scene.frames)
    return replace(scene, frames=frames)


@pytest.mark.parametrize(
    ("code", "message", "change"),
    [
        ("missing_frame", "no frame at step", lambda s: replace(s, frames=s.frames[:-1])),
        ("missing_frame", "no frame at step -3", lambda s: replace(s, frames=s.frames[2:], num_history=2, before=())),
        ("no_annotations", "no annotations", lambda s: without_annotations(s, 0)),
        ("no_annotations", "no annotations", lambda s: without_annotations(s, 7)),
        ("wrong_rate", "frames are 0.10 s apart", five_times_as_fast),
        ("no_route", "no route", lambda s: with_current(s, roadblock_ids=())),
        ("route_not_on_map", "'999999'", lambda s: with_current(s, roadblock_ids=("999999",))),
        ("route_not_on_map", "'x'", lambda s: with_current(s, roadblock_ids=("x",))),
        ("no_map", "sg-one-north", lambda s: replace(s, map_name="sg-one-north")),
    ],
)
def test_refused_before_anything_is_computed(
    teacher: Teacher, scenes: list[Scene], code: str, message: str, change: object
) -> None:
    assert callable(change)
    with pytest.raises(SampleError, match=message) as refused:
        teacher.requests(change(scenes[0]))
    assert refused.value.code == code
    assert scenes[0].token in refused.value.reason


def test_v1_needs_ten_frames_and_v2_eight(root: Path) -> None:
    (scene, *_) = read_scenes(root, num_future_frames=8)
    build({"maps_root": root / "maps", "versions": ["v2"]}).requests(scene)
    with pytest.raises(SampleError, match=r"step \+9"):
        build({"maps_root": root / "maps", "versions": ["v1"]}).requests(scene)


def test_unknown_velocities_are_no_obstacle(teacher: Teacher, scenes: list[Scene]) -> None:
    scene = scenes[1]
    known = scene.current.annotations
    assert known is not None
    blind = replace(known, velocity=np.full_like(known.velocity, np.nan))
    (targets,) = run(teacher, [with_current(scene, annotations=blind)])
    assert np.isfinite(targets["v2_pdm_progress"])


def test_a_speed_limit_of_zero_is_taught(root: Path, scenes: list[Scene], tmp_path: Path) -> None:
    scale_speed_limits(root / "maps", tmp_path / "maps", 0.0)
    teacher = build({"maps_root": tmp_path / "maps"})
    teacher.load("cpu")
    for targets in run(teacher, scenes[:2]):
        for spec in teacher.specs:
            spec.check(targets[spec.name])


def test_prepared_scenes_are_bounded_and_remade(
    teacher: Teacher, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teachers.pdm.teacher._KEPT", 1)
    want = run(teacher, scenes[:1])[0]
    for scene in scenes[:2]:
        teacher.requests(scene)
    got = teacher.compute([TeacherInput(s, np.zeros((0, 0, 0, 3), np.uint8)) for s in scenes[:2]])
    for name, array in want.items():
        np.testing.assert_allclose(got[0][name].astype(np.float64), array.astype(np.float64), rtol=1e-9, atol=1e-12)


def test_the_maps_are_in_the_fingerprint(root: Path, tmp_path: Path) -> None:
    config = {"maps_root": str(root / "maps")}
    assert fingerprint(build(config)) == fingerprint(build_any("pdm", config))
    scale_speed_limits(root / "maps", tmp_path / "maps")
    assert fingerprint(build({"maps_root": tmp_path / "maps"})) != fingerprint(build(config))
    assert list(build(config).provenance()["maps"]) == [LOCATION]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"maps_root": "x", "versions": []},
        {"maps_root": "x", "versions": ["v3"]},
        {"maps_root": "x", "versions": ["v1", "v1"]},
        {"maps_root": "x", "radius": 0},
        {"maps_root": "x", "name": "Bad"},
        {"maps_root": "x", "extra": 1},
    ],
)
def test_impossible_configs(config: Mapping[str, object]) -> None:
    with pytest.raises(ConfigError, match="teacher pdm"):
        build(config)


def test_missing_maps(tmp_path: Path, scenes: list[Scene]) -> None:
    teacher = build({"maps_root": tmp_path})
    for call in (teacher.provenance, lambda: teacher.load("cpu"), lambda: teacher.requests(scenes[0])):
        with pytest.raises(WeightsError, match="no maps at"):
            call()
    (tmp_path / INDEX).write_text(json.dumps({LOCATION: {"version": "9"}}))
    with pytest.raises(WeightsError, match=r"no map of us-ma-boston at .*9/map\.gpkg"):
        teacher.provenance()
    with pytest.raises(ShardsError, match="call load"):
        build({"maps_root": tmp_path}).compute([])
